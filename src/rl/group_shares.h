#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "thinkvg/core/json.h"

// Which process completes which questions: every process works the same shares out for itself.
namespace thinkvg::rl {

// How long completions are likely to become, by the type of their question; older steps count less and less.
class ExpectedLengths {
 public:
  // Tokens of a completion. A type that was never seen: the mean of all; before the first step: 1.
  double of(const std::string& type) const;
  // The completions of a step: by type their tokens and their number.
  void add(const std::map<std::string, std::pair<double, double>>& step);

  Json state() const;
  void load_state(const Json& state);

 private:
  std::map<std::string, std::pair<double, double>> sums_;  // tokens, completions
};

// Places 0 to costs.size() - 1 shared out so that the processes' sums of costs are close: the dearest first, each to
// the process with the least so far (Graham 1969), the earlier place and the lower rank first among equals. Each share
// is in rising order.
std::vector<std::vector<std::int64_t>> balanced_shares(const std::vector<double>& costs, std::int64_t num_processes);

}  // namespace thinkvg::rl
