#include "thinkvg/rl/advantage.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "thinkvg/core/error.h"

namespace thinkvg::rl {
namespace {

constexpr double kEpsilon = 1e-4;

// Of the numbers that are not NaN.
struct Spread {
  std::int64_t count = 0;
  double mean = 0;
  double deviation = 0;  // of the sample: n - 1
  bool constant = true;
};

template <class Values>
Spread spread_of(std::int64_t begin, std::int64_t end, const Values& value) {
  Spread spread;
  double low = std::numeric_limits<double>::infinity(), high = -low;
  for (std::int64_t i = begin; i < end; ++i) {
    const double x = value(i);
    if (std::isnan(x)) continue;
    ++spread.count;
    spread.mean += x;
    low = std::min(low, x);
    high = std::max(high, x);
  }
  if (spread.count == 0) return spread;
  spread.mean /= static_cast<double>(spread.count);
  spread.constant = high == low;
  if (spread.count < 2) return spread;
  double squares = 0;
  for (std::int64_t i = begin; i < end; ++i) {
    const double x = value(i);
    if (!std::isnan(x)) squares += (x - spread.mean) * (x - spread.mean);
  }
  spread.deviation = std::sqrt(squares / static_cast<double>(spread.count - 1));
  return spread;
}

void check_groups(std::int64_t count, std::int64_t group_size) {
  if (group_size < 1 || count % group_size != 0)
    throw_invalid("{} rewards cannot be split into groups of {}", count, group_size);
}

}  // namespace

AdvantageScaling parse_advantage_scaling(std::string_view name) {
  if (name == "group") return AdvantageScaling::group;
  if (name == "batch") return AdvantageScaling::batch;
  if (name == "none") return AdvantageScaling::none;
  throw_invalid("advantage scaling must be group, batch or none, but is '{}'", name);
}

Advantages group_advantages(const std::vector<double>& rewards, std::int64_t group_size, AdvantageScaling scaling) {
  const auto count = static_cast<std::int64_t>(rewards.size());
  check_groups(count, group_size);
  const auto value = [&](std::int64_t i) { return rewards[static_cast<std::size_t>(i)]; };
  const Spread batch = spread_of(0, count, value);
  Advantages result;
  for (std::int64_t begin = 0; begin < count; begin += group_size) {
    const Spread group = spread_of(begin, begin + group_size, value);
    result.zero_signal.push_back(group.constant);
    double scale = 1;
    if (scaling == AdvantageScaling::group) scale = 1 / (group.deviation + kEpsilon);
    if (scaling == AdvantageScaling::batch) scale = 1 / (batch.deviation + kEpsilon);
    for (std::int64_t i = begin; i < begin + group_size; ++i)
      result.values.push_back(group.constant || std::isnan(value(i)) ? 0 : (value(i) - group.mean) * scale);
  }
  return result;
}

Advantages decoupled_advantages(const std::vector<std::vector<double>>& rewards, const std::vector<double>& weights,
                                std::int64_t group_size) {
  const auto count = static_cast<std::int64_t>(rewards.size());
  check_groups(count, group_size);
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  std::vector<double> sums(rewards.size(), kNan);
  Advantages result;
  for (std::int64_t begin = 0; begin < count; begin += group_size) {
    bool constant = true;
    for (std::size_t k = 0; k < weights.size(); ++k) {
      const auto value = [&](std::int64_t i) { return rewards[static_cast<std::size_t>(i)].at(k); };
      const Spread group = spread_of(begin, begin + group_size, value);
      constant &= group.constant;
      for (std::int64_t i = begin; i < begin + group_size; ++i) {
        if (std::isnan(value(i))) continue;
        double& sum = sums[static_cast<std::size_t>(i)];
        if (std::isnan(sum)) sum = 0;
        if (!group.constant) sum += weights[k] * (value(i) - group.mean) / (group.deviation + kEpsilon);
      }
    }
    result.zero_signal.push_back(constant);
  }
  const Spread batch = spread_of(0, count, [&](std::int64_t i) { return sums[static_cast<std::size_t>(i)]; });
  for (const double sum : sums)
    result.values.push_back(std::isnan(sum) || batch.constant ? 0 : (sum - batch.mean) / (batch.deviation + kEpsilon));
  return result;
}

}  // namespace thinkvg::rl
