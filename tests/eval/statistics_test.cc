#include "thinkvg/eval/statistics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "thinkvg/core/json.h"

namespace thinkvg::eval {
namespace {

// Equal in all digits that matter, for values near 0 too.
void expect_close(double got, double expected, const std::string& what) {
  EXPECT_NEAR(got, expected, 1e-9 * std::abs(expected) + 1e-300) << what;
}

TEST(StatisticsParity, McNemarEqualsStatsmodels) {
  const Json stored = read_json_file(THINKVG_TEST_DATA "/eval/statistics.json");
  ASSERT_GE(stored["mcnemar"].size(), 30u);
  for (const Json& entry : stored["mcnemar"]) {
    const auto first = entry["first"].get<std::int64_t>(), second = entry["second"].get<std::int64_t>();
    const McNemarResult exact = mcnemar(first, second);
    expect_close(exact.statistic, entry["exact"][0].get<double>(), entry.dump());
    expect_close(exact.p_value, entry["exact"][1].get<double>(), entry.dump());
    const McNemarResult chi = mcnemar(first, second, McNemarMethod::chi_square);
    expect_close(chi.statistic, entry["chi_square"][0].get<double>(), entry.dump());
    expect_close(chi.p_value, entry["chi_square"][1].get<double>(), entry.dump());
  }
}

TEST(StatisticsParity, HolmEqualsStatsmodels) {
  const Json stored = read_json_file(THINKVG_TEST_DATA "/eval/statistics.json");
  ASSERT_GE(stored["holm"].size(), 20u);
  for (const Json& entry : stored["holm"]) {
    const auto expected = entry["adjusted"].get<std::vector<double>>();
    const auto adjusted = holm_adjust(entry["p"].get<std::vector<double>>());
    ASSERT_EQ(adjusted.size(), expected.size());
    for (std::size_t i = 0; i < adjusted.size(); ++i) expect_close(adjusted[i], expected[i], entry.dump());
  }
}

TEST(StatisticsParity, QuantilesEqualScipyAndNumpy) {
  const Json stored = read_json_file(THINKVG_TEST_DATA "/eval/statistics.json");
  for (const Json& entry : stored["normal"]) {
    EXPECT_NEAR(normal_quantile(entry[0].get<double>()), entry[1].get<double>(), 1e-9) << entry.dump();
  }
  for (const Json& entry : stored["quantiles"]) {
    EXPECT_NEAR(*quantile(entry["values"].get<std::vector<double>>(), entry["share"].get<double>()),
                entry["quantile"].get<double>(), 1e-12)
        << entry.dump();
  }
}

TEST(Statistics, NothingToCompare) {
  EXPECT_EQ(mcnemar(0, 0).p_value, 1);
  EXPECT_EQ(mcnemar(0, 0, McNemarMethod::chi_square).p_value, 1);
  EXPECT_TRUE(holm_adjust({}).empty());
  EXPECT_FALSE(quantile({std::numeric_limits<double>::quiet_NaN()}, 0.5));
}

TEST(Statistics, WrongCallsAreErrors) {
  EXPECT_THROW(mcnemar(-1, 2), std::invalid_argument);
  EXPECT_THROW(holm_adjust({0.2, 1.2}), std::invalid_argument);
  EXPECT_THROW(normal_quantile(0), std::invalid_argument);
  EXPECT_THROW(quantile({1}, 1.1), std::invalid_argument);
  EXPECT_THROW(minimum_detectable_difference(-1), std::invalid_argument);
}

TEST(Statistics, MinimumDetectableDifferenceIsTheUsualOne) {
  // z(0.975) + z(0.8) = 1.959964 + 0.841621
  EXPECT_NEAR(minimum_detectable_difference(0.01), 0.02801585, 1e-8);
}

}  // namespace
}  // namespace thinkvg::eval
