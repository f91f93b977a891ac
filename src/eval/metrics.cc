#include "thinkvg/eval/metrics.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <set>
#include <unordered_map>
#include <utility>

#include "eval/bootstrap.h"
#include "thinkvg/core/error.h"
#include "thinkvg/core/parallel.h"
#include "thinkvg/eval/statistics.h"

namespace thinkvg::eval {
namespace {

using data::QuestionType;
using data::Sample;
using grounding::AnswerReading;
using grounding::Box;
using grounding::MultiBoxRule;
using grounding::ParsedResponse;
using grounding::Region;

constexpr std::array<QuestionType, 4> kTypes = {QuestionType::open, QuestionType::closed, QuestionType::single_choice,
                                                QuestionType::multi_choice};

// A box of the answer and one of the reasoning that overlap at least so much are the same.
constexpr double kSameBox = 0.5;

// ---- one question

bool has_letters(QuestionType type) {
  return type == QuestionType::single_choice || type == QuestionType::multi_choice;
}

// A phrase to be found has boxes and no answer.
bool has_open_answer(const Sample& sample) {
  return sample.type == QuestionType::open && (!sample.answer.empty() || sample.regions.empty());
}

// Which scores apply to a question is a matter of the question, never of the answer.
QuestionScore blank_score(const Sample& sample) {
  QuestionScore score;
  score.sample_id = sample.id;
  score.image = sample.image;
  score.type = sample.type;
  score.content_type = sample.content_type;
  for (const Region& region : sample.regions) {
    const std::string name = grounding::normalize_region_name(region.name);
    auto& names = score.reference_regions;
    if (!name.empty() && std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
  }
  if (sample.type != QuestionType::open) score.a_score = 0;
  if (has_open_answer(sample)) {
    score.token_f1 = score.token_recall = score.exact_match = score.rouge_l = 0;
    score.bleu = BleuStats();
  }
  if (!sample.regions.empty()) score.v_score = 0;
  score.strict = score.lenient = {false, score.a_score, score.v_score, score.token_f1};
  return score;
}

bool has_any_tag(const ParsedResponse& parsed, std::string_view text) {
  return parsed.has_think || parsed.has_answer || text.find("<answer>") != std::string_view::npos ||
         text.find("<response>") != std::string_view::npos || text.find("<think>") != std::string_view::npos;
}

// The text that counts as the answer under a reading; nothing when the response is unparsed.
std::optional<std::string> readable_answer(const ParsedResponse& parsed, std::string_view text, AnswerReading reading) {
  if (parsed.complete) return parsed.answer;
  if (reading == AnswerReading::strict) return std::nullopt;
  if (parsed.has_answer && !parsed.answer.empty()) return parsed.answer;
  if (has_any_tag(parsed, text) || grounding::normalize_text(text).empty()) return std::nullopt;
  return std::string(text);
}

struct AnswerGrade {
  bool right = false;
  std::string problem;
};

AnswerGrade grade_answer(const Sample& sample, const std::string& answer, AnswerReading reading) {
  if (has_letters(sample.type)) {
    const auto match = grounding::match_option_letters(answer, sample.answer, reading, sample.choices);
    return {match.exact, match.problem};
  }
  if (grounding::yes_no_matches(answer, sample.answer, reading)) return {true, ""};
  return {false, fmt::format("answered '{:.60}', the reference is '{:.60}'", answer, sample.answer)};
}

grounding::BoxOverlap overlap_with_reference(const QuestionInput& input, const QuestionScore& score,
                                             grounding::IouRule iou) {
  const grounding::BoxFrame& frame = input.sample.frame;
  std::vector<Box> predicted, reference;
  for (const Region& region : score.regions) predicted.push_back(region.box);
  // An attempt that is no box still is a prediction, one that overlaps nothing.
  for (std::size_t i = 0; i < score.response.bad_boxes.size(); ++i) predicted.push_back({0, 0, 0, 0, frame});
  for (const Region& region : input.sample.regions) reference.push_back(input.geometry.convert(region.box, frame));
  return grounding::overlap_of(predicted, reference, iou);
}

// What the reasoning says after its last "answer is" or "answer:".
std::string conclusion_of(std::string_view think) {
  std::string lowered(think);
  std::transform(lowered.begin(), lowered.end(), lowered.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; });
  std::size_t at = std::string::npos, length = 0;
  for (const std::string_view mark : {"answer is", "answer:"}) {
    const std::size_t found = lowered.rfind(mark);
    if (found == std::string::npos || (at != std::string::npos && found < at)) continue;
    at = found;
    length = mark.size();
  }
  if (at == std::string::npos) return "";
  std::string rest(think.substr(at + length));
  // One sentence: what follows it is no part of the conclusion.
  if (const std::size_t end = rest.find_first_of(".\n", 1); end != std::string::npos) rest.resize(end);
  const std::size_t begin = rest.find_first_not_of(" :*\"'");
  return begin == std::string::npos ? "" : rest.substr(begin);
}

std::optional<bool> is_consistent(const Sample& sample, const ParsedResponse& parsed, const std::string& answer) {
  if (sample.type == QuestionType::open || !parsed.has_think) return std::nullopt;
  const std::string conclusion = conclusion_of(parsed.think);
  if (conclusion.empty()) return std::nullopt;
  if (has_letters(sample.type)) {
    const auto concluded = grounding::read_option_letters(conclusion, AnswerReading::lenient, sample.choices);
    if (!concluded) return std::nullopt;
    return concluded == grounding::read_option_letters(answer, AnswerReading::lenient, sample.choices);
  }
  const auto concluded = grounding::read_yes_no(conclusion, AnswerReading::lenient);
  if (!concluded) return std::nullopt;
  return concluded == grounding::read_yes_no(answer, AnswerReading::lenient);
}

void score_reasoning(const Sample& sample, QuestionScore& score, const std::string& answer) {
  const ParsedResponse& parsed = score.response;
  score.answer_words = count_words(answer);
  score.think_words = count_words(parsed.think);
  score.consistent = is_consistent(sample, parsed, answer);
  if (parsed.think_regions.empty()) return;
  score.num_grounded_boxes = static_cast<std::int64_t>(parsed.regions.size());
  for (const Region& region : parsed.regions) {
    const bool said = std::any_of(parsed.think_regions.begin(), parsed.think_regions.end(),
                                  [&](const Region& step) { return grounding::iou(step.box, region.box) >= kSameBox; });
    score.num_boxes_in_think += said ? 1 : 0;
  }
}

// ---- all questions: sums of columns, and metrics that are made of them

enum Column : std::size_t {
  kQuestions,
  kParsed,
  kGraded,
  kA,
  kBoxed,
  kV,
  kPaired,
  kHungarian,
  kUnion,
  kBest,
  kAbove30,
  kAbove50,
  kAbove70,
  kOpen,
  kF1,
  kRecall,
  kExact,
  kRouge,
  kBleu,  // lengths, correct 1..4, total 1..4
  kBoxes = kBleu + 2 + 2 * kMaxBleuOrder,
  kHallucinated,
  kConcluded,
  kConsistent,
  kGroundedBoxes,
  kBoxesInThink,
  kAnswerWords,
  kThinkWords,
  kStrictParsed,
  kStrictA,
  kStrictV,
  kStrictF1,
  kLenientParsed,
  kLenientA,
  kLenientV,
  kLenientF1,
  kJudged,
  kJudgeRatio,
  kJudgeModel,
  kJudgeReference,
  kNumColumns
};

std::vector<double> columns_of(const QuestionScore& question) {
  std::vector<double> row(kNumColumns, 0.0);
  row[kQuestions] = 1;
  row[kParsed] = question.parsed ? 1 : 0;
  row[kAnswerWords] = static_cast<double>(question.answer_words);
  row[kThinkWords] = static_cast<double>(question.think_words);
  row[kStrictParsed] = question.strict.parsed ? 1 : 0;
  row[kLenientParsed] = question.lenient.parsed ? 1 : 0;
  if (question.a_score) {
    row[kGraded] = 1;
    row[kA] = *question.a_score;
    row[kStrictA] = question.strict.a_score.value_or(0);
    row[kLenientA] = question.lenient.a_score.value_or(0);
  }
  if (question.v_score) {
    const double v = *question.v_score;
    row[kBoxed] = 1;
    row[kV] = v;
    row[kStrictV] = question.strict.v_score.value_or(0);
    row[kLenientV] = question.lenient.v_score.value_or(0);
    row[kAbove30] = v >= 0.3 ? 1 : 0;
    row[kAbove50] = v >= 0.5 ? 1 : 0;
    row[kAbove70] = v >= 0.7 ? 1 : 0;
    if (question.overlap) {
      row[kPaired] = question.overlap->paired;
      row[kHungarian] = question.overlap->hungarian;
      row[kUnion] = question.overlap->union_area;
      row[kBest] = question.overlap->best;
    }
    row[kBoxes] = static_cast<double>(question.num_boxes);
    row[kHallucinated] = static_cast<double>(question.num_hallucinated);
  }
  if (question.token_f1) {
    row[kOpen] = 1;
    row[kF1] = *question.token_f1;
    row[kStrictF1] = question.strict.token_f1.value_or(0);
    row[kLenientF1] = question.lenient.token_f1.value_or(0);
    row[kRecall] = question.token_recall.value_or(0);
    row[kExact] = question.exact_match.value_or(0);
    row[kRouge] = question.rouge_l.value_or(0);
    if (question.bleu) {
      row[kBleu] = question.bleu->predicted_length;
      row[kBleu + 1] = question.bleu->reference_length;
      std::copy(question.bleu->correct.begin(), question.bleu->correct.end(), row.begin() + kBleu + 2);
      std::copy(question.bleu->total.begin(), question.bleu->total.end(), row.begin() + kBleu + 2 + kMaxBleuOrder);
    }
  }
  if (question.consistent) {
    row[kConcluded] = 1;
    row[kConsistent] = *question.consistent ? 1 : 0;
  }
  row[kGroundedBoxes] = static_cast<double>(question.num_grounded_boxes);
  row[kBoxesInThink] = static_cast<double>(question.num_boxes_in_think);
  if (question.judge && question.judge->reference > 0) {
    row[kJudged] = 1;
    row[kJudgeRatio] = question.judge->model / question.judge->reference;
    row[kJudgeModel] = question.judge->model;
    row[kJudgeReference] = question.judge->reference;
  }
  return row;
}

struct MetricDefinition {
  MetricInfo info;
  std::size_t part, whole;  // the value is the ratio of their sums; BLEU is made of more
  std::size_t counted;      // how many questions it is about
  int bleu_order = 0;
};

const std::vector<MetricDefinition>& definitions() {
  static const std::vector<MetricDefinition> kDefinitions = {
      {{"a_score", "A-score", "Share of right answers; multi choice: the exact set."}, kA, kGraded, kGraded},
      {{"v_score", "V-score", "Mean overlap (IoU) of predicted and reference boxes."}, kV, kBoxed, kBoxed},
      {{"token_f1", "Token F1", "F1 of the words of open answers."}, kF1, kOpen, kOpen},
      {{"parse_rate", "Parsed", "Share of responses that could be read."}, kParsed, kQuestions, kQuestions},
      {{"v_score_hungarian", "V, hungarian", "Best one-to-one assignment; unmatched boxes count 0."},
       kHungarian,
       kBoxed,
       kBoxed},
      {{"v_score_paired", "V, paired", "Boxes in order; 0 where their numbers differ."}, kPaired, kBoxed, kBoxed},
      {{"v_score_union", "V, union", "IoU of the two unions as point sets."}, kUnion, kBoxed, kBoxed},
      {{"v_score_best", "V, best", "For each reference box the best prediction."}, kBest, kBoxed, kBoxed},
      {{"acc_0.3", "Acc@0.3", "Share of questions with a V-score of at least 0.3."}, kAbove30, kBoxed, kBoxed},
      {{"acc_0.5", "Acc@0.5", "Share of questions with a V-score of at least 0.5."}, kAbove50, kBoxed, kBoxed},
      {{"acc_0.7", "Acc@0.7", "Share of questions with a V-score of at least 0.7."}, kAbove70, kBoxed, kBoxed},
      {{"hallucinated_boxes", "Hallucinated boxes", "Share of predicted boxes that overlap no reference box."},
       kHallucinated,
       kBoxes,
       kBoxed},
      {{"token_recall", "Token recall", "Share of the reference's words that open answers have."},
       kRecall,
       kOpen,
       kOpen},
      {{"exact_match", "Exact match", "Open answers equal to the reference, case and a full stop aside."},
       kExact,
       kOpen,
       kOpen},
      {{"bleu_1", "BLEU-1", "Of all open answers together."}, kBleu, kBleu, kOpen, 1},
      {{"bleu_2", "BLEU-2", "Of all open answers together."}, kBleu, kBleu, kOpen, 2},
      {{"bleu_3", "BLEU-3", "Of all open answers together."}, kBleu, kBleu, kOpen, 3},
      {{"bleu_4", "BLEU-4", "Of all open answers together."}, kBleu, kBleu, kOpen, 4},
      {{"rouge_l", "ROUGE-L", "Longest common subsequence of words, F-measure, mean over open answers."},
       kRouge,
       kOpen,
       kOpen},
      {{"ar_score", "AR-score", "Judge: mean over questions of model grade / reference grade.", false},
       kJudgeRatio,
       kJudged,
       kJudged},
      {{"ar_score_ratio_of_means", "AR-score, ratio of means", "Judge: sum of model grades / sum of reference grades.",
        false},
       kJudgeModel,
       kJudgeReference,
       kJudged},
      {{"consistency", "Think = answer",
        "Of reasonings that state an answer, the share whose answer is the one given."},
       kConsistent,
       kConcluded,
       kConcluded},
      {{"box_consistency", "Boxes in think", "Share of the answer's boxes that the reasoning has, too."},
       kBoxesInThink,
       kGroundedBoxes,
       kQuestions},
      {{"answer_words", "Answer, words", "Mean length of the answer.", false}, kAnswerWords, kQuestions, kQuestions},
      {{"think_words", "Reasoning, words", "Mean length of the reasoning.", false},
       kThinkWords,
       kQuestions,
       kQuestions},
      {{"a_score_strict", "A-score, strict", "The answer and nothing else counts."}, kStrictA, kGraded, kGraded},
      {{"a_score_lenient", "A-score, lenient", "An answer with words around it counts, too."},
       kLenientA,
       kGraded,
       kGraded},
      {{"v_score_strict", "V-score, strict", "Only boxes of complete responses count."}, kStrictV, kBoxed, kBoxed},
      {{"v_score_lenient", "V-score, lenient", "Boxes of incomplete responses count, too."}, kLenientV, kBoxed, kBoxed},
      {{"token_f1_strict", "Token F1, strict", "Only complete responses count."}, kStrictF1, kOpen, kOpen},
      {{"token_f1_lenient", "Token F1, lenient", "Incomplete responses count, too."}, kLenientF1, kOpen, kOpen},
      {{"parse_rate_strict", "Parsed, strict", "Every tag there, closed and in order."},
       kStrictParsed,
       kQuestions,
       kQuestions},
      {{"parse_rate_lenient", "Parsed, lenient", "An answer could be read."}, kLenientParsed, kQuestions, kQuestions},
  };
  return kDefinitions;
}

constexpr std::size_t kMetricA = 0, kMetricV = 1, kNumLeading = 4;

// A question's cluster. A question whose picture is unknown stands alone.
std::string cluster_of(const QuestionScore& question) {
  return question.image.empty() ? "question " + question.sample_id : "image " + question.image;
}

// Names of regions by which scores are told apart. A set of free phrases has too many to be groups: then only the names
// of known regions are.
constexpr std::size_t kMaxRegionGroups = 64;

class Grouping {
 public:
  explicit Grouping(const std::vector<QuestionScore>& questions) {
    std::set<std::string> names;
    for (const QuestionScore& question : questions) {
      names.insert(question.reference_regions.begin(), question.reference_regions.end());
    }
    all_names_ = names.size() <= kMaxRegionGroups;
  }

  std::vector<std::size_t> groups_of(const QuestionScore& question, ClusterSums& sums) const {
    std::vector<std::size_t> groups = {sums.group("all"),
                                       sums.group("type " + data::question_type_name(question.type))};
    if (!question.content_type.empty()) groups.push_back(sums.group("content " + question.content_type));
    std::set<std::string> names;
    for (const std::string& name : question.reference_regions) {
      names.insert(all_names_ || grounding::is_region_name(name) ? name : "other");
    }
    for (const std::string& name : names) groups.push_back(sums.group("region " + name));
    return groups;
  }

 private:
  bool all_names_ = true;
};

constexpr double kMissing = std::numeric_limits<double>::quiet_NaN();

// The value of a metric from the sums of a group, each read by `sum(column)`.
template <class Sum>
double metric_value(const MetricDefinition& definition, const BleuOptions& options, const Sum& sum) {
  if (sum(definition.counted) == 0) return kMissing;
  if (definition.bleu_order == 0) {
    const double whole = sum(definition.whole);
    return whole == 0 ? kMissing : sum(definition.part) / whole;
  }
  BleuStats stats{sum(kBleu), sum(kBleu + 1)};
  for (std::size_t n = 0; n < kMaxBleuOrder; ++n) {
    stats.correct[n] = sum(kBleu + 2 + n);
    stats.total[n] = sum(kBleu + 2 + kMaxBleuOrder + n);
  }
  return bleu(stats, definition.bleu_order, options);
}

// A value and what it is in each resample.
struct Distribution {
  double value = kMissing;
  std::vector<double> resampled;
  std::int64_t count = 0;         // questions
  std::int64_t num_clusters = 0;  // pictures that have a part in the value
};

struct Resampled {
  const ResampledSums& sums;
  const MetricOptions& options;

  Distribution distribution(std::size_t metric, std::size_t group) const {
    const MetricDefinition& definition = definitions()[metric];
    Distribution out;
    out.value = metric_value(definition, options.bleu, [&](std::size_t c) { return sums.sum(group, c); });
    out.count = static_cast<std::int64_t>(std::llround(sums.sum(group, definition.counted)));
    if (std::isnan(out.value)) return out;
    out.num_clusters = sums.num_clusters(group, definition.bleu_order == 0 ? definition.whole : definition.counted);
    out.resampled.resize(sums.resamples());
    for (std::size_t r = 0; r < out.resampled.size(); ++r) {
      out.resampled[r] =
          metric_value(definition, options.bleu, [&](std::size_t c) { return sums.resampled(group, c)[r]; });
    }
    return out;
  }
};

Distribution mean_of(const Distribution& a, const Distribution& b, std::int64_t count) {
  Distribution out{(a.value + b.value) / 2, {}, count, std::min(a.num_clusters, b.num_clusters)};
  if (std::isnan(out.value)) return out;
  for (std::size_t r = 0; r < a.resampled.size(); ++r) out.resampled.push_back((a.resampled[r] + b.resampled[r]) / 2);
  return out;
}

Distribution difference_of(const Distribution& before, const Distribution& after) {
  Distribution out{after.value - before.value, {}, after.count, std::min(before.num_clusters, after.num_clusters)};
  if (std::isnan(out.value)) return out;
  for (std::size_t r = 0; r < after.resampled.size(); ++r) {
    out.resampled.push_back(after.resampled[r] - before.resampled[r]);
  }
  return out;
}

// Resamples in which the metric has no question say nothing about it.
std::optional<Estimate> estimate_of(Distribution distribution) {
  if (std::isnan(distribution.value)) return std::nullopt;
  std::vector<double>& values = distribution.resampled;
  std::erase_if(values, [](double value) { return std::isnan(value); });
  Estimate out{distribution.value, kMissing, kMissing, distribution.count, kMissing, std::nullopt};
  if (distribution.num_clusters < 2 || values.size() < 2) return out;
  double sum = 0, squares = 0;
  for (const double value : values) sum += value - out.mean;
  const double shift = sum / static_cast<double>(values.size());
  for (const double value : values) squares += (value - out.mean - shift) * (value - out.mean - shift);
  out.standard_error = std::sqrt(squares / static_cast<double>(values.size() - 1));
  out.low = *quantile(values, 0.025);
  out.high = *quantile(std::move(values), 0.975);
  return out;
}

// Twice the smaller share of resamples on either side of 0, counting the data themselves as one more.
double bootstrap_p_value(const Distribution& difference) {
  double below = 1, above = 1, all = 1;
  for (const double value : difference.resampled) {
    if (std::isnan(value)) continue;
    below += value <= 0 ? 1 : 0;
    above += value >= 0 ? 1 : 0;
    ++all;
  }
  return std::min(1.0, 2 * std::min(below, above) / all);
}

std::optional<Estimate> difference_estimate(const Distribution& difference) {
  auto estimate = estimate_of(difference);
  if (estimate && estimate->has_interval()) estimate->p_value = bootstrap_p_value(difference);
  return estimate;
}

void put(Metric& metric, const std::string& group, const Estimate& estimate) {
  if (group == "all") {
    metric.overall = estimate;
  } else if (group.starts_with("type ")) {
    metric.by_type.emplace(data::parse_question_type(group.substr(5)), estimate);
  } else if (group.starts_with("content ")) {
    metric.by_content.emplace(group.substr(8), estimate);
  } else {
    metric.by_region.emplace(group.substr(7), estimate);
  }
}

// Calls estimate(metric, group) for each pair, in several threads.
template <class EstimateOf>
std::vector<Metric> collect(const std::vector<std::string>& groups, const EstimateOf& estimate) {
  std::vector<Metric> metrics(definitions().size());
  parallel_for(metrics.size(), [&](std::size_t m) {
    for (std::size_t g = 0; g < groups.size(); ++g) {
      if (const auto found = estimate(m, g)) put(metrics[m], groups[g], *found);
    }
  });
  return metrics;
}

const Metric& find_metric(const std::vector<Metric>& metrics, std::string_view name) {
  for (std::size_t m = 0; m < metrics.size(); ++m) {
    if (definitions()[m].info.name == name) return metrics[m];
  }
  std::string known;
  for (const MetricDefinition& definition : definitions()) known += (known.empty() ? "" : ", ") + definition.info.name;
  throw_invalid("unknown metric '{}'; known are: {}", name, known);
}

// ---- files

Json number_or_null(const std::optional<Estimate>& estimate) { return estimate ? Json(estimate->mean) : Json(nullptr); }
Json interval_or_null(const std::optional<Estimate>& estimate) {
  return estimate && estimate->has_interval() ? Json::array({estimate->low, estimate->high}) : Json(nullptr);
}

template <class Key>
std::string group_name(const Key& key) {
  if constexpr (std::is_same_v<Key, QuestionType>) {
    return data::question_type_name(key);
  } else {
    return key;
  }
}

struct GroupsJson {
  Json means = Json::object(), intervals = Json::object(), counts = Json::object(), p_values = Json::object();
};

template <class Groups>
GroupsJson groups_to_json(const Groups& groups) {
  GroupsJson json;
  for (const auto& [key, estimate] : groups) {
    const std::string name = group_name(key);
    json.means[name] = estimate.mean;
    json.intervals[name] = interval_or_null(estimate);
    json.counts[name] = estimate.num_questions;
    if (estimate.p_value) json.p_values[name] = *estimate.p_value;
  }
  return json;
}

// `difference`: whether the values are differences; those of two independent systems spread by sqrt(2) more than one.
Json metric_to_json(const Metric& metric, bool difference) {
  Json json;
  json["overall"] = number_or_null(metric.overall);
  Json intervals, counts, p_values;
  intervals["overall"] = interval_or_null(metric.overall);
  counts["overall"] = metric.overall ? metric.overall->num_questions : 0;
  if (metric.overall && metric.overall->p_value) p_values["overall"] = *metric.overall->p_value;
  const auto add = [&](const char* key, const GroupsJson& groups) {
    if (groups.means.empty() && std::string_view(key) != "by_type") return;
    json[key] = groups.means;
    intervals[key] = groups.intervals;
    counts[key] = groups.counts;
    if (difference) p_values[key] = groups.p_values;
  };
  add("by_type", groups_to_json(metric.by_type));
  add("by_content", groups_to_json(metric.by_content));
  add("by_region", groups_to_json(metric.by_region));
  json["interval"] = intervals;
  json["n"] = counts;
  if (difference) json["p_value"] = p_values;
  if (metric.overall && metric.overall->has_interval()) {
    const double error = metric.overall->standard_error;
    json["standard_error"] = error;
    json["detectable"] = minimum_detectable_difference(difference ? error : error * std::sqrt(2.0));
  }
  return json;
}

Json metrics_to_json(const std::vector<Metric>& metrics, bool difference, Json json) {
  for (std::size_t m = 0; m < metrics.size(); ++m) {
    if (m >= kNumLeading && !metrics[m].overall) continue;
    json[definitions()[m].info.name] = metric_to_json(metrics[m], difference);
  }
  return json;
}

Json both_to_json(const std::optional<Estimate>& estimate) {
  Json json;
  json["overall"] = number_or_null(estimate);
  json["interval"] = {{"overall", interval_or_null(estimate)}};
  if (estimate && estimate->p_value) json["p_value"] = {{"overall", *estimate->p_value}};
  return json;
}

std::string cell_text(const std::optional<Estimate>& estimate) {
  if (!estimate) return "-";
  if (!estimate->has_interval()) return fmt::format("{:.3f}", estimate->mean);
  return fmt::format("{:.3f} [{:.3f}, {:.3f}]", estimate->mean, estimate->low, estimate->high);
}

std::optional<Estimate> find_type(const Metric& metric, QuestionType type) {
  const auto entry = metric.by_type.find(type);
  if (entry == metric.by_type.end()) return std::nullopt;
  return entry->second;
}

}  // namespace

void MetricOptions::check() const {
  grounding::parse_multi_box_rule(rule);
  grounding::parse_iou_rule(iou);
  grounding::parse_answer_reading(reading);
  bleu.check();
  if (resamples < 10) throw_invalid("resamples must be at least 10, but is {}; 2000 is usual", resamples);
  if (!(hallucination_iou > 0 && hallucination_iou <= 1)) {
    throw_invalid("hallucination_iou must be above 0 and at most 1, but is {}", hallucination_iou);
  }
}

QuestionScore score_question(const QuestionInput& input, const MetricOptions& options) {
  const AnswerReading leading = grounding::parse_answer_reading(options.reading);
  const MultiBoxRule rule = grounding::parse_multi_box_rule(options.rule);
  const Sample& sample = input.sample;
  QuestionScore score = blank_score(sample);
  score.response = grounding::parse_response(input.response, input.frame, options.require_think);
  for (const Region& region : score.response.regions) {
    score.regions.push_back({region.name, input.geometry.convert(region.box, sample.frame)});
  }
  std::optional<grounding::BoxOverlap> overlap;
  if (score.v_score) overlap = overlap_with_reference(input, score, grounding::parse_iou_rule(options.iou));
  std::optional<TokenOverlap> words;
  for (const AnswerReading reading : {AnswerReading::strict, AnswerReading::lenient}) {
    ReadingScore& read = reading == AnswerReading::strict ? score.strict : score.lenient;
    const auto answer = readable_answer(score.response, input.response, reading);
    if (!answer) continue;
    read.parsed = true;
    std::string problem;
    if (score.a_score) {
      const AnswerGrade grade = grade_answer(sample, *answer, reading);
      read.a_score = grade.right ? 1 : 0;
      problem = grade.problem;
    }
    if (score.v_score) read.v_score = overlap->value(rule);
    if (score.token_f1) {
      if (!words) words = token_overlap(*answer, sample.answer);
      read.token_f1 = words->f1;
    }
    if (reading != leading) continue;
    score.problem = problem;
    score_reasoning(sample, score, *answer);
    if (overlap) {
      score.overlap = overlap;
      score.num_boxes = static_cast<std::int64_t>(overlap->best_of_predicted.size());
      score.num_hallucinated = std::count_if(overlap->best_of_predicted.begin(), overlap->best_of_predicted.end(),
                                             [&](double value) { return value < options.hallucination_iou; });
    }
    if (score.token_f1) {
      score.token_recall = words->recall;
      score.exact_match = equal_answers(*answer, sample.answer) ? 1 : 0;
      score.rouge_l = rouge_l(*answer, sample.answer);
      score.bleu = bleu_stats(*answer, sample.answer, options.bleu);
    }
  }
  const ReadingScore& chosen = leading == AnswerReading::strict ? score.strict : score.lenient;
  score.parsed = chosen.parsed;
  score.a_score = chosen.a_score;
  score.v_score = chosen.v_score;
  score.token_f1 = chosen.token_f1;
  if (!score.parsed) {
    score.problem = score.response.problem;
    // The reference is as long as it is, whether or not something was said.
    if (score.bleu) score.bleu = bleu_stats("", sample.answer, options.bleu);
  }
  return score;
}

QuestionScore score_missing(const Sample& sample, const MetricOptions& options) {
  QuestionScore score = blank_score(sample);
  score.problem = "no response";
  if (score.bleu) score.bleu = bleu_stats("", sample.answer, options.bleu);
  return score;
}

const std::vector<MetricInfo>& metric_list() {
  static const std::vector<MetricInfo> kList = [] {
    std::vector<MetricInfo> list;
    for (const MetricDefinition& definition : definitions()) list.push_back(definition.info);
    return list;
  }();
  return kList;
}

const Metric& Scores::metric(std::string_view name) const { return find_metric(metrics, name); }
const Metric& ScoreDifference::metric(std::string_view name) const { return find_metric(metrics, name); }

Scores summarize(const std::vector<QuestionScore>& questions, const MetricOptions& options) {
  options.check();
  Scores scores;
  scores.options = options;
  ClusterSums sums(kNumColumns);
  const Grouping grouping(questions);
  sums.group("all");
  for (const QuestionScore& question : questions) {
    sums.add(cluster_of(question), grouping.groups_of(question, sums), columns_of(question));
    ++scores.num_questions_by_type[question.type];
  }
  const ResampledSums resampled(sums, options.resamples, options.seed);
  const Resampled source{resampled, options};
  scores.metrics = collect(sums.group_names(), [&](std::size_t metric, std::size_t group) {
    return estimate_of(source.distribution(metric, group));
  });
  scores.num_questions = static_cast<std::int64_t>(questions.size());
  scores.num_images = static_cast<std::int64_t>(sums.num_clusters());
  scores.mean_of_a_and_v =
      estimate_of(mean_of(source.distribution(kMetricA, 0), source.distribution(kMetricV, 0), scores.num_questions));
  return scores;
}

ScoreDifference compare(const std::vector<QuestionScore>& baseline, const std::vector<QuestionScore>& candidate,
                        const MetricOptions& options) {
  options.check();
  std::unordered_map<std::string, const QuestionScore*> before;
  for (const QuestionScore& question : baseline) {
    if (!before.emplace(question.sample_id, &question).second) {
      throw_invalid("the baseline scores question '{}' twice", question.sample_id);
    }
  }
  if (baseline.size() != candidate.size()) {
    throw_invalid("a paired comparison needs the same questions, but the baseline has {} and the candidate {}",
                  baseline.size(), candidate.size());
  }
  ScoreDifference difference;
  ClusterSums sums_before(kNumColumns), sums_after(kNumColumns);
  const Grouping grouping(candidate);
  sums_before.group("all");
  sums_after.group("all");
  for (const QuestionScore& question : candidate) {
    const auto entry = before.find(question.sample_id);
    if (entry == before.end()) {
      throw_invalid(
          "a paired comparison needs the same questions, but the baseline has no '{}' (or the candidate has it "
          "twice)",
          question.sample_id);
    }
    const QuestionScore& other = *entry->second;
    if (question.type != other.type || question.a_score.has_value() != other.a_score.has_value() ||
        question.v_score.has_value() != other.v_score.has_value() ||
        question.token_f1.has_value() != other.token_f1.has_value()) {
      throw_invalid("question '{}' is not the same question in both: type or reference boxes differ",
                    question.sample_id);
    }
    if (question.a_score) {
      const bool was_right = *other.a_score >= 1, is_right = *question.a_score >= 1;
      difference.only_baseline_right += was_right && !is_right ? 1 : 0;
      difference.only_candidate_right += is_right && !was_right ? 1 : 0;
    }
    // Both in the candidate's groups and picture, so that groups and resamples are the same.
    sums_before.add(cluster_of(question), grouping.groups_of(question, sums_before), columns_of(other));
    sums_after.add(cluster_of(question), grouping.groups_of(question, sums_after), columns_of(question));
    before.erase(entry);
  }
  const ResampledSums resampled_before(sums_before, options.resamples, options.seed);
  const ResampledSums resampled_after(sums_after, options.resamples, options.seed);
  const Resampled source_before{resampled_before, options}, source_after{resampled_after, options};
  const auto difference_in = [&](std::size_t metric, std::size_t group) {
    return difference_of(source_before.distribution(metric, group), source_after.distribution(metric, group));
  };
  difference.metrics = collect(sums_after.group_names(), [&](std::size_t metric, std::size_t group) {
    return difference_estimate(difference_in(metric, group));
  });
  difference.mean_of_a_and_v = difference_estimate(
      mean_of(difference_in(kMetricA, 0), difference_in(kMetricV, 0), static_cast<std::int64_t>(candidate.size())));
  return difference;
}

Json rules_to_json(const MetricOptions& options) {
  Json rules;
  rules["boxes"] = options.rule;
  rules["iou"] = options.iou;
  rules["reading"] = options.reading;
  rules["require_think"] = options.require_think;
  rules["multi_choice"] = "exact set of letters";
  rules["unparsed"] = "wrong: 0 on every score that applies";
  rules["a_score"] = "closed, single choice, multi choice";
  rules["v_score"] = "questions whose reference has boxes";
  rules["ar_score"] = "judged questions: mean of model grade / reference grade; beside it the ratio of the sums";
  rules["acc"] = "V-score of a question at least 0.3, 0.5, 0.7";
  rules["hallucinated_boxes"] =
      fmt::format("predicted boxes whose IoU with every reference box is below {}", options.hallucination_iou);
  rules["bleu"] = fmt::format("corpus, {}", options.bleu.signature());
  rules["rouge_l"] = "F-measure, words of letters and digits, lower case, no stemmer";
  rules["token_f1"] = "words without punctuation, case and articles";
  rules["meteor"] = "not offered: it needs WordNet";
  rules["interval"] =
      fmt::format("95 % percentile bootstrap by image, {} resamples, seed {}", options.resamples, options.seed);
  return rules;
}

Json scores_to_json(const Scores& scores) {
  Json by_type = Json::object();
  for (const auto& [type, count] : scores.num_questions_by_type) by_type[data::question_type_name(type)] = count;
  Json json;
  json["num_questions"] = {{"overall", scores.num_questions}, {"by_type", by_type}};
  json["num_images"] = scores.num_images;
  json = metrics_to_json(scores.metrics, false, std::move(json));
  json["mean_of_a_and_v"] = both_to_json(scores.mean_of_a_and_v);
  json["rules"] = rules_to_json(scores.options);
  return json;
}

Json difference_to_json(const ScoreDifference& difference) {
  Json json = metrics_to_json(difference.metrics, true, Json::object());
  json["mean_of_a_and_v"] = both_to_json(difference.mean_of_a_and_v);
  const McNemarResult test = mcnemar(difference.only_baseline_right, difference.only_candidate_right);
  json["mcnemar"] = {{"only_baseline_right", test.only_first},
                     {"only_candidate_right", test.only_second},
                     {"p_value", test.p_value},
                     {"method", "exact"}};
  return json;
}

Json question_to_json(const QuestionScore& question) {
  const auto number = [](const std::optional<double>& value) { return value ? Json(*value) : Json(nullptr); };
  Json boxes = Json::array();
  for (const Region& region : question.regions) {
    const Box& box = region.box;
    boxes.push_back({{"name", region.name}, {"box", {box.x1, box.y1, box.x2, box.y2}}, {"frame", box.frame.name()}});
  }
  Json json;
  json["id"] = question.sample_id;
  json["image"] = question.image;
  json["type"] = data::question_type_name(question.type);
  if (!question.content_type.empty()) json["content_type"] = question.content_type;
  json["parsed"] = question.parsed;
  json["a_score"] = number(question.a_score);
  json["v_score"] = number(question.v_score);
  json["token_f1"] = number(question.token_f1);
  json["answer"] = question.response.answer;
  json["boxes"] = boxes;
  json["problem"] = question.problem;
  return json;
}

std::string scores_to_table(const Scores& scores) {
  struct Row {
    std::string type, a_score, v_score, parse_rate, count;
  };
  const auto rate = [](const std::optional<Estimate>& estimate) {
    return estimate ? fmt::format("{:.3f}", estimate->mean) : std::string("-");
  };
  const Metric &a_score = scores.metric("a_score"), &v_score = scores.metric("v_score");
  const Metric& parse_rate = scores.metric("parse_rate");
  std::vector<Row> rows;
  for (const auto& [type, count] : scores.num_questions_by_type) {
    rows.push_back({data::question_type_name(type), cell_text(find_type(a_score, type)),
                    cell_text(find_type(v_score, type)), rate(find_type(parse_rate, type)), std::to_string(count)});
  }
  const Row head = {"question type", "A-score [95 %]", "V-score [95 %]", "parsed", "n"};
  const Row all = {"all", cell_text(a_score.overall), cell_text(v_score.overall), rate(parse_rate.overall),
                   std::to_string(scores.num_questions)};
  const auto line = [](const Row& row) {
    return fmt::format("{:<14} {:>22} {:>22} {:>7} {:>7}\n", row.type, row.a_score, row.v_score, row.parse_rate,
                       row.count);
  };
  const std::string rule(76, '-');
  std::string out = line(head) + rule + "\n";
  for (const Row& row : rows) out += line(row);
  out += rule + "\n" + line(all);
  if (scores.mean_of_a_and_v) out += fmt::format("\nmean of A and V: {}\n", cell_text(scores.mean_of_a_and_v));
  out += "\n";
  for (std::size_t m = 2; m < scores.metrics.size(); ++m) {
    if (!scores.metrics[m].overall) continue;
    out += fmt::format("{:<26} {:>22}   {}\n", definitions()[m].info.title, cell_text(scores.metrics[m].overall),
                       definitions()[m].info.meaning);
  }
  out += fmt::format(
      "\n{} images. Boxes: {}, IoU: {}; answers: {} reading; unparsed counts as wrong; BLEU {};\n"
      "intervals: bootstrap by image, {} resamples, seed {}.\n",
      scores.num_images, scores.options.rule, scores.options.iou, scores.options.reading,
      scores.options.bleu.signature(), scores.options.resamples, scores.options.seed);
  return out;
}

}  // namespace thinkvg::eval
