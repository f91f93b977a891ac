#include "eval/report_data.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <set>
#include <tuple>

#include "eval/json_lines.h"
#include "thinkvg/core/error.h"
#include "thinkvg/core/files.h"
#include "thinkvg/core/random.h"
#include "thinkvg/data/image_size.h"
#include "thinkvg/data/images.h"
#include "thinkvg/eval/baselines.h"
#include "thinkvg/eval/metrics.h"
#include "thinkvg/eval/report.h"
#include "thinkvg/eval/statistics.h"
#include "thinkvg/image/picture.h"

namespace thinkvg::eval {
namespace {

namespace fs = std::filesystem;
using grounding::Box;
using grounding::BoxFrame;
using grounding::Region;

// A JSON object that knows where it came from, so that each error names the place and the key.
class Source {
 public:
  Source(const Json& json, std::string place) : json_(json), place_(std::move(place)) {
    if (!json_.is_object()) throw_failure("{}: expected an object, but it is {}", place_, json_.type_name());
  }

  const std::string& place() const { return place_; }
  // Absent and null are the same.
  bool has(const char* key) const { return json_.contains(key) && !json_.at(key).is_null(); }
  const Json& raw(const char* key) const {
    if (!has(key)) throw_failure("{}: the key '{}' is missing", place_, key);
    return json_.at(key);
  }
  Source object(const char* key) const { return {raw(key), place_ + ", '" + key + "'"}; }
  std::string text(const char* key) const {
    if (!raw(key).is_string()) fail(key, "text");
    return raw(key).get<std::string>();
  }
  std::string text_or(const char* key, const std::string& otherwise) const { return has(key) ? text(key) : otherwise; }
  double number(const char* key) const {
    if (!raw(key).is_number()) fail(key, "a number");
    return raw(key).get<double>();
  }
  std::optional<double> number_if(const char* key) const {
    return has(key) ? std::optional<double>(number(key)) : std::nullopt;
  }
  std::int64_t integer(const char* key) const {
    const double value = number(key);
    if (value != std::floor(value) || std::abs(value) > 1e15) fail(key, "a whole number");
    return static_cast<std::int64_t>(value);
  }
  bool flag(const char* key) const {
    if (!raw(key).is_boolean()) fail(key, "true or false");
    return raw(key).get<bool>();
  }
  const Json& json() const { return json_; }
  const Json& list(const char* key) const {
    if (!raw(key).is_array()) fail(key, "a list");
    return raw(key);
  }

 private:
  [[noreturn]] void fail(const char* key, const char* expected) const {
    throw_failure("{}: expected {} at '{}', but it is {}", place_, expected, key, json_.at(key).dump());
  }

  Json json_;
  std::string place_;
};

// ---- metrics.json: the layout of scores_to_json

// [low, high]; null where there is none.
void check_interval(const Json& interval, const std::string& place) {
  if (!interval.is_array() || interval.size() != 2 || !interval[0].is_number() || !interval[1].is_number())
    throw_failure("{}: expected an interval [low, high], but it is {}", place, interval.dump());
}

// The entry `name` of {"overall": 0.5, "interval": {"overall": [0.4, 0.6]}, "n": {"overall": 8}}, or of its by_type
// parts; nothing where the score does not apply.
struct ScoreParts {
  const Json& means;
  const Json& intervals;
  const Json& counts;
};
std::optional<ReportValue> read_value(const ScoreParts& parts, const std::string& name, const std::string& place) {
  const auto entry = [&](const Json& json) { return json.is_object() && json.contains(name) ? json.at(name) : Json(); };
  const Json mean = entry(parts.means), interval = entry(parts.intervals), count = entry(parts.counts);
  if (mean.is_null()) return std::nullopt;
  if (!mean.is_number()) throw_failure("{}: expected a number at '{}', but it is {}", place, name, mean.dump());
  ReportValue value;
  value.mean = mean.get<double>();
  if (!interval.is_null()) {
    check_interval(interval, place + ", '" + name + "'");
    value.low = interval[0].get<double>();
    value.high = interval[1].get<double>();
  }
  if (count.is_number_integer()) value.n = count.get<std::int64_t>();
  return value;
}

ReportScore read_score(const Source& source) {
  static const Json kNone;
  const auto part = [&](const Json& json, const char* key) -> const Json& {
    return json.is_object() && json.contains(key) ? json.at(key) : kNone;
  };
  const Json& json = source.json();
  const Json& intervals = part(json, "interval");
  const Json& counts = part(json, "n");
  ReportScore score;
  score.overall = read_value({json, intervals, counts}, "overall", source.place());
  const auto groups = [&](const char* key) {
    std::vector<std::pair<std::string, ReportValue>> values;
    const Json& means = part(json, key);
    if (!means.is_object()) return values;
    for (const auto& [name, mean] : means.items()) {
      const auto value = read_value({means, part(intervals, key), part(counts, key)}, name, source.place());
      if (value) values.emplace_back(name, *value);
    }
    return values;
  };
  score.by_type = groups("by_type");
  score.by_content = groups("by_content");
  score.by_region = groups("by_region");
  const Json& p_values = part(json, "p_value");
  if (score.overall && part(p_values, "overall").is_number()) {
    score.overall->p_value = part(p_values, "overall").get<double>();
    if (part(json, "detectable").is_number()) score.overall->detectable = part(json, "detectable").get<double>();
  }
  return score;
}

ReportScore read_score(const Source& metrics, const char* name) {
  return metrics.has(name) ? read_score(metrics.object(name)) : ReportScore();
}

std::string plain_text(const Json& value) { return value.is_string() ? value.get<std::string>() : value.dump(); }

std::vector<ReportBaseline> read_baselines(const Source& baselines) {
  std::vector<ReportBaseline> out;
  for (const auto& [name, entry] : baselines.json().items()) {
    const Source baseline = baselines.object(name.c_str());
    out.push_back({baseline.text_or("title", name), read_score(baseline, "a_score"), read_score(baseline, "v_score"),
                   read_score(baseline, "token_f1")});
  }
  return out;
}

ReportStage read_metrics(const fs::path& file) {
  const Source metrics(read_json_file(file), file.string());
  ReportStage stage;
  stage.label = metrics.text_or("name", "");
  if (metrics.has("blind") && metrics.flag("blind")) stage.note = "blind: every picture blanked";
  if (metrics.has("shuffled_pictures") && metrics.flag("shuffled_pictures"))
    stage.note = "blind: each picture replaced by another question's";
  const Source counts = metrics.object("num_questions");
  stage.num_questions = counts.integer("overall");
  if (counts.has("by_type")) {
    const Source by_type = counts.object("by_type");
    for (const auto& [type, count] : counts.raw("by_type").items())
      stage.num_questions_by_type.emplace_back(type, by_type.integer(type.c_str()));
  }
  stage.a_score = read_score(metrics, "a_score");
  stage.v_score = read_score(metrics, "v_score");
  stage.parse_rate = read_score(metrics, "parse_rate");
  if (!stage.a_score.overall && !stage.v_score.overall && !stage.parse_rate.overall)
    throw_failure(
        "{}: none of 'a_score', 'v_score' and 'parse_rate' has an overall value; is it a metrics file of eval or "
        "score?",
        file.string());
  stage.ar_score = read_score(metrics, "ar_score");
  stage.mean_score = read_score(metrics, "mean_of_a_and_v");
  stage.token_f1 = read_score(metrics, "token_f1");
  for (const MetricInfo& info : metric_list())
    if (metrics.has(info.name.c_str())) stage.metrics.emplace_back(info.name, read_score(metrics, info.name.c_str()));
  if (metrics.has("baselines")) stage.baselines = read_baselines(metrics.object("baselines"));
  if (metrics.has("provenance") && metrics.raw("provenance").is_object())
    for (const auto& [name, value] : metrics.raw("provenance").items())
      stage.provenance.emplace_back(name, !value.is_null() ? plain_text(value) : name == "judge" ? "none" : "not said");
  if (metrics.has("detection")) stage.detection = metrics.object("detection").json();
  if (metrics.has("num_images")) stage.num_images = metrics.integer("num_images");
  if (metrics.has("rules") && metrics.raw("rules").is_object())
    for (const auto& [name, value] : metrics.raw("rules").items()) stage.rules.emplace_back(name, plain_text(value));
  return stage;
}

// ---- predictions.jsonl

// Numbers that are no valid box are kept out; they are seen in the raw text.
std::vector<Region> read_regions(const Source& source, const char* key, const BoxFrame& frame) {
  std::vector<Region> regions;
  if (!source.has(key)) return regions;
  for (const Json& item : source.list(key)) {
    const Source entry(item, source.place() + ", '" + key + "'");
    const Json& numbers = entry.list("box");
    if (numbers.size() != 4 ||
        !std::all_of(numbers.begin(), numbers.end(), [](const Json& n) { return n.is_number(); }))
      throw_failure("{}: expected a box of four numbers, but it is {}", entry.place(), numbers.dump());
    const Box box{numbers[0].get<double>(), numbers[1].get<double>(), numbers[2].get<double>(),
                  numbers[3].get<double>(), frame};
    if (box.is_valid()) regions.push_back({entry.text_or("ref", ""), box});
  }
  return regions;
}

BoxFrame read_frame(const Source& source) {
  const std::string name = source.text("frame");
  try {
    return BoxFrame::parse(name);
  } catch (const std::invalid_argument& error) {
    throw_failure("{}: {}", source.place(), error.what());
  }
}

// A picture that nothing is known of: as large as its frame, or as its boxes need.
grounding::ImageSize canvas_of(const ReportPrediction& prediction) {
  const BoxFrame& frame = prediction.frame;
  if (frame.kind() == BoxFrame::Kind::relative) return {1000, 1000};
  if (frame.width() > 0) return {frame.width(), frame.height()};
  double width = 1, height = 1;
  for (const auto* regions : {&prediction.reference_regions, &prediction.regions})
    for (const Region& region : *regions) {
      width = std::max(width, region.box.x2);
      height = std::max(height, region.box.y2);
    }
  return {std::min<std::int64_t>(100000, std::llround(width)), std::min<std::int64_t>(100000, std::llround(height))};
}

ReportPrediction prediction_of(const Source& line) {
  ReportPrediction out;
  out.id = line.text("id");
  out.image = line.text_or("image", "");
  out.image_file = line.text_or("image_file", "");
  out.has_picture = line.has("width") || line.has("height");
  if (out.has_picture) {
    out.size = {line.integer("width"), line.integer("height")};
    if (out.size.width < 1 || out.size.height < 1)
      throw_failure("{}: a picture of {} x {} pixels; 'width' and 'height' must be positive", line.place(),
                    out.size.width, out.size.height);
  }
  out.type = line.text("type");
  out.question = line.text("question");
  if (line.has("choices"))
    for (const Json& choice : line.list("choices")) out.choices.push_back(plain_text(choice));
  out.frame = read_frame(line);
  const Source reference = line.object("reference");
  out.reference_answer = reference.text_or("answer", "");
  out.reference_think = reference.text_or("think", "");
  out.reference_regions = read_regions(reference, "regions", out.frame);
  out.response = line.text("response");
  const Source parsed = line.object("parsed");
  out.complete = parsed.flag("complete");
  out.problem = parsed.text_or("problem", "");
  out.answer = parsed.text_or("answer", "");
  out.think = parsed.text_or("think", "");
  out.regions = read_regions(parsed, "regions", out.frame);
  out.a_score = line.number_if("a_score");
  out.v_score = line.number_if("v_score");
  out.content_type = line.text_or("content_type", "");
  out.token_f1 = line.number_if("token_f1");
  if (line.has("judge")) {
    const Source judge = line.object("judge");
    out.judge = JudgeScore{judge.number("model"), judge.number("reference")};
  }
  out.confidence = line.number_if("confidence");
  if (!out.has_picture) out.size = canvas_of(out);
  return out;
}

template <class Use>
void for_each_source(const fs::path& file, const Use& use) {
  for_each_json_line(file, [&](const Json& line, const std::string& place) { use(Source(line, place)); });
}

// ---- run folders

bool is_evaluation(const fs::path& folder) {
  return fs::exists(folder / "metrics.json") || fs::exists(folder / "predictions.jsonl");
}
bool is_training(const fs::path& folder) { return fs::exists(folder / "metrics.jsonl"); }

struct RunFolder {
  fs::path path;
  std::string label;  // empty: to be found
  std::string note;
  bool show_cases = true;
};

Json read_manifest(const fs::path& folder) {
  const fs::path file = folder / "manifest.json";
  return fs::exists(file) ? read_json_file(file) : Json();
}

std::string read_config(const fs::path& folder) {
  const fs::path file = folder / "config.yaml";
  return fs::exists(file) ? read_file(file) : "";
}

std::string folder_name(const fs::path& folder) {
  const fs::path name = folder.has_filename() ? folder.filename() : folder.parent_path().filename();
  return name == "." || name == ".." || name.empty() ? fs::weakly_canonical(folder).filename().string() : name.string();
}

ReportStage read_stage(const RunFolder& run) {
  const fs::path metrics = run.path / "metrics.json";
  if (!fs::exists(metrics))
    throw_failure("{} is missing beside predictions.jsonl; did the evaluation finish?", metrics.string());
  ReportStage stage = read_metrics(metrics);
  if (!run.label.empty()) stage.label = run.label;
  if (stage.label.empty()) stage.label = folder_name(run.path);
  if (!run.note.empty()) stage.note = run.note;
  stage.folder = run.path;
  stage.show_cases = run.show_cases;
  stage.manifest = read_manifest(run.path);
  stage.config = read_config(run.path);
  const fs::path predictions = run.path / "predictions.jsonl";
  if (fs::exists(predictions))
    for_each_source(predictions, [&](const Source& line) { stage.predictions.push_back(prediction_of(line)); });
  return stage;
}

ReportTraining read_training(const RunFolder& run, const ReportOptions& options) {
  ReportTraining training;
  training.label = run.label.empty() ? folder_name(run.path) : run.label;
  training.note = run.note;
  training.folder = run.path;
  training.manifest = read_manifest(run.path);
  training.config = read_config(run.path);
  // A resumed run may write a step again: the last one counts.
  std::map<std::string, std::map<std::int64_t, double>> curves;
  for_each_source(run.path / "metrics.jsonl", [&](const Source& line) {
    const std::int64_t step = line.integer("step");
    for (const auto& [name, value] : line.json().items())
      if (name != "step" && value.is_number() && std::isfinite(value.get<double>()))
        curves[name][step] = value.get<double>();
  });
  for (const auto& [name, points] : curves) training.curves[name].assign(points.begin(), points.end());
  if (!training.curves.contains("reward")) return training;
  training.warnings = rewards::watch_run(run.path).warnings();
  WatchedQuestions watched = read_watched(run.path, options);
  training.watched_labels = std::move(watched.labels);
  training.watched = std::move(watched.cases);
  return training;
}

struct StagesFile {
  std::string title, description;
  std::vector<RunFolder> runs;
  std::vector<ReportComparison> comparisons;
};

// {"difference", "low", "high"}, or the layout of difference_to_json: {"overall", "interval"}.
std::optional<ReportValue> read_difference(const Source& source, const char* key) {
  if (!source.has(key)) return std::nullopt;
  const Source entry = source.object(key);
  if (!entry.has("difference")) return read_score(entry).overall;
  ReportValue value;
  value.mean = entry.number("difference");
  value.low = entry.number_if("low");
  value.high = entry.number_if("high");
  return value;
}

StagesFile read_stages_file(const fs::path& file) {
  const Source source(read_json_file(file), file.string());
  StagesFile out;
  out.title = source.text_or("title", "");
  out.description = source.text_or("description", "");
  for (const Json& item : source.list("stages")) {
    const Source entry(item, source.place() + ", 'stages'");
    RunFolder run{file.parent_path() / entry.text("folder"), entry.text_or("label", ""), entry.text_or("note", "")};
    if (entry.has("cases")) run.show_cases = entry.flag("cases");
    if (!is_evaluation(run.path) && !is_training(run.path))
      throw_failure("{} names the folder {}, which has neither metrics.json nor metrics.jsonl", file.string(),
                    run.path.string());
    out.runs.push_back(std::move(run));
  }
  if (!source.has("comparisons")) return out;
  for (const Json& item : source.list("comparisons")) {
    const Source entry(item, source.place() + ", 'comparisons'");
    ReportComparison comparison;
    comparison.label = entry.text("label");
    comparison.note = entry.text_or("note", "");
    for (const ComparedScore& score : compared_scores()) comparison.*score.value = read_difference(entry, score.name);
    if (entry.has("mean")) comparison.mean = read_difference(entry, "mean");
    if (entry.has("mcnemar")) comparison.mcnemar_p = entry.object("mcnemar").number_if("p_value");
    out.comparisons.push_back(std::move(comparison));
  }
  return out;
}

StagesFile expand_run(const std::string& argument) {
  fs::path path = argument;
  std::string label;
  if (const std::size_t equals = argument.find('='); equals != std::string::npos && !fs::exists(path)) {
    label = argument.substr(0, equals);
    path = argument.substr(equals + 1);
  }
  if (!fs::exists(path)) throw_failure("the run folder {} does not exist", path.string());
  if (!fs::is_directory(path)) throw_failure("{} is a file; a run is a folder", path.string());
  if (fs::exists(path / "stages.json")) {
    StagesFile stages = read_stages_file(path / "stages.json");
    if (!label.empty()) stages.title = label;
    return stages;
  }
  StagesFile out;
  if (is_evaluation(path) || is_training(path)) {
    out.runs.push_back({path, label, ""});
    return out;
  }
  for (const auto& entry : fs::directory_iterator(path))
    if (entry.is_directory() && (is_evaluation(entry.path()) || is_training(entry.path())))
      out.runs.push_back({entry.path(), "", ""});
  std::sort(out.runs.begin(), out.runs.end(), [](const auto& a, const auto& b) { return a.path < b.path; });
  if (out.runs.empty())
    throw_failure(
        "{} holds no run: expected metrics.json (of eval), metrics.jsonl (of sft or grpo), stages.json, or subfolders "
        "with one of the first two",
        path.string());
  out.title = label;
  return out;
}

// ---- paired differences

std::vector<QuestionScore> question_scores(const ReportStage& stage) {
  std::vector<QuestionScore> scores;
  for (const ReportPrediction& prediction : stage.predictions) {
    QuestionScore score;
    score.sample_id = prediction.id;
    score.image = prediction.image;
    score.type = data::parse_question_type(prediction.type);
    score.parsed = prediction.complete;
    score.a_score = prediction.a_score;
    score.v_score = prediction.v_score;
    score.token_f1 = prediction.token_f1;
    score.judge = prediction.judge;
    scores.push_back(std::move(score));
  }
  return scores;
}

std::optional<ReportValue> to_value(const std::optional<Estimate>& estimate) {
  if (!estimate) return std::nullopt;
  ReportValue value{estimate->mean, std::nullopt, std::nullopt, estimate->num_questions, {}, {}, {}};
  if (!estimate->has_interval()) return value;
  value.low = estimate->low;
  value.high = estimate->high;
  value.p_value = estimate->p_value;
  value.detectable = minimum_detectable_difference(estimate->standard_error);
  return value;
}

// Holm's adjustment over the scores of all comparisons.
void adjust_p_values(std::vector<ReportComparison>& comparisons) {
  std::vector<ReportValue*> tested;
  std::vector<double> p_values;
  for (ReportComparison& comparison : comparisons)
    for (const ComparedScore& score : compared_scores()) {
      auto& value = comparison.*score.value;
      if (!score.is_tested || !value || !value->p_value) continue;
      tested.push_back(&*value);
      p_values.push_back(*value->p_value);
    }
  const std::vector<double> adjusted = holm_adjust(p_values);
  for (std::size_t i = 0; i < tested.size(); ++i) tested[i]->p_holm = adjusted[i];
}

bool has_same_judge(const ReportStage& a, const ReportStage& b) {
  const auto judge_of = [](const ReportStage& stage) {
    for (const auto& [name, value] : stage.provenance)
      if (name == "judge") return value;
    return std::string();
  };
  return judge_of(a) == judge_of(b);
}

// Second minus first; nothing where they were not asked the same questions.
std::optional<ReportComparison> compare_pair(const ReportStage& first, const ReportStage& second) {
  std::vector<QuestionScore> before = question_scores(first), after = question_scores(second);
  const auto has_f1 = [](const std::vector<QuestionScore>& questions) {
    return std::any_of(questions.begin(), questions.end(),
                       [](const QuestionScore& q) { return q.token_f1.has_value(); });
  };
  // Files of older versions do not say it.
  const bool with_f1 = has_f1(before) && has_f1(after), with_judge = has_same_judge(first, second);
  for (auto* questions : {&before, &after})
    for (QuestionScore& question : *questions) {
      if (!with_f1) question.token_f1.reset();
      if (!with_judge) question.judge.reset();
    }
  try {
    const ScoreDifference found = compare(before, after, MetricOptions());
    ReportComparison out;
    out.label = second.label + " minus " + first.label;
    out.a_score = to_value(found.metric("a_score").overall);
    out.v_score = to_value(found.metric("v_score").overall);
    out.token_f1 = to_value(found.metric("token_f1").overall);
    out.ar_score = to_value(found.metric("ar_score").overall);
    out.mean = to_value(found.mean_of_a_and_v);
    out.mcnemar_p = mcnemar(found.only_baseline_right, found.only_candidate_right).p_value;
    return out;
  } catch (const std::invalid_argument&) {
    return std::nullopt;  // no pairs to compare
  }
}

// The last stage against each one before it that was asked the same questions.
std::vector<ReportComparison> compare_stages(const std::vector<ReportStage>& stages) {
  std::vector<ReportComparison> out;
  if (stages.empty() || stages.back().predictions.empty()) return out;
  const ReportStage& last = stages.back();
  for (std::size_t i = stages.size() - 1; i-- > 0;) {
    if (stages[i].predictions.empty()) continue;
    if (auto comparison = compare_pair(stages[i], last)) out.push_back(std::move(*comparison));
  }
  return out;
}

// ---- baselines

// For runs whose metrics.json has none: out of the references beside the answers.
std::vector<ReportBaseline> baselines_of(const ReportStage& stage) {
  std::vector<data::Sample> samples;
  for (const ReportPrediction& prediction : stage.predictions) {
    data::Sample sample;
    sample.id = prediction.id;
    sample.image = prediction.image;
    sample.type = data::parse_question_type(prediction.type);
    sample.question = prediction.question;
    sample.choices = prediction.choices;
    sample.answer = prediction.reference_answer;
    sample.regions = prediction.reference_regions;
    sample.frame = prediction.frame;
    samples.push_back(std::move(sample));
  }
  return read_baselines({baselines_to_json(samples, MetricOptions()), stage.folder.string() + ", baselines"});
}

// ---- cases

// Stages answer the same question when id, picture and text agree; an id alone may be a row number of another file.
using QuestionKey = std::tuple<std::string, std::string, std::string>;
QuestionKey key_of(const ReportPrediction& prediction) {
  return {prediction.id, prediction.image, prediction.question};
}

using QuestionIndex = std::map<QuestionKey, const ReportPrediction*>;

QuestionIndex index_questions(const ReportStage& stage) {
  QuestionIndex index;
  for (const ReportPrediction& prediction : stage.predictions) index.emplace(key_of(prediction), &prediction);
  return index;
}

int type_rank(const std::string& type) {
  static const std::vector<std::string> kOrder = {"open", "closed", "single_choice", "multi_choice"};
  return static_cast<int>(std::find(kOrder.begin(), kOrder.end(), type) - kOrder.begin());
}

// Takes turns over (type, right or wrong, unlike the run before or like it), each in an order fixed by the seed;
// pictures not yet shown go first. `before`: null where there is one run.
std::vector<const ReportPrediction*> choose_cases(const std::vector<const ReportPrediction*>& candidates,
                                                  const QuestionIndex* before, const ReportOptions& options) {
  struct Entry {
    std::uint64_t order;
    const ReportPrediction* prediction;
  };
  using Group = std::tuple<int, std::string, bool, bool>;
  const auto is_unlike = [&](const ReportPrediction& candidate) {
    if (!before) return false;
    const auto found = before->find(key_of(candidate));
    return found != before->end() && found->second->is_right() != candidate.is_right();
  };
  std::map<Group, std::vector<Entry>> groups;
  for (const ReportPrediction* candidate : candidates) {
    RandomStream stream(
        {static_cast<std::uint64_t>(options.seed), hash_key(candidate->id), hash_key(candidate->question)});
    groups[{type_rank(candidate->type), candidate->type, !candidate->is_right(), !is_unlike(*candidate)}].push_back(
        {stream.next_u64(), candidate});
  }
  for (auto& [key, entries] : groups)
    std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
      return std::tie(a.order, a.prediction->id) < std::tie(b.order, b.prediction->id);
    });
  std::set<std::string> shown;
  std::map<Group, std::vector<const ReportPrediction*>> chosen;
  std::int64_t taken = 0;
  for (bool any = true; any && taken < options.num_cases;) {
    any = false;
    for (auto& [key, entries] : groups) {
      if (entries.empty() || taken == options.num_cases) continue;
      auto next = std::find_if(entries.begin(), entries.end(),
                               [&](const Entry& entry) { return !shown.count(entry.prediction->image); });
      if (next == entries.end()) next = entries.begin();
      shown.insert(next->prediction->image);
      chosen[key].push_back(next->prediction);
      entries.erase(next);
      ++taken;
      any = true;
    }
  }
  std::vector<const ReportPrediction*> out;
  for (const auto& [key, predictions] : chosen) out.insert(out.end(), predictions.begin(), predictions.end());
  return out;
}

fs::path find_image(const ReportPrediction& prediction, const fs::path& folder, const std::string& root) {
  std::vector<fs::path> places;
  if (!root.empty()) places = {fs::path(root) / prediction.image, fs::path(root) / prediction.image_file.filename()};
  if (!prediction.image_file.empty()) {
    places.push_back(prediction.image_file);
    if (prediction.image_file.is_relative()) places.push_back(folder / prediction.image_file);
  }
  std::string tried;
  for (const fs::path& place : places) {
    if (fs::is_regular_file(place)) return place;
    tried += (tried.empty() ? "" : ", ") + place.string();
  }
  throw_failure(
      "{}: the picture '{}' of question '{}' is missing (looked at: {}); name the root of the pictures with "
      "--images",
      (folder / "predictions.jsonl").string(), prediction.image, prediction.id,
      tried.empty() ? "no 'image_file' given" : tried);
}

// The picture of a question whose run knew nothing of it, where a root is named now.
void add_picture(ReportCase& item, const data::ImageFinder& finder) {
  const fs::path file = finder.find(item.reference.image);
  if (file.empty()) return;
  const grounding::ImageSize size = data::read_image_size(file);
  const auto add = [&](ReportPrediction& prediction) {
    if (prediction.has_picture) return;
    prediction.has_picture = true;
    prediction.size = size;
    prediction.image_file = file;
  };
  add(item.reference);
  for (auto& answer : item.answers)
    if (answer) add(*answer);
}

struct DrawnCases {
  std::vector<std::string> labels;
  std::vector<ReportCase> cases;
  std::int64_t num_candidates = 0;
};

DrawnCases draw_cases(const ReportOptions& options, const std::vector<ReportStage>& all_stages) {
  DrawnCases out;
  std::vector<const ReportStage*> stages;
  for (const ReportStage& stage : all_stages)
    if (stage.show_cases && !stage.predictions.empty()) stages.push_back(&stage);
  if (stages.empty() || options.num_cases == 0) return out;
  std::vector<QuestionIndex> indices;
  for (const ReportStage* stage : stages) {
    out.labels.push_back(stage->label);
    indices.push_back(index_questions(*stage));
  }
  // Questions that every stage answered, where there are any; else those of the last stage.
  const ReportStage& last = *stages.back();
  std::vector<const ReportPrediction*> common, all;
  for (const ReportPrediction& prediction : last.predictions) {
    all.push_back(&prediction);
    if (std::all_of(indices.begin(), indices.end(),
                    [&](const QuestionIndex& index) { return index.count(key_of(prediction)); }))
      common.push_back(&prediction);
  }
  const auto& candidates = common.empty() ? all : common;
  out.num_candidates = static_cast<std::int64_t>(candidates.size());
  const QuestionIndex* before = indices.size() > 1 ? &indices[indices.size() - 2] : nullptr;
  std::optional<data::ImageFinder> finder;
  if (!options.images.empty()) finder.emplace(options.images);
  for (const ReportPrediction* chosen : choose_cases(candidates, before, options)) {
    ReportCase item{*chosen, "", {}};
    for (const QuestionIndex& index : indices) {
      const auto found = index.find(key_of(*chosen));
      item.answers.push_back(found == index.end() ? std::nullopt : std::optional<ReportPrediction>(*found->second));
    }
    if (finder) add_picture(item, *finder);
    if (item.reference.has_picture) item.jpeg = thumbnail_jpeg(item.reference, last.folder, options);
    out.cases.push_back(std::move(item));
  }
  return out;
}

// The questions are GEMeX's own, by the name of the data.
bool is_gemex(const std::vector<ReportStage>& stages) {
  return std::any_of(stages.begin(), stages.end(), [](const ReportStage& stage) {
    const Json& manifest = stage.manifest;
    if (!manifest.is_object() || !manifest.contains("inputs") || !manifest["inputs"].contains("data")) return false;
    std::string path = manifest["inputs"]["data"].value("path", "");
    std::transform(path.begin(), path.end(), path.begin(), [](unsigned char c) { return std::tolower(c); });
    return path.find("gemex") != std::string::npos;
  });
}

void check_options(const ReportOptions& options) {
  if (options.runs.empty()) throw_invalid("report needs at least one run folder");
  if (options.num_cases < 0) throw_invalid("num_cases must be 0 or more, not {}", options.num_cases);
  if (options.published != "auto" && options.published != "always" && options.published != "never")
    throw_invalid("published is auto, always or never, not '{}'", options.published);
  if (options.picture_side < 32) throw_invalid("picture_side must be 32 pixels or more, not {}", options.picture_side);
  if (options.jpeg_quality < 1 || options.jpeg_quality > 100)
    throw_invalid("jpeg_quality is 1 to 100, not {}", options.jpeg_quality);
  if (!options.images.empty() && !fs::is_directory(options.images))
    throw_failure("the picture root {} is not a folder", options.images);
}

}  // namespace

ReportPrediction read_prediction(const Json& line, const std::string& place) {
  return prediction_of(Source(line, place));
}

std::string thumbnail_jpeg(const ReportPrediction& prediction, const fs::path& folder, const ReportOptions& options) {
  const fs::path file = find_image(prediction, folder, options.images);
  const image::Picture picture = image::read_picture(file);
  // Boxes are drawn relative to the size in the line; a copy of another scale fits, one of another shape does not.
  const double stored = static_cast<double>(picture.width) / static_cast<double>(picture.height);
  const double expected = static_cast<double>(prediction.size.width) / static_cast<double>(prediction.size.height);
  if (std::abs(stored / expected - 1) > 0.02)
    throw_failure("{} has {} x {} pixels, but question '{}' in {} was asked about {} x {}: another picture?",
                  file.string(), picture.width, picture.height, prediction.id, (folder / "predictions.jsonl").string(),
                  prediction.size.width, prediction.size.height);
  return image::encode_jpeg(image::thumbnail(picture, options.picture_side), static_cast<int>(options.jpeg_quality));
}

const std::vector<ComparedScore>& compared_scores() {
  static const std::vector<ComparedScore> kScores = {
      {"a_score", "A-score", &ReportComparison::a_score, true},
      {"v_score", "V-score", &ReportComparison::v_score, true},
      {"token_f1", "Token F1", &ReportComparison::token_f1, true},
      {"ar_score", "AR-score", &ReportComparison::ar_score, true},
      {"mean_of_a_and_v", "Mean of A and V", &ReportComparison::mean, false},
  };
  return kScores;
}

const ReportValue* ReportScore::find(const std::string& type) const {
  const auto found = std::find_if(by_type.begin(), by_type.end(), [&](const auto& item) { return item.first == type; });
  return found == by_type.end() ? nullptr : &found->second;
}

bool ReportPrediction::is_right() const { return a_score ? *a_score >= 1 : v_score && *v_score >= 0.5; }

ReportData read_report(const ReportOptions& options) {
  check_options(options);
  ReportData data;
  for (const std::string& argument : options.runs) {
    const StagesFile expanded = expand_run(argument);
    if (data.title.empty()) data.title = expanded.title;
    if (data.description.empty()) data.description = expanded.description;
    data.comparisons.insert(data.comparisons.end(), expanded.comparisons.begin(), expanded.comparisons.end());
    for (const RunFolder& run : expanded.runs) {
      if (is_evaluation(run.path)) data.stages.push_back(read_stage(run));
      if (is_training(run.path)) data.trainings.push_back(read_training(run, options));
    }
  }
  if (!options.title.empty()) data.title = options.title;
  if (data.title.empty()) data.title = "Training and evaluation report";
  if (data.comparisons.empty()) data.comparisons = compare_stages(data.stages);
  const bool has_baselines = std::any_of(data.stages.begin(), data.stages.end(),
                                         [](const ReportStage& stage) { return !stage.baselines.empty(); });
  if (!has_baselines && !data.stages.empty() && !data.stages.back().predictions.empty())
    data.stages.back().baselines = baselines_of(data.stages.back());
  adjust_p_values(data.comparisons);
  data.show_published = options.published == "always" || (options.published == "auto" && is_gemex(data.stages));
  DrawnCases drawn = draw_cases(options, data.stages);
  data.case_labels = std::move(drawn.labels);
  data.cases = std::move(drawn.cases);
  data.num_case_candidates = drawn.num_candidates;
  return data;
}

void write_report(const ReportOptions& options) {
  if (options.out.empty()) throw_invalid("report needs the file to write");
  const ReportData data = read_report(options);
  if (!options.tables.empty()) {
    const fs::path folder = options.tables;
    fs::create_directories(folder);
    write_file_atomically(folder / "scores.csv", scores_csv(data));
    write_file_atomically(folder / "differences.csv", differences_csv(data));
    write_file_atomically(folder / "runs.csv", runs_csv(data));
    write_file_atomically(folder / "tables.tex", scores_latex(data));
  }
  write_file_atomically(options.out, render_report(data));
}

}  // namespace thinkvg::eval
