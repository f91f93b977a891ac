#pragma once

#include <cstdint>
#include <optional>
#include <vector>

// Tests and sizes for comparing systems. Pure functions; calls may run concurrently.
namespace thinkvg::eval {

// Outcome of McNemar's test on paired right/wrong answers.
struct McNemarResult {
  std::int64_t only_first = 0;   // questions that only the first system has right
  std::int64_t only_second = 0;  // questions that only the second has right
  double statistic = 0;          // exact: the smaller count; else chi squared
  double p_value = 1;            // two-sided
};

enum class McNemarMethod {
  exact,       // binomial, right for any number of questions
  chi_square,  // one degree of freedom, with the continuity correction
};

// As statsmodels.stats.contingency_tables.mcnemar. No discordant question: p = 1 and statistic 0, by either method.
// Throws std::invalid_argument for negative counts.
McNemarResult mcnemar(std::int64_t only_first, std::int64_t only_second, McNemarMethod method = McNemarMethod::exact);

// Holm's step-down adjustment of the p-values of one table (as statsmodels multipletests, method "holm"): reject where
// the adjusted value is at most the level, and the chance of any false rejection in the table stays below that level.
// Same order as given. Throws std::invalid_argument for a value outside [0, 1].
std::vector<double> holm_adjust(const std::vector<double>& p_values);

// Quantile of the standard normal distribution for 0 < probability < 1 (error below 1e-12).
double normal_quantile(double probability);

// Smallest true difference that a two-sided test at `level` finds with the probability `power`, given the standard
// error of the difference: (z(1 - level/2) + z(power)) * standard_error.
double minimum_detectable_difference(double standard_error, double level = 0.05, double power = 0.8);

// Linear interpolation between order statistics, as numpy.percentile; 0 <= share <= 1. NaNs are left out; nothing is
// returned for a list without numbers.
std::optional<double> quantile(std::vector<double> values, double share);

}  // namespace thinkvg::eval
