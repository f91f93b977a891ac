#include "thinkvg/rewards/run_warnings.h"

#include <algorithm>
#include <cmath>
#include <fstream>

#include "thinkvg/core/error.h"
#include "thinkvg/rewards/reward.h"

namespace thinkvg::rewards {
namespace {

constexpr std::size_t kWindow = 10;

std::optional<double> number(const Json& line, const std::string& name) {
  const auto found = line.find(name);
  if (found == line.end() || !found->is_number()) return std::nullopt;
  return found->get<double>();
}

template <class Lines>
std::optional<double> mean_of(const Lines& lines, const std::string& metric) {
  double sum = 0;
  for (const Json& line : lines) {
    const std::optional<double> value = number(line, metric);
    if (!value) return std::nullopt;
    sum += *value;
  }
  return sum / static_cast<double>(lines.size());
}

// What "rewards/<name>/mean" names.
std::optional<std::string> reward_of(const std::string& metric) {
  constexpr std::string_view kHead = "rewards/", kTail = "/mean";
  if (!metric.starts_with(kHead) || !metric.ends_with(kTail) || metric.size() <= kHead.size() + kTail.size())
    return std::nullopt;
  return metric.substr(kHead.size(), metric.size() - kHead.size() - kTail.size());
}

std::string percent(double share) { return fmt::format("{:.0f} %", 100 * share); }

// Reads a file of JSON lines one by one, with the step of each.
class StepLines {
 public:
  explicit StepLines(const std::filesystem::path& file) : stream_(file) { advance(); }
  bool done() const { return done_; }
  std::int64_t step() const { return line_.value("step", std::int64_t{0}); }
  const Json& line() const { return line_; }
  void advance() {
    for (std::string text; std::getline(stream_, text);) {
      line_ = Json::parse(text, nullptr, false);
      if (line_.is_object() && line_.contains("step") && line_["step"].is_number_integer()) return;
    }
    done_ = true;
  }

 private:
  std::ifstream stream_;
  Json line_;
  bool done_ = false;
};

}  // namespace

void RunWatch::add_completion(const Json& line) {
  const auto rewards = line.find("rewards");
  if (rewards == line.end() || !rewards->is_object()) return;
  for (const auto& [name, score] : rewards->items()) {
    if (!score.is_object()) continue;
    Reasons& reasons = reasons_[name];
    ++reasons.num_completions;
    const std::optional<double> value = number(score, "value");
    if (!value) ++reasons.num_not_applicable;
    const auto reason = score.find("reason");
    if ((!value || *value == 0) && reason != score.end() && reason->is_string())
      ++reasons.counts[reason_pattern(reason->get<std::string>())];
  }
}

std::vector<RunWarning> RunWatch::add_step(const Json& metrics) {
  if (!metrics.is_object()) return {};
  ++num_steps_;
  if (first_.size() < kWindow) first_.push_back(metrics);
  last_.push_back(metrics);
  if (last_.size() > kWindow) last_.pop_front();
  if (last_.size() < kWindow) return {};
  const std::size_t before = warnings_.size();
  check_signal();
  check_lengths();
  check_policy();
  check_format();
  check_zero_rewards();
  return {warnings_.begin() + static_cast<std::ptrdiff_t>(before), warnings_.end()};
}

std::optional<double> RunWatch::level(const std::string& metric) const { return mean_of(last_, metric); }

std::optional<double> RunWatch::start(const std::string& metric) const {
  if (num_steps_ < static_cast<std::int64_t>(2 * kWindow)) return std::nullopt;
  return mean_of(first_, metric);
}

std::string RunWatch::commonest_reason(const std::string& reward) const {
  const auto found = reasons_.find(reward);
  if (found == reasons_.end() || found->second.counts.empty()) return "";
  const auto& counts = found->second.counts;
  const auto most =
      std::max_element(counts.begin(), counts.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  return fmt::format(" The commonest reason: {} ({} of {} logged completions).", most->first, most->second,
                     found->second.num_completions);
}

void RunWatch::warn(const std::string& name, std::string text) {
  if (!names_.insert(name).second) return;
  warnings_.push_back({name, last_.back().value("step", std::int64_t{0}), std::move(text)});
}

void RunWatch::check_signal() {
  const std::string metric = "frac_reward_zero_std";
  const std::optional<double> now = level(metric), then = start(metric);
  if (!now) return;
  const bool rising = then && *now >= 0.5 && *now >= *then + 0.25;
  if (*now < 0.8 && !rising) return;
  warn("zero_signal",
       fmt::format("{} of the groups teach nothing, because all of their completions got the same reward{}. The "
                   "questions are too easy or too hard by now: dynamic_sampling draws others in their place; a higher "
                   "sampling.temperature or finer rewards (reward.grounding_threshold 0) tell completions apart.",
                   percent(*now), rising ? fmt::format(" ({} at the start)", percent(*then)) : ""));
}

void RunWatch::check_lengths() {
  const std::optional<double> now = level("completions/mean_length"), then = start("completions/mean_length");
  if (now && then && *now < *then / 2 && *then - *now >= 8)
    warn("length_collapse",
         fmt::format("Completions have shrunk from {:.0f} to {:.0f} tokens. Some reward is earned without reasoning: "
                     "look at samples/completions.jsonl, raise reward.min_think_words, or weigh penalties on length "
                     "less.",
                     *then, *now));
  const std::optional<double> cut = level("completions/clipped_ratio");
  if (cut && *cut >= 0.3)
    warn("truncated", fmt::format("{} of the completions are cut off by sampling.max_new_tokens. Raise it, add the "
                                  "reward length, or leave them out of the loss with mask_truncated.",
                                  percent(*cut)));
}

void RunWatch::check_policy() {
  const std::optional<double> kl = level("kl");
  if (kl && std::abs(*kl) > 0.5)
    warn("kl", fmt::format("The KL to the reference is {:.2f} a token: the policy has left it far behind. Lower "
                           "optimizer.lr, raise beta, or stop earlier.",
                           *kl));
  const std::optional<double> entropy = level("entropy"), entropy_then = start("entropy");
  if (entropy && ((entropy_then && *entropy < *entropy_then / 3) || *entropy < 0.005))
    warn("entropy_low",
         fmt::format("The entropy of the tokens is down to {:.3f}{}: completions of a question are copies of each "
                     "other. Raise epsilon_high or sampling.temperature, or set entropy_coef.",
                     *entropy, entropy_then ? fmt::format(" from {:.3f}", *entropy_then) : ""));
  if (entropy && entropy_then && *entropy > 2 * *entropy_then && *entropy > *entropy_then + 0.5)
    warn("entropy_high", fmt::format("The entropy of the tokens has risen from {:.2f} to {:.2f}: the text falls apart. "
                                     "Lower optimizer.lr, entropy_coef or sampling.temperature.",
                                     *entropy_then, *entropy));
  const std::optional<double> gap = level("rollout_gap/mean");
  if (gap && *gap > 0.1)
    warn("rollout_gap",
         fmt::format("The probabilities that completions were drawn with differ from the trainer's by {} on average. "
                     "Weigh them with rollout_correction, or draw in the trainer's precision.",
                     percent(*gap)));
}

void RunWatch::check_format() {
  const std::optional<double> now = level("rewards/format/mean"), then = start("rewards/format/mean");
  if (!now || !then || num_steps_ < static_cast<std::int64_t>(3 * kWindow)) return;
  if (*now >= 0.9 || *now >= *then + 0.05) return;
  warn("format", fmt::format("The format reward is stuck at {:.2f}.{} Teach the format by sft first; for a model "
                             "that answers without reasoning set reward.require_think false.",
                             *now, commonest_reason("format")));
}

void RunWatch::check_zero_rewards() {
  for (const auto& item : last_.back().items()) {
    const std::string& metric = item.key();
    const std::optional<std::string> reward = reward_of(metric);
    if (!reward || *reward == "length" || *reward == "repetition") continue;
    const bool zero = std::all_of(last_.begin(), last_.end(), [&](const Json& line) {
      return number(line, metric) == 0.0 && number(line, "rewards/" + *reward + "/std") == 0.0;
    });
    if (!zero) continue;
    const auto reasons = reasons_.find(*reward);
    const bool never_applies =
        reasons != reasons_.end() && reasons->second.num_not_applicable == reasons->second.num_completions;
    warn("reward_zero/" + *reward,
         fmt::format("The reward {} {} in {} steps.{} Mend what the reason names, or leave the reward out.", *reward,
                     never_applies ? "had nothing to judge" : "was 0 for every completion", kWindow,
                     commonest_reason(*reward)));
  }
}

RunWatch watch_run(const std::filesystem::path& run_folder) {
  RunWatch watch;
  StepLines completions(run_folder / "samples" / "completions.jsonl");
  for (StepLines metrics(run_folder / "metrics.jsonl"); !metrics.done(); metrics.advance()) {
    for (; !completions.done() && completions.step() <= metrics.step(); completions.advance())
      watch.add_completion(completions.line());
    watch.add_step(metrics.line());
  }
  return watch;
}

}  // namespace thinkvg::rewards
