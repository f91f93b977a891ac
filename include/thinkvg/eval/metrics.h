#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "thinkvg/core/json.h"
#include "thinkvg/core/settings.h"
#include "thinkvg/data/sample.h"
#include "thinkvg/grounding/answer.h"
#include "thinkvg/grounding/response.h"

namespace thinkvg::eval {

// The rules a score depends on; printed with every score.
struct MetricOptions {
  std::string rule = "hungarian";
  std::string reading = "strict";
  bool require_think = false;
  std::int64_t resamples = 2000;
  std::int64_t seed = 0;

  void visit(SettingsVisitor& v) {
    v.setting("rule", rule, "How several boxes are scored: hungarian, paired, union or best.");
    v.setting("reading", reading, "How answers are read: strict (the answer and nothing else) or lenient.");
    v.setting("require_think", require_think, "Count a response without <think> as unparsed.");
    v.setting("resamples", resamples, "Bootstrap resamples of the 95 % intervals.");
    v.setting("seed", seed, "Seed of the bootstrap.");
  }
  // Throws std::invalid_argument on an unknown rule or reading, or fewer than 10 resamples.
  void check() const;
};

// One question and what was answered to it. References must outlive the call.
struct QuestionInput {
  const data::Sample& sample;
  std::string_view response;
  grounding::BoxFrame frame;  // of the boxes in `response`
  const grounding::ImageGeometry& geometry;
};

// The score of one response. An unparsed response is wrong: 0 wherever a score applies.
struct QuestionScore {
  std::string sample_id;
  std::string image;
  data::QuestionType type = data::QuestionType::open;
  std::string content_type;
  bool parsed = false;             // complete by the reading's rule: see score_question
  std::optional<double> a_score;   // closed, single and multi choice: 1 right, 0 wrong (multi choice: the exact set)
  std::optional<double> v_score;   // questions whose reference has boxes: the rule's IoU, in [0, 1]
  std::optional<double> token_f1;  // open questions: F1 of the words of the answer
  std::string problem;             // why not parsed, or why the answer is wrong; empty if neither

  grounding::ParsedResponse response;      // as written, boxes in their own frame
  std::vector<grounding::Region> regions;  // its boxes in the sample's frame
};

// strict: parsed means that every tag is there, closed and in order (ParsedResponse::complete).
// lenient: an <answer> that can be read is enough, and text without any tag counts as an answer.
// Never throws on model text. A box text that is no box counts as an unmatched box.
QuestionScore score_question(const QuestionInput& input, const MetricOptions& options);

// A question without a response: wrong and unparsed.
QuestionScore score_missing(const data::Sample& sample);

// A mean with its 95 % interval: percentiles of a bootstrap over images (all questions of a picture are drawn together,
// because they share it).
struct Estimate {
  double mean = 0;
  double low = 0;
  double high = 0;
  std::int64_t num_questions = 0;
};

// One metric over all questions it applies to, and by question type; types (or all) without such questions are absent.
struct Metric {
  std::optional<Estimate> overall;
  std::map<data::QuestionType, Estimate> by_type;
};

struct Scores {
  Metric a_score, v_score, token_f1, parse_rate;
  // (a_score + v_score) / 2, of the overall means; absent when one of them is.
  std::optional<Estimate> mean_of_a_and_v;
  std::int64_t num_questions = 0;
  std::map<data::QuestionType, std::int64_t> num_questions_by_type;
  std::int64_t num_images = 0;
  MetricOptions options;
};

// Deterministic in options.seed. O(resamples * images), after one pass over the questions.
Scores summarize(const std::vector<QuestionScore>& questions, const MetricOptions& options);

// Candidate minus baseline, with paired bootstrap intervals: both on the same resampled images.
struct ScoreDifference {
  Metric a_score, v_score, token_f1, parse_rate;
  std::optional<Estimate> mean_of_a_and_v;
};

// The two lists must hold the same sample ids, in any order; else std::invalid_argument names what is missing.
ScoreDifference compare(const std::vector<QuestionScore>& baseline, const std::vector<QuestionScore>& candidate,
                        const MetricOptions& options);

// {"num_questions": {"overall": 9, "by_type": {"closed": 4, ..}}, "num_images": 3,
//  "a_score": {"overall": 0.5, "by_type": {"closed": 0.5, ..},
//              "interval": {"overall": [low, high], "by_type": {..}}, "n": {"overall": 8, "by_type": {..}}},
//  "v_score", "token_f1", "parse_rate": the same, "mean_of_a_and_v": {"overall": .., "interval": {"overall": [..]}},
//  "rules": {..}}. What does not apply is null. Scores are between 0 and 1.
Json scores_to_json(const Scores& scores);
Json difference_to_json(const ScoreDifference& difference);

// One question's line of a result file: id, image, type, scores, answer, boxes, problem.
Json question_to_json(const QuestionScore& question);

// The rules in words, for reports and files.
Json rules_to_json(const MetricOptions& options);

// A table for people: question types as rows; A-score and V-score with their intervals, parse rate, questions.
std::string scores_to_table(const Scores& scores);

}  // namespace thinkvg::eval
