#include <algorithm>
#include <map>
#include <set>

#include "eval/report_data.h"
#include "thinkvg/core/error.h"
#include "thinkvg/core/files.h"
#include "thinkvg/core/progress.h"
#include "thinkvg/data/images.h"
#include "thinkvg/eval/metrics.h"
#include "thinkvg/eval/results.h"
#include "thinkvg/rewards/rollout_log.h"

namespace thinkvg::eval {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kMaxSteps = 4;

// Where the run's pictures are; nothing where they are gone.
std::optional<data::ImageFinder> find_pictures(const fs::path& run, const ReportOptions& options) {
  std::string roots = options.images;
  if (roots.empty() && fs::exists(run / "config.yaml")) {
    const Json config = read_yaml_file(run / "config.yaml");
    if (config.is_object() && config.contains("images") && config["images"].is_string())
      roots = config["images"].get<std::string>();
  }
  if (roots.empty()) return std::nullopt;
  try {
    return data::ImageFinder(roots);
  } catch (const std::runtime_error&) {
    return std::nullopt;  // the run was moved; the page is of use without pictures
  }
}

ReportPrediction to_prediction(const rewards::LoggedRollout& rollout, const fs::path& picture,
                               const std::string& place) {
  const grounding::ImageGeometry geometry(rollout.image_size.value_or(grounding::ImageSize{1, 1}));
  const QuestionScore score =
      score_question({rollout.sample, rollout.response, rollout.frame, geometry}, MetricOptions());
  ReportPrediction prediction = read_prediction(
      prediction_line({rollout.sample, score, rollout.response, rollout.frame, geometry, picture, rollout.image_size}),
      place);
  prediction.has_picture = !picture.empty();
  prediction.reward = rollout.reward;
  for (const auto& [name, logged] : rollout.rewards.items()) {
    ReportReward reward{name, std::nullopt, ""};
    if (logged.is_object()) {
      if (logged.contains("value") && logged["value"].is_number()) reward.value = logged["value"].get<double>();
      if (logged.contains("reason") && logged["reason"].is_string())
        reward.reason = logged["reason"].get<std::string>();
    }
    prediction.rewards.push_back(std::move(reward));
  }
  return prediction;
}

// The first, the last, and what lies evenly between.
std::vector<std::int64_t> shown_steps(const std::set<std::int64_t>& all) {
  std::vector<std::int64_t> steps(all.begin(), all.end());
  if (steps.size() <= kMaxSteps) return steps;
  std::vector<std::int64_t> shown;
  for (std::size_t i = 0; i < kMaxSteps; ++i) shown.push_back(steps[i * (steps.size() - 1) / (kMaxSteps - 1)]);
  return shown;
}

}  // namespace

WatchedQuestions read_watched(const fs::path& run, const ReportOptions& options) {
  const fs::path file = run / "samples" / "watched.jsonl";
  if (!fs::exists(file) || fs::file_size(file) == 0) return {};
  const std::optional<data::ImageFinder> finder = find_pictures(run, options);
  std::vector<std::string> order;  // of the questions
  std::map<std::string, std::map<std::int64_t, ReportPrediction>> answers;
  std::set<std::int64_t> steps;
  for (const rewards::LoggedRollout& rollout : rewards::read_rollouts(file)) {
    if (!rollout.has_reference) continue;
    const fs::path picture = finder ? finder->find(rollout.sample.image) : fs::path();
    auto& of_question = answers[rollout.sample.id];
    if (of_question.empty()) order.push_back(rollout.sample.id);
    // A run that was resumed before its first checkpoint writes the first step again.
    of_question.insert_or_assign(rollout.step, to_prediction(rollout, picture, file.string()));
    steps.insert(rollout.step);
  }
  WatchedQuestions watched;
  const std::vector<std::int64_t> shown = shown_steps(steps);
  for (const std::int64_t step : shown) watched.labels.push_back("step " + format_count(step));
  for (const std::string& id : order) {
    const auto& of_question = answers.at(id);
    const ReportPrediction& last = of_question.rbegin()->second;
    ReportCase item{last, last.has_picture ? thumbnail_jpeg(last, run, options) : "", {}};
    for (const std::int64_t step : shown) {
      const auto found = of_question.find(step);
      item.answers.push_back(found == of_question.end() ? std::nullopt
                                                        : std::optional<ReportPrediction>(found->second));
    }
    watched.cases.push_back(std::move(item));
  }
  return watched;
}

}  // namespace thinkvg::eval
