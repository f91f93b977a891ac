#include "thinkvg/eval/metrics.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <unordered_map>
#include <utility>

#include "thinkvg/core/error.h"
#include "thinkvg/core/random.h"

namespace thinkvg::eval {
namespace {

using data::QuestionType;
using data::Sample;
using grounding::AnswerReading;
using grounding::Box;
using grounding::ParsedResponse;
using grounding::Region;

constexpr std::array<QuestionType, 4> kTypes = {QuestionType::open, QuestionType::closed, QuestionType::single_choice,
                                                QuestionType::multi_choice};

bool has_letters(QuestionType type) {
  return type == QuestionType::single_choice || type == QuestionType::multi_choice;
}

// Which scores apply to a question is a matter of the question, never of the answer.
void set_applicable(const Sample& sample, QuestionScore& score) {
  if (sample.type == QuestionType::open) {
    score.token_f1 = 0;
  } else {
    score.a_score = 0;
  }
  if (!sample.regions.empty()) score.v_score = 0;
}

QuestionScore blank_score(const Sample& sample) {
  QuestionScore score;
  score.sample_id = sample.id;
  score.image = sample.image;
  score.type = sample.type;
  score.content_type = sample.content_type;
  set_applicable(sample, score);
  return score;
}

bool has_any_tag(const ParsedResponse& parsed, std::string_view text) {
  return parsed.has_think || parsed.has_answer || text.find("<answer>") != std::string_view::npos ||
         text.find("<response>") != std::string_view::npos || text.find("<think>") != std::string_view::npos;
}

bool can_be_scored(const ParsedResponse& parsed, AnswerReading reading) {
  if (parsed.complete) return true;
  return reading == AnswerReading::lenient && parsed.has_answer && !parsed.answer.empty();
}

void score_answer(const Sample& sample, const std::string& answer, AnswerReading reading, QuestionScore& score) {
  if (sample.type == QuestionType::open) {
    score.token_f1 = grounding::token_f1(answer, sample.answer);
  } else if (has_letters(sample.type)) {
    const auto match = grounding::match_option_letters(answer, sample.answer, reading, sample.choices);
    score.a_score = match.exact ? 1 : 0;
    score.problem = match.problem;
  } else {
    const bool right = grounding::yes_no_matches(answer, sample.answer, reading);
    score.a_score = right ? 1 : 0;
    if (!right) score.problem = fmt::format("answered '{:.60}', the reference is '{:.60}'", answer, sample.answer);
  }
}

double score_boxes(const QuestionInput& input, const QuestionScore& score, grounding::MultiBoxRule rule) {
  const grounding::BoxFrame& frame = input.sample.frame;
  std::vector<Box> predicted, reference;
  for (const Region& region : score.regions) predicted.push_back(region.box);
  // An attempt that is no box still is a prediction, one that overlaps nothing.
  for (std::size_t i = 0; i < score.response.bad_boxes.size(); ++i) predicted.push_back({0, 0, 0, 0, frame});
  for (const Region& region : input.sample.regions) reference.push_back(input.geometry.convert(region.box, frame));
  return grounding::match_boxes(predicted, reference, rule);
}

// The bootstrap works on one row of sums a picture: for each metric and each type (and all types) sum and count.
constexpr std::size_t kNumGroups = kTypes.size() + 1;  // the last one: all types
constexpr std::size_t kAll = kTypes.size();
enum MetricIndex : std::size_t { kA, kV, kF1, kParsed, kNumMetrics };
constexpr std::size_t kNumCells = kNumMetrics * kNumGroups;

struct Totals {
  std::array<double, kNumCells> sum{};
  std::array<double, kNumCells> count{};

  void add(std::size_t metric, std::size_t group, double value) {
    sum[metric * kNumGroups + group] += value;
    count[metric * kNumGroups + group] += 1;
  }
  void add(const Totals& other) {
    for (std::size_t i = 0; i < kNumCells; ++i) {
      sum[i] += other.sum[i];
      count[i] += other.count[i];
    }
  }
  double mean(std::size_t cell) const { return count[cell] > 0 ? sum[cell] / count[cell] : kMissing; }
  double mean_of_a_and_v() const { return (mean(kA * kNumGroups + kAll) + mean(kV * kNumGroups + kAll)) / 2; }

  static constexpr double kMissing = std::numeric_limits<double>::quiet_NaN();
};

std::array<std::optional<double>, kNumMetrics> metric_values(const QuestionScore& question) {
  return {question.a_score, question.v_score, question.token_f1, question.parsed ? 1.0 : 0.0};
}

// `change`: the values of one question; an absent one does not apply.
void add_question(Totals& totals, QuestionType type, const std::array<std::optional<double>, kNumMetrics>& values) {
  for (std::size_t metric = 0; metric < kNumMetrics; ++metric) {
    if (!values[metric]) continue;
    totals.add(metric, static_cast<std::size_t>(type), *values[metric]);
    totals.add(metric, kAll, *values[metric]);
  }
}

// Linear interpolation between order statistics (the rule of numpy.percentile); values are finite, not empty.
double percentile(std::vector<double>& values, double share) {
  const double position = share * static_cast<double>(values.size() - 1);
  const auto below = static_cast<std::size_t>(position);
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(below), values.end());
  const double low = values[below];
  if (below + 1 == values.size()) return low;
  const double high = *std::min_element(values.begin() + static_cast<std::ptrdiff_t>(below) + 1, values.end());
  return low + (position - static_cast<double>(below)) * (high - low);
}

struct Interval {
  double low, high;
};

// Resamples in which the metric has no question say nothing about it.
Interval interval_of(std::vector<double> values, double mean) {
  std::erase_if(values, [](double value) { return std::isnan(value); });
  if (values.empty()) return {mean, mean};
  const double low = percentile(values, 0.025), high = percentile(values, 0.975);
  return {low, high};
}

struct BootstrapResult {
  Totals totals;
  std::array<Interval, kNumCells> intervals{};
  Interval mean_of_a_and_v{};
};

BootstrapResult bootstrap(const std::vector<Totals>& images, const MetricOptions& options) {
  BootstrapResult result;
  for (const Totals& image : images) result.totals.add(image);
  if (images.empty()) return result;

  const auto num_resamples = static_cast<std::size_t>(options.resamples);
  std::vector<std::vector<double>> means(kNumCells, std::vector<double>(num_resamples));
  std::vector<double> both(num_resamples);
  RandomStream random({hash_key("bootstrap by image"), static_cast<std::uint64_t>(options.seed)});
  for (std::size_t r = 0; r < num_resamples; ++r) {
    Totals drawn;
    for (std::size_t i = 0; i < images.size(); ++i) drawn.add(images[random.below(images.size())]);
    for (std::size_t cell = 0; cell < kNumCells; ++cell) means[cell][r] = drawn.mean(cell);
    both[r] = drawn.mean_of_a_and_v();
  }
  for (std::size_t cell = 0; cell < kNumCells; ++cell) {
    result.intervals[cell] = interval_of(std::move(means[cell]), result.totals.mean(cell));
  }
  result.mean_of_a_and_v = interval_of(std::move(both), result.totals.mean_of_a_and_v());
  return result;
}

std::optional<Estimate> estimate_of(const BootstrapResult& result, std::size_t cell) {
  if (result.totals.count[cell] == 0) return std::nullopt;
  return Estimate{result.totals.mean(cell), result.intervals[cell].low, result.intervals[cell].high,
                  static_cast<std::int64_t>(result.totals.count[cell])};
}

Metric metric_of(const BootstrapResult& result, std::size_t metric) {
  Metric out;
  out.overall = estimate_of(result, metric * kNumGroups + kAll);
  for (QuestionType type : kTypes) {
    if (const auto estimate = estimate_of(result, metric * kNumGroups + static_cast<std::size_t>(type))) {
      out.by_type.emplace(type, *estimate);
    }
  }
  return out;
}

std::optional<Estimate> both_of(const BootstrapResult& result) {
  const double mean = result.totals.mean_of_a_and_v();
  if (std::isnan(mean)) return std::nullopt;
  return Estimate{mean, result.mean_of_a_and_v.low, result.mean_of_a_and_v.high,
                  static_cast<std::int64_t>(result.totals.count[kParsed * kNumGroups + kAll])};
}

// Pictures in the order of their names, so that the order of the questions does not matter to the resamples. A question
// whose picture is unknown stands alone.
std::string cluster_of(const QuestionScore& question) {
  return question.image.empty() ? "question " + question.sample_id : "image " + question.image;
}

std::vector<Totals> to_vector(const std::map<std::string, Totals>& by_image) {
  std::vector<Totals> images;
  images.reserve(by_image.size());
  for (const auto& [name, totals] : by_image) images.push_back(totals);
  return images;
}

Json number_or_null(const std::optional<Estimate>& estimate) { return estimate ? Json(estimate->mean) : Json(nullptr); }
Json interval_or_null(const std::optional<Estimate>& estimate) {
  return estimate ? Json::array({estimate->low, estimate->high}) : Json(nullptr);
}

Json metric_to_json(const Metric& metric) {
  Json means = Json::object(), intervals = Json::object(), counts = Json::object();
  for (const auto& [type, estimate] : metric.by_type) {
    const std::string name = data::question_type_name(type);
    means[name] = estimate.mean;
    intervals[name] = interval_or_null(estimate);
    counts[name] = estimate.num_questions;
  }
  Json json;
  json["overall"] = number_or_null(metric.overall);
  json["by_type"] = means;
  json["interval"] = {{"overall", interval_or_null(metric.overall)}, {"by_type", intervals}};
  json["n"] = {{"overall", metric.overall ? metric.overall->num_questions : 0}, {"by_type", counts}};
  return json;
}

Json both_to_json(const std::optional<Estimate>& estimate) {
  Json json;
  json["overall"] = number_or_null(estimate);
  json["interval"] = {{"overall", interval_or_null(estimate)}};
  return json;
}

std::string cell_text(const std::optional<Estimate>& estimate) {
  if (!estimate) return "-";
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
  grounding::parse_answer_reading(reading);
  if (resamples < 10) throw_invalid("resamples must be at least 10, but is {}; 2000 is usual", resamples);
}

QuestionScore score_question(const QuestionInput& input, const MetricOptions& options) {
  const AnswerReading reading = grounding::parse_answer_reading(options.reading);
  const grounding::MultiBoxRule rule = grounding::parse_multi_box_rule(options.rule);
  QuestionScore score = blank_score(input.sample);
  score.response = grounding::parse_response(input.response, input.frame, options.require_think);
  for (const Region& region : score.response.regions) {
    score.regions.push_back({region.name, input.geometry.convert(region.box, input.sample.frame)});
  }
  std::string answer = score.response.answer;
  score.parsed = can_be_scored(score.response, reading);
  if (!score.parsed && reading == AnswerReading::lenient && !has_any_tag(score.response, input.response)) {
    answer = std::string(input.response);
    score.parsed = !grounding::normalize_text(answer).empty();
  }
  if (!score.parsed) {
    score.problem = score.response.problem;
    return score;
  }
  score_answer(input.sample, answer, reading, score);
  if (score.v_score) score.v_score = score_boxes(input, score, rule);
  return score;
}

QuestionScore score_missing(const Sample& sample) {
  QuestionScore score = blank_score(sample);
  score.problem = "no response";
  return score;
}

Scores summarize(const std::vector<QuestionScore>& questions, const MetricOptions& options) {
  options.check();
  std::map<std::string, Totals> by_image;
  Scores scores;
  scores.options = options;
  for (const QuestionScore& question : questions) {
    add_question(by_image[cluster_of(question)], question.type, metric_values(question));
    ++scores.num_questions_by_type[question.type];
  }
  const BootstrapResult result = bootstrap(to_vector(by_image), options);
  scores.a_score = metric_of(result, kA);
  scores.v_score = metric_of(result, kV);
  scores.token_f1 = metric_of(result, kF1);
  scores.parse_rate = metric_of(result, kParsed);
  scores.mean_of_a_and_v = both_of(result);
  scores.num_questions = static_cast<std::int64_t>(questions.size());
  scores.num_images = static_cast<std::int64_t>(by_image.size());
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
  std::map<std::string, Totals> by_image;
  for (const QuestionScore& question : candidate) {
    const auto entry = before.find(question.sample_id);
    if (entry == before.end()) {
      throw_invalid(
          "a paired comparison needs the same questions, but the baseline has no '{}' (or the candidate has it "
          "twice)",
          question.sample_id);
    }
    const QuestionScore& other = *entry->second;
    auto values = metric_values(question);
    const auto other_values = metric_values(other);
    for (std::size_t metric = 0; metric < kNumMetrics; ++metric) {
      if (values[metric].has_value() != other_values[metric].has_value() || question.type != other.type) {
        throw_invalid("question '{}' is not the same question in both: type or reference boxes differ",
                      question.sample_id);
      }
      if (values[metric]) *values[metric] -= *other_values[metric];
    }
    add_question(by_image[cluster_of(question)], question.type, values);
    before.erase(entry);
  }
  const BootstrapResult result = bootstrap(to_vector(by_image), options);
  return {metric_of(result, kA), metric_of(result, kV), metric_of(result, kF1), metric_of(result, kParsed),
          both_of(result)};
}

Json rules_to_json(const MetricOptions& options) {
  Json rules;
  rules["boxes"] = options.rule;
  rules["reading"] = options.reading;
  rules["require_think"] = options.require_think;
  rules["multi_choice"] = "exact set of letters";
  rules["unparsed"] = "wrong: 0 on every score that applies";
  rules["a_score"] = "closed, single choice, multi choice";
  rules["v_score"] = "questions whose reference has boxes";
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
  json["a_score"] = metric_to_json(scores.a_score);
  json["v_score"] = metric_to_json(scores.v_score);
  json["mean_of_a_and_v"] = both_to_json(scores.mean_of_a_and_v);
  json["token_f1"] = metric_to_json(scores.token_f1);
  json["parse_rate"] = metric_to_json(scores.parse_rate);
  json["rules"] = rules_to_json(scores.options);
  return json;
}

Json difference_to_json(const ScoreDifference& difference) {
  Json json;
  json["a_score"] = metric_to_json(difference.a_score);
  json["v_score"] = metric_to_json(difference.v_score);
  json["mean_of_a_and_v"] = both_to_json(difference.mean_of_a_and_v);
  json["token_f1"] = metric_to_json(difference.token_f1);
  json["parse_rate"] = metric_to_json(difference.parse_rate);
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
  std::vector<Row> rows;
  for (const auto& [type, count] : scores.num_questions_by_type) {
    rows.push_back({data::question_type_name(type), cell_text(find_type(scores.a_score, type)),
                    cell_text(find_type(scores.v_score, type)), rate(find_type(scores.parse_rate, type)),
                    std::to_string(count)});
  }
  const Row head = {"question type", "A-score [95 %]", "V-score [95 %]", "parsed", "n"};
  const Row all = {"all", cell_text(scores.a_score.overall), cell_text(scores.v_score.overall),
                   rate(scores.parse_rate.overall), std::to_string(scores.num_questions)};
  const auto line = [](const Row& row) {
    return fmt::format("{:<14} {:>22} {:>22} {:>7} {:>7}\n", row.type, row.a_score, row.v_score, row.parse_rate,
                       row.count);
  };
  const std::string rule(76, '-');
  std::string out = line(head) + rule + "\n";
  for (const Row& row : rows) out += line(row);
  out += rule + "\n" + line(all);
  if (scores.mean_of_a_and_v) out += fmt::format("\nmean of A and V: {}\n", cell_text(scores.mean_of_a_and_v));
  if (scores.token_f1.overall) out += fmt::format("open answers, token F1: {}\n", cell_text(scores.token_f1.overall));
  out += fmt::format(
      "\n{} images. Boxes: {}; answers: {} reading; unparsed counts as wrong;\n"
      "intervals: bootstrap by image, {} resamples, seed {}.\n",
      scores.num_images, scores.options.rule, scores.options.reading, scores.options.resamples, scores.options.seed);
  return out;
}

}  // namespace thinkvg::eval
