#include "thinkvg/rl/advantage.h"

#include <gtest/gtest.h>

#include <cmath>

#include "thinkvg/core/json.h"
#include "thinkvg/core/random.h"

namespace thinkvg::rl {
namespace {

TEST(AdvantageTest, EqualRewardsGiveExactlyZero) {
  const Advantages advantages = group_advantages({.3, .3, .3, 1, 0, 0}, 3, AdvantageScaling::batch);
  EXPECT_EQ(advantages.zero_signal, (std::vector<bool>{true, false}));
  for (int i = 0; i < 3; ++i) EXPECT_EQ(advantages.values[static_cast<std::size_t>(i)], 0);
}

TEST(AdvantageTest, GroupScalingHasUnitDeviationAndNoneKeepsTheScale) {
  RandomStream random({1});
  std::vector<double> rewards;
  for (int i = 0; i < 64; ++i) rewards.push_back(random.uniform());
  const Advantages scaled = group_advantages(rewards, 8, AdvantageScaling::group);
  const Advantages plain = group_advantages(rewards, 8, AdvantageScaling::none);
  for (std::size_t begin = 0; begin < 64; begin += 8) {
    double sum = 0, squares = 0;
    for (std::size_t i = begin; i < begin + 8; ++i) {
      sum += scaled.values[i];
      squares += scaled.values[i] * scaled.values[i];
      EXPECT_NEAR(plain.values[i] - plain.values[begin], rewards[i] - rewards[begin], 1e-12);
    }
    EXPECT_NEAR(sum, 0, 1e-9);
    EXPECT_NEAR(squares / 7, 1, 2e-3);
  }
}

TEST(AdvantageTest, WhatNoRewardCouldJudgeCountsNowhere) {
  const Advantages advantages = group_advantages({1, NAN, 0, NAN, NAN, NAN}, 3, AdvantageScaling::none);
  EXPECT_EQ(advantages.values, (std::vector<double>{.5, 0, -.5, 0, 0, 0}));
  EXPECT_EQ(advantages.zero_signal, (std::vector<bool>{false, true}));
}

TEST(AdvantageTest, DecoupledGoldenCase) {
  const Advantages advantages = decoupled_advantages({{1, .6}, {0, .4}, {0, .1}, {1, .5}}, {1, 1}, 4);
  const std::vector<double> expected = {.943864, -.456251, -1.187670, .700058};
  for (std::size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(advantages.values[i], expected[i], 1e-6);
}

// Against TRL itself, see tests/parity/write_policy_loss.py.
TEST(AdvantageParity, EqualTrls) {
  const Json stored = read_json_file(THINKVG_TEST_DATA "/policy_loss/advantages.json");
  ASSERT_GE(stored["cases"].size(), 12u);
  for (const Json& entry : stored["cases"]) {
    SCOPED_TRACE(entry["name"].get<std::string>());
    const auto weights = entry["weights"].get<std::vector<double>>();
    std::vector<std::vector<double>> rewards;
    std::vector<double> sums;
    for (const Json& row : entry["rewards"]) {
      rewards.emplace_back();
      double sum = NAN;
      for (std::size_t k = 0; k < weights.size(); ++k) {
        rewards.back().push_back(row[k].is_null() ? NAN : row[k].get<double>());
        if (!row[k].is_null()) sum = (std::isnan(sum) ? 0 : sum) + weights[k] * row[k].get<double>();
      }
      sums.push_back(sum);
    }
    const auto group_size = entry["group_size"].get<std::int64_t>();
    const std::string scaling = entry["scaling"].get<std::string>();
    const Advantages got = scaling == "decoupled"
                               ? decoupled_advantages(rewards, weights, group_size)
                               : group_advantages(sums, group_size, parse_advantage_scaling(scaling));
    const auto expected = entry["advantages"].get<std::vector<double>>();
    for (std::size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(got.values[i], expected[i], 1e-9) << i;
  }
}

}  // namespace
}  // namespace thinkvg::rl
