#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <optional>
#include <unordered_map>

#include "thinkvg/core/error.h"
#include "thinkvg/core/files.h"
#include "thinkvg/data/dataset.h"
#include "thinkvg/data/image_size.h"
#include "thinkvg/data/images.h"
#include "thinkvg/rewards/reward.h"
#include "thinkvg/rewards/rollout_log.h"
#include "tools/commands.h"

namespace thinkvg::tools {
namespace {

using rewards::CompletionReward;
using rewards::LoggedRollout;

struct RolloutScoreOptions {
  std::string rollouts;
  std::string data;
  std::string images;
  bool json = false;
  std::string out;
  std::vector<std::string> rewards = thinkvg::rewards::default_rewards();
  thinkvg::rewards::RewardOptions reward;

  void visit(SettingsVisitor& v) {
    v.setting("rollouts", rollouts, "Completions that a run logged: RUN/samples/completions.jsonl.");
    v.setting("data", data, "Take questions and references from this data set instead of from the log.");
    v.setting("images", images, "Image root; only needed where the log holds no sizes of the pictures.");
    v.setting("json", json, "Print one JSON document instead of a table.");
    v.setting("out", out, "Folder for rewards.json and rollouts.jsonl (one line per completion).");
    v.setting("rewards", rewards, "Rewards with their weights, as for grpo; default: the run's own.");
    v.section("reward", reward, "How rewards judge; defaults: the run's own.");
  }
};

double mean_of(const std::vector<double>& values) {
  return values.empty() ? 0 : std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

double deviation_of(const std::vector<double>& values) {
  if (values.size() < 2) return 0;
  const double center = mean_of(values);
  double sum = 0;
  for (const double value : values) sum += (value - center) * (value - center);
  return std::sqrt(sum / static_cast<double>(values.size() - 1));
}

// The rewards of the run, where its config.yaml lies beside samples/.
void read_run_settings(const std::filesystem::path& rollouts, RolloutScoreOptions& options) {
  const std::filesystem::path config = std::filesystem::absolute(rollouts).parent_path().parent_path() / "config.yaml";
  if (!std::filesystem::exists(config)) return;
  const Json run = read_yaml_file(config);
  if (!run.is_object()) return;
  Json known = Json::object();
  for (const char* key : {"rewards", "reward"})
    if (run.contains(key)) known[key] = run[key];
  read_settings(options, known, config.string());
  if (options.reward.max_completion_length == 0 && run.contains("sampling") && run["sampling"].is_object())
    options.reward.max_completion_length = run["sampling"].value("max_new_tokens", std::int64_t{0});
}

// Lines of runs that logged no reference take it from the data set.
void add_references(std::vector<LoggedRollout>& rollouts, const std::string& data) {
  const bool all_there = std::all_of(rollouts.begin(), rollouts.end(), [](const auto& r) { return r.has_reference; });
  if (all_there && data.empty()) return;
  if (data.empty()) {
    throw_invalid(
        "these completions were logged without question types and reference frames; name the run's data with "
        "--data FILE");
  }
  const auto dataset = data::open_dataset(data);
  std::unordered_map<std::string, std::int64_t> index;
  for (std::int64_t i = 0; i < dataset->size(); ++i) index.emplace(dataset->get(i).id, i);
  for (LoggedRollout& rollout : rollouts) {
    const auto found = index.find(rollout.sample.id);
    if (found == index.end())
      throw_failure("the question '{}' of the completions is not in {}", rollout.sample.id, data);
    rollout.sample = dataset->get(found->second);
    rollout.has_reference = true;
  }
}

// The picture's geometry: as logged, or from the picture where boxes cannot be compared without it.
class GeometrySource {
 public:
  explicit GeometrySource(const std::string& image_root) {
    if (!image_root.empty()) finder_.emplace(image_root);
  }

  grounding::ImageGeometry geometry_of(const LoggedRollout& rollout) {
    if (rollout.image_size) return grounding::ImageGeometry(*rollout.image_size);
    const data::Sample& sample = rollout.sample;
    const grounding::BoxFrame original;
    const bool needed = rollout.frame == original || sample.frame == original ||
                        grounding::conversion_needs_picture(rollout.frame, sample.frame);
    if (!needed) return grounding::ImageGeometry({1, 1});
    if (!finder_)
      throw_invalid(
          "boxes in '{}' cannot be compared with references in '{}' without the pictures' sizes, which the log "
          "does not hold; name the image root with --images",
          rollout.frame.name(), sample.frame.name());
    const auto [entry, is_new] = sizes_.try_emplace(sample.image);
    if (is_new) entry->second = data::read_image_size(finder_->require(sample));
    return grounding::ImageGeometry(entry->second);
  }

 private:
  std::optional<data::ImageFinder> finder_;
  std::unordered_map<std::string, grounding::ImageSize> sizes_;
};

struct RewardSummary {
  std::vector<double> values;
  std::vector<double> recorded;  // of the completions that have a recorded value
  std::int64_t num_not_applicable = 0;
  std::int64_t num_zero = 0;
  std::map<std::string, std::int64_t> reasons;  // patterns of the reasons for less than the best value seen

  Json to_json(double weight) const {
    std::vector<std::pair<std::string, std::int64_t>> sorted(reasons.begin(), reasons.end());
    std::stable_sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) { return a.second > b.second; });
    Json list = Json::array();
    for (std::size_t i = 0; i < std::min<std::size_t>(5, sorted.size()); ++i)
      list.push_back({{"reason", sorted[i].first}, {"count", sorted[i].second}});
    const auto count = static_cast<double>(values.size());
    return {{"weight", weight},
            {"mean", values.empty() ? Json() : Json(mean_of(values))},
            {"std", values.empty() ? Json() : Json(deviation_of(values))},
            {"recorded_mean", recorded.empty() ? Json() : Json(mean_of(recorded))},
            {"num_applicable", values.size()},
            {"num_not_applicable", num_not_applicable},
            {"frac_zero", values.empty() ? Json() : Json(static_cast<double>(num_zero) / count)},
            {"reasons", list}};
  }
};

std::string number_text(const Json& value) {
  return value.is_null() ? "-" : fmt::format("{:.3f}", value.get<double>());
}

void print_table(const Json& result) {
  fmt::print("{:24} {:>7} {:>8} {:>8} {:>9} {:>6} {:>7}  {}\n", "reward", "weight", "mean", "std", "recorded", "n/a",
             "zero", "commonest reason below full marks");
  for (const auto& [name, reward] : result["rewards"].items()) {
    const std::string reason = reward["reasons"].empty()
                                   ? ""
                                   : fmt::format("{} ({})", reward["reasons"][0]["reason"].get<std::string>(),
                                                 reward["reasons"][0]["count"].get<std::int64_t>());
    fmt::print("{:24} {:>7g} {:>8} {:>8} {:>9} {:>6} {:>7}  {}\n", name, reward["weight"].get<double>(),
               number_text(reward["mean"]), number_text(reward["std"]), number_text(reward["recorded_mean"]),
               reward["num_not_applicable"].get<std::int64_t>(), number_text(reward["frac_zero"]), reason);
  }
  fmt::print("{:24} {:>7} {:>8} {:>8} {:>9}\n", "total", "", number_text(result["reward"]["mean"]),
             number_text(result["reward"]["std"]), number_text(result["reward"]["recorded_mean"]));
  fmt::print("{} completions of {} groups; {} of the groups with two or more have no signal\n",
             result["num_completions"].get<std::int64_t>(), result["num_groups"].get<std::int64_t>(),
             result["frac_reward_zero_std"].is_null()
                 ? "-"
                 : fmt::format("{:.1f} %", 100 * result["frac_reward_zero_std"].get<double>()));
}

}  // namespace

int run_score_rollouts(const Arguments& arguments) {
  constexpr const char* kSummary = "rewards of logged completions, computed again";
  RolloutScoreOptions flags;
  if (!parse_options("score", kSummary, arguments, flags)) return 0;
  // The run's own settings first, then what the user gives.
  RolloutScoreOptions options;
  read_run_settings(flags.rollouts, options);
  parse_options("score", kSummary, arguments, options);
  rewards::RewardSet set(options.rewards, options.reward);
  std::vector<LoggedRollout> rollouts = rewards::read_rollouts(options.rollouts);
  add_references(rollouts, options.data);
  GeometrySource geometries(options.images);
  for (LoggedRollout& rollout : rollouts)
    rollout.prepare(geometries.geometry_of(rollout), options.reward.require_think);
  std::vector<rewards::RewardInput> inputs;
  inputs.reserve(rollouts.size());
  for (const LoggedRollout& rollout : rollouts) inputs.push_back(rollout.input());
  const std::vector<CompletionReward> scores = set.score(inputs);

  std::vector<RewardSummary> summaries(set.size());
  std::vector<double> totals, recorded;
  std::map<std::pair<std::int64_t, std::string>, std::vector<double>> groups;
  std::string lines;
  for (std::size_t i = 0; i < rollouts.size(); ++i) {
    const LoggedRollout& rollout = rollouts[i];
    Json parts = Json::object();
    for (std::size_t k = 0; k < set.size(); ++k) {
      const rewards::RewardScore& score = scores[i].scores[k];
      RewardSummary& summary = summaries[k];
      parts[set.name(k)] = {{"value", score.applicable ? Json(score.value) : Json()}, {"reason", score.reason}};
      if (score.applicable) {
        summary.values.push_back(score.value);
        summary.num_zero += score.value == 0 ? 1 : 0;
      } else {
        ++summary.num_not_applicable;
      }
      if (rollout.rewards.contains(set.name(k))) {
        const Json& was = rollout.rewards[set.name(k)];
        if (was.is_object() && was.contains("value") && was["value"].is_number())
          summary.recorded.push_back(was["value"].get<double>());
      }
    }
    if (scores[i].applicable) {
      totals.push_back(scores[i].total);
      groups[{rollout.step, rollout.sample.id}].push_back(scores[i].total);
    }
    if (rollout.reward) recorded.push_back(*rollout.reward);
    if (!options.out.empty()) {
      const Json line = {{"step", rollout.step},
                         {"id", rollout.sample.id},
                         {"completion", rollout.completion},
                         {"reward", scores[i].applicable ? Json(scores[i].total) : Json()},
                         {"rewards", parts}};
      lines += line.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
    }
  }
  // Why completions fall short of the best value that any of them got (a reward that is 0 for all: why so).
  for (std::size_t k = 0; k < set.size(); ++k) {
    RewardSummary& summary = summaries[k];
    const double best = summary.values.empty() ? 0 : *std::max_element(summary.values.begin(), summary.values.end());
    const bool always_zero = summary.num_zero == static_cast<std::int64_t>(summary.values.size());
    for (const CompletionReward& completion : scores) {
      const rewards::RewardScore& score = completion.scores[k];
      if (!score.applicable || score.value < best || always_zero)
        ++summary.reasons[rewards::reason_pattern(score.reason)];
    }
  }

  std::int64_t num_groups_with_signal = 0, num_comparable = 0;
  for (const auto& [key, values] : groups) {
    if (values.size() < 2) continue;
    ++num_comparable;
    const auto [low, high] = std::minmax_element(values.begin(), values.end());
    num_groups_with_signal += *low < *high ? 1 : 0;
  }
  Json by_name = Json::object();
  for (std::size_t k = 0; k < set.size(); ++k) by_name[set.name(k)] = summaries[k].to_json(set.weight(k));
  const Json result = {
      {"rollouts", options.rollouts},
      {"num_completions", rollouts.size()},
      {"num_groups", groups.size()},
      {"reward",
       {{"mean", totals.empty() ? Json() : Json(mean_of(totals))},
        {"std", totals.empty() ? Json() : Json(deviation_of(totals))},
        {"recorded_mean", recorded.empty() ? Json() : Json(mean_of(recorded))}}},
      {"frac_reward_zero_std", num_comparable == 0 ? Json()
                                                   : Json(1 - static_cast<double>(num_groups_with_signal) /
                                                                  static_cast<double>(num_comparable))},
      {"rewards", by_name},
      {"settings", {{"rewards", options.rewards}, {"reward", settings_to_json(options.reward)}}}};
  if (!options.out.empty()) {
    const std::filesystem::path folder = options.out;
    std::error_code error;
    std::filesystem::create_directories(folder, error);
    if (error) throw_failure("cannot make the folder {}: {}", folder.string(), error.message());
    write_file_atomically(folder / "rollouts.jsonl", lines);
    write_file_atomically(folder / "rewards.json", result.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
  }
  if (options.json) {
    fmt::print("{}\n", result.dump(2, ' ', false, Json::error_handler_t::replace));
  } else {
    print_table(result);
  }
  return 0;
}

}  // namespace thinkvg::tools
