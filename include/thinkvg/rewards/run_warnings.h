#pragma once

#include <cstdint>
#include <deque>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "thinkvg/core/json.h"

namespace thinkvg::rewards {

// Something in a GRPO run that somebody should look at.
struct RunWarning {
  std::string name;       // stable; see RunWatch
  std::int64_t step = 0;  // when it was seen
  std::string text;       // what is seen, and what may help
};

// Looks out for the ways in which GRPO runs go wrong, by the lines of metrics.jsonl and samples/completions.jsonl in
// the order in which they were written: the same lines give the same warnings, each once. Levels are means over the
// last 10 logged steps; where they are compared with the start, that is the mean over the first 10, from the 20th on.
//   zero_signal        frac_reward_zero_std 0.8 or more; or 0.5 or more, and 0.25 above the start
//   length_collapse    completions/mean_length under half of the start's, by 8 tokens or more
//   truncated          completions/clipped_ratio 0.3 or more
//   kl                 kl beyond 0.5 a token
//   entropy_low        entropy under a third of the start's, or under 0.005
//   entropy_high       entropy over twice the start's, and 0.5 above it
//   rollout_gap        rollout_gap/mean over 0.1
//   format             rewards/format/mean under 0.9 and less than 0.05 above the start, from the 30th step on
//   reward_zero/NAME   the reward was 0 for all completions of the last 10 steps (length and repetition, which are
//                      penalties, apart), with its commonest reason among the logged completions
class RunWatch {
 public:
  // A logged completion; those of a step come before its metrics. Lines of other shapes are passed over.
  void add_completion(const Json& line);
  // The metrics of a logged step. Returns the warnings that are new.
  std::vector<RunWarning> add_step(const Json& metrics);

  const std::vector<RunWarning>& warnings() const { return warnings_; }

 private:
  struct Reasons {
    std::int64_t num_completions = 0;
    std::int64_t num_not_applicable = 0;
    std::map<std::string, std::int64_t> counts;  // by pattern, of completions that got 0 or nothing
  };

  std::optional<double> level(const std::string& metric) const;
  std::optional<double> start(const std::string& metric) const;
  std::string commonest_reason(const std::string& reward) const;
  void warn(const std::string& name, std::string text);
  void check_signal();
  void check_lengths();
  void check_policy();
  void check_format();
  void check_zero_rewards();

  std::int64_t num_steps_ = 0;
  std::vector<Json> first_;
  std::deque<Json> last_;
  std::map<std::string, Reasons> reasons_;  // by reward
  std::set<std::string> names_;             // of the warnings
  std::vector<RunWarning> warnings_;
};

// A RunWatch that has seen all that a run folder has logged so far; of one without metrics.jsonl, one that has seen
// nothing.
RunWatch watch_run(const std::filesystem::path& run_folder);

}  // namespace thinkvg::rewards
