#include "rl/group_shares.h"

#include <algorithm>
#include <numeric>

namespace thinkvg::rl {
namespace {

constexpr double kKept = 0.8;  // of what older steps count

}  // namespace

double ExpectedLengths::of(const std::string& type) const {
  if (const auto found = sums_.find(type); found != sums_.end()) return found->second.first / found->second.second;
  double tokens = 0, completions = 0;
  for (const auto& [name, sum] : sums_) {
    tokens += sum.first;
    completions += sum.second;
  }
  return completions > 0 ? tokens / completions : 1;
}

void ExpectedLengths::add(const std::map<std::string, std::pair<double, double>>& step) {
  for (auto& [type, sum] : sums_) {
    sum.first *= kKept;
    sum.second *= kKept;
  }
  for (const auto& [type, sum] : step) {
    if (sum.second <= 0) continue;
    sums_[type].first += sum.first;
    sums_[type].second += sum.second;
  }
}

Json ExpectedLengths::state() const { return sums_; }

void ExpectedLengths::load_state(const Json& state) { sums_ = state.get<decltype(sums_)>(); }

std::vector<std::vector<std::int64_t>> balanced_shares(const std::vector<double>& costs, std::int64_t num_processes) {
  std::vector<std::int64_t> order(costs.size());
  std::iota(order.begin(), order.end(), std::int64_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
    return costs[static_cast<std::size_t>(a)] > costs[static_cast<std::size_t>(b)];
  });
  std::vector<std::vector<std::int64_t>> shares(static_cast<std::size_t>(num_processes));
  std::vector<double> sums(shares.size(), 0);
  for (const std::int64_t place : order) {
    const auto least = static_cast<std::size_t>(std::min_element(sums.begin(), sums.end()) - sums.begin());
    sums[least] += costs[static_cast<std::size_t>(place)];
    shares[least].push_back(place);
  }
  for (std::vector<std::int64_t>& share : shares) std::sort(share.begin(), share.end());
  return shares;
}

}  // namespace thinkvg::rl
