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
#include "thinkvg/eval/text_metrics.h"
#include "thinkvg/grounding/answer.h"
#include "thinkvg/grounding/overlap.h"
#include "thinkvg/grounding/response.h"

namespace thinkvg::eval {

// The rules a score depends on; printed with every score.
struct MetricOptions {
  std::string rule = "hungarian";
  std::string iou = "area";
  std::string reading = "strict";
  bool require_think = false;
  double hallucination_iou = 0.1;
  std::int64_t resamples = 2000;
  std::int64_t seed = 0;
  BleuOptions bleu;

  void visit(SettingsVisitor& v) {
    v.setting("rule", rule, "How several boxes make the V-score: hungarian, paired, union or best; all four are told.");
    v.setting("iou", iou, "Overlap of two boxes: area, pixel_inclusive (one pixel longer) or vlm_r1.");
    v.setting("reading", reading,
              "How answers are read: strict (the answer and nothing else) or lenient; both are told, this one leads.");
    v.setting("require_think", require_think, "Count a response without <think> as unparsed.");
    v.setting("hallucination_iou", hallucination_iou,
              "A predicted box whose IoU with every reference box is below this is hallucinated.");
    v.setting("resamples", resamples, "Bootstrap resamples of the 95 % intervals.");
    v.setting("seed", seed, "Seed of the bootstrap.");
    v.section("bleu", bleu, "The variant of BLEU.");
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

// What a response scores under one reading.
struct ReadingScore {
  bool parsed = false;
  std::optional<double> a_score, v_score, token_f1;
};

// Grades of a judge for the reference's answer and the model's, on one scale (1 to 10 as LLaVA-Med has it).
struct JudgeScore {
  double model = 0;
  double reference = 0;
};

// The score of one response. An unparsed response is wrong: 0 wherever a score applies. What does not apply to the
// question is absent.
struct QuestionScore {
  std::string sample_id;
  std::string image;
  data::QuestionType type = data::QuestionType::open;
  std::string content_type;
  std::vector<std::string> reference_regions;  // normalised names, each once
  bool parsed = false;                         // complete by the reading's rule: see score_question
  std::optional<double> a_score;               // closed, single and multi choice: 1 right, 0 wrong (the exact set)
  std::optional<double> v_score;               // questions whose reference has boxes: the rule's IoU, in [0, 1]
  std::optional<double> token_f1;              // open questions: F1 of the words of the answer
  std::string problem;                         // why not parsed, or why the answer is wrong; empty if neither

  // Open questions.
  std::optional<double> token_recall, exact_match, rouge_l;
  std::optional<BleuStats> bleu;
  // Questions whose reference has boxes.
  std::optional<grounding::BoxOverlap> overlap;
  std::int64_t num_boxes = 0;         // predicted, texts that are no box included
  std::int64_t num_hallucinated = 0;  // of them
  // Reasoning. Whether the answer is the one that the reasoning concludes; absent where it states none.
  std::optional<bool> consistent;
  std::int64_t num_grounded_boxes = 0;  // boxes of the answer, where there is reasoning with boxes
  std::int64_t num_boxes_in_think = 0;  // of them, those that the reasoning has too (IoU of at least 0.5)
  std::int64_t answer_words = 0, think_words = 0;
  ReadingScore strict, lenient;
  std::optional<JudgeScore> judge;
  std::optional<double> confidence;  // probability that the model gave its answer, in [0, 1]

  grounding::ParsedResponse response;      // as written, boxes in their own frame
  std::vector<grounding::Region> regions;  // its boxes in the sample's frame
};

// strict: parsed means that every tag is there, closed and in order (ParsedResponse::complete).
// lenient: an <answer> that can be read is enough, and text without any tag counts as an answer.
// Never throws on model text. A box text that is no box counts as an unmatched box.
QuestionScore score_question(const QuestionInput& input, const MetricOptions& options);

// A question without a response: wrong and unparsed.
QuestionScore score_missing(const data::Sample& sample, const MetricOptions& options);

// A mean with its 95 % interval: percentiles of a bootstrap over images (all questions of a picture are drawn together,
// because they share it). One picture says nothing of how pictures differ: then low, high and standard_error are NaN,
// and there is no test.
struct Estimate {
  double mean = 0;
  double low = 0;
  double high = 0;
  std::int64_t num_questions = 0;
  double standard_error = 0;      // of the bootstrap
  std::optional<double> p_value;  // of a difference: two-sided bootstrap test against 0

  bool has_interval() const { return low <= high; }
};

// One metric over all questions it applies to, and by groups of them; groups (or all) without such questions are
// absent. A question counts for each region that its reference names.
struct Metric {
  std::optional<Estimate> overall;
  std::map<data::QuestionType, Estimate> by_type;
  std::map<std::string, Estimate> by_content;
  std::map<std::string, Estimate> by_region;
};

struct MetricInfo {
  std::string name;      // stable, in files
  std::string title;     // for people
  std::string meaning;   // one sentence
  bool is_share = true;  // in [0, 1]
};
// Every metric that summarize gives, in the order of tables. a_score, v_score, token_f1, parse_rate come first.
const std::vector<MetricInfo>& metric_list();

struct Scores {
  std::vector<Metric> metrics;  // in the order of metric_list()
  // (a_score + v_score) / 2, of the overall means; absent when one of them is.
  std::optional<Estimate> mean_of_a_and_v;
  std::int64_t num_questions = 0;
  std::map<data::QuestionType, std::int64_t> num_questions_by_type;
  std::int64_t num_images = 0;
  MetricOptions options;

  // Throws std::invalid_argument for a name that metric_list() lacks.
  const Metric& metric(std::string_view name) const;
};

// Deterministic in options.seed. O(resamples * questions) additions at most, in as many threads as there are cores; the
// result does not depend on their number.
Scores summarize(const std::vector<QuestionScore>& questions, const MetricOptions& options);

// Candidate minus baseline, with paired bootstrap intervals and tests: both on the same resampled images.
struct ScoreDifference {
  std::vector<Metric> metrics;  // in the order of metric_list()
  std::optional<Estimate> mean_of_a_and_v;
  // Graded questions that only one of them has right, for McNemar's test.
  std::int64_t only_baseline_right = 0, only_candidate_right = 0;

  const Metric& metric(std::string_view name) const;
};

// The two lists must hold the same sample ids, in any order; else std::invalid_argument names what is missing.
ScoreDifference compare(const std::vector<QuestionScore>& baseline, const std::vector<QuestionScore>& candidate,
                        const MetricOptions& options);

// {"num_questions": {"overall": 9, "by_type": {"closed": 4, ..}}, "num_images": 3,
//  "a_score": {"overall": 0.5, "by_type": {"closed": 0.5, ..}, "by_content": {..}, "by_region": {..},
//              "interval": {"overall": [low, high], "by_type": {..}, ..}, "n": {"overall": 8, "by_type": {..}, ..},
//              "standard_error": 0.02, "detectable": 0.056},
//  and so for every metric of metric_list() that applies; a_score, v_score, token_f1 and parse_rate always stand there.
//  An interval that one picture alone cannot give is null.
//  "mean_of_a_and_v": {"overall": .., "interval": {"overall": [..]}}, "rules": {..}}. What does not apply is null.
// "detectable": the smallest difference between two systems asked these same questions that a test at 5 % finds 4 times
// out of 5, were their answers independent (answers that agree make it smaller; see compare()).
Json scores_to_json(const Scores& scores);
// The same layout with "p_value", "standard_error" and "detectable" of the differences, and "mcnemar".
Json difference_to_json(const ScoreDifference& difference);

// One question's line of a result file: id, image, type, scores, answer, boxes, problem.
Json question_to_json(const QuestionScore& question);

// The rules in words, for reports and files.
Json rules_to_json(const MetricOptions& options);

// A table for people: question types as rows; A-score and V-score with their intervals, parse rate, questions; below it
// the other metrics.
std::string scores_to_table(const Scores& scores);

}  // namespace thinkvg::eval
