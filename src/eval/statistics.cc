#include "thinkvg/eval/statistics.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>

#include "thinkvg/core/error.h"

namespace thinkvg::eval {
namespace {

// P(X <= k) of a binomial variable with n trials of probability 1/2.
double binomial_half_cdf(std::int64_t k, std::int64_t n) {
  if (k < 0) return 0;
  if (k >= n) return 1;
  const double trials = static_cast<double>(n);
  // Terms grow towards k; summing from the smallest keeps their digits.
  double sum = 0;
  for (std::int64_t i = 0; i <= k; ++i) {
    const double x = static_cast<double>(i);
    sum += std::exp(std::lgamma(trials + 1) - std::lgamma(x + 1) - std::lgamma(trials - x + 1) -
                    trials * std::numbers::ln2);
  }
  return std::min(1.0, sum);
}

}  // namespace

McNemarResult mcnemar(std::int64_t only_first, std::int64_t only_second, McNemarMethod method) {
  if (only_first < 0 || only_second < 0) {
    throw_invalid("McNemar's test takes counts of 0 or more, but got {} and {}", only_first, only_second);
  }
  McNemarResult result{only_first, only_second};
  const std::int64_t discordant = only_first + only_second;
  if (discordant == 0) return result;
  const std::int64_t smaller = std::min(only_first, only_second);
  if (method == McNemarMethod::exact) {
    result.statistic = static_cast<double>(smaller);
    result.p_value = std::min(1.0, 2 * binomial_half_cdf(smaller, discordant));
  } else {
    const double distance = std::abs(static_cast<double>(only_first - only_second)) - 1;
    result.statistic = distance * distance / static_cast<double>(discordant);
    result.p_value = std::erfc(std::sqrt(result.statistic / 2));
  }
  return result;
}

std::vector<double> holm_adjust(const std::vector<double>& p_values) {
  for (const double p : p_values) {
    if (!(p >= 0 && p <= 1)) throw_invalid("p-values lie in [0, 1], but one is {}", p);
  }
  std::vector<std::size_t> order(p_values.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return p_values[a] < p_values[b]; });
  std::vector<double> adjusted(p_values.size());
  double largest = 0;
  for (std::size_t rank = 0; rank < order.size(); ++rank) {
    largest = std::max(largest, p_values[order[rank]] * static_cast<double>(order.size() - rank));
    adjusted[order[rank]] = std::min(1.0, largest);
  }
  return adjusted;
}

double normal_quantile(double probability) {
  if (!(probability > 0 && probability < 1)) {
    throw_invalid("a normal quantile needs a probability between 0 and 1, but got {}", probability);
  }
  // Towards 1 the distribution has no digits left; the lower tail has.
  if (probability > 0.5) return -normal_quantile(1 - probability);
  // Bisection until the interval is small, then Newton steps on the cumulative distribution.
  const auto cdf = [](double x) { return 0.5 * std::erfc(-x / std::numbers::sqrt2); };
  double low = -40, high = 40;
  for (int i = 0; i < 40; ++i) {
    const double middle = (low + high) / 2;
    (cdf(middle) < probability ? low : high) = middle;
  }
  double x = (low + high) / 2;
  for (int i = 0; i < 3; ++i) {
    const double density = std::exp(-x * x / 2) / std::sqrt(2 * std::numbers::pi);
    if (density > 1e-300) x -= (cdf(x) - probability) / density;
  }
  return x;
}

double minimum_detectable_difference(double standard_error, double level, double power) {
  if (!(standard_error >= 0)) throw_invalid("a standard error is 0 or more, but is {}", standard_error);
  return (normal_quantile(1 - level / 2) + normal_quantile(power)) * standard_error;
}

std::optional<double> quantile(std::vector<double> values, double share) {
  if (!(share >= 0 && share <= 1)) throw_invalid("a quantile's share lies in [0, 1], but is {}", share);
  std::erase_if(values, [](double value) { return std::isnan(value); });
  if (values.empty()) return std::nullopt;
  const double position = share * static_cast<double>(values.size() - 1);
  const auto below = static_cast<std::size_t>(position);
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(below), values.end());
  const double low = values[below];
  if (below + 1 == values.size()) return low;
  const double high = *std::min_element(values.begin() + static_cast<std::ptrdiff_t>(below) + 1, values.end());
  return low + (position - static_cast<double>(below)) * (high - low);
}

}  // namespace thinkvg::eval
