#include "thinkvg/rl/policy_loss.h"

#include <gtest/gtest.h>

#include "thinkvg/core/random.h"

namespace thinkvg::rl {
namespace {

// The golden case: 4 completions of one prompt, in double precision; values by hand from the published formulas.
const std::vector<double> kRewards = {1, .25, 0, .75};
const std::vector<std::int64_t> kLengths = {3, 2, 1, 3};
const std::vector<double> kOld = {-1, -.5, -2, -.7, -1.2, -.3, -1.5, -.2, -.9};
const std::vector<double> kPolicy = {-.7, -.6, -2, -.9, -.8, -.8, -1.4, -.25, -.4};
const std::vector<double> kReference = {-1.1, -.5, -1.9, -.7, -1, -.4, -1.5, -.3, -.8};

PolicyLossInput golden_input() {
  PolicyLossInput input;
  input.log_probs = at::tensor(kPolicy, at::kDouble).set_requires_grad(true);
  input.old_log_probs = at::tensor(kOld, at::kDouble);
  input.ref_log_probs = at::tensor(kReference, at::kDouble);
  input.advantages = at::tensor(group_advantages(kRewards, 4, AdvantageScaling::group).values, at::kDouble);
  input.lengths = at::tensor(kLengths, at::kLong);
  input.sequence = at::tensor(std::vector<std::int64_t>{0, 0, 0, 1, 1, 2, 3, 3, 3}, at::kLong);
  input.total_completions = 4;
  input.total_tokens = 9;
  return input;
}

double golden(LossType type, double beta, double epsilon_high = 0.2) {
  PolicyLossOptions options;
  options.type = type;
  options.beta = beta;
  options.epsilon_low = 0.2;
  options.epsilon_high = epsilon_high;
  options.max_completion_length = 4;
  return policy_loss(golden_input(), options).loss.item<double>();
}

TEST(PolicyLossTest, GoldenAdvantages) {
  const Advantages advantages = group_advantages(kRewards, 4, AdvantageScaling::group);
  const std::vector<double> expected = {1.095205, -.547603, -1.095205, .547603};
  for (std::size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(advantages.values[i], expected[i], 1e-6);
}

TEST(PolicyLossTest, GoldenLosses) {
  EXPECT_NEAR(golden(LossType::grpo, 0), -.054771, 1e-6);
  EXPECT_NEAR(golden(LossType::grpo, .04), -.053129, 1e-6);
  EXPECT_NEAR(golden(LossType::bnpo, 0), -.338024, 1e-6);
  EXPECT_NEAR(golden(LossType::bnpo, .04), -.336740, 1e-6);
  EXPECT_NEAR(golden(LossType::dapo, 0), -.338024, 1e-6);
  EXPECT_NEAR(golden(LossType::dapo, .04), -.336740, 1e-6);
  EXPECT_NEAR(golden(LossType::dr_grpo, 0), -.190139, 1e-6);
  EXPECT_NEAR(golden(LossType::dr_grpo, .04), -.189416, 1e-6);
  EXPECT_NEAR(golden(LossType::grpo, 0, .28), -.065723, 1e-6);
  EXPECT_NEAR(golden(LossType::dapo, 0, .28), -.352627, 1e-6);
  EXPECT_NEAR(golden(LossType::dr_grpo, 0, .28), -.198353, 1e-6);
}

TEST(PolicyLossTest, GoldenMetrics) {
  PolicyLossOptions options;
  options.epsilon_high = 0.2;
  const PolicyLoss loss = policy_loss(golden_input(), options);
  EXPECT_NEAR(loss.kl_sum / 9, .032112, 1e-6);
  EXPECT_NEAR(loss.clipped_low / 9, 1.0 / 9, 1e-9);
  EXPECT_NEAR(loss.clipped_high / 9, 2.0 / 9, 1e-9);
}

TEST(PolicyLossTest, GradientDoesNotDependOnTheSplit) {
  for (const LossType type : {LossType::grpo, LossType::dr_grpo, LossType::dapo}) {
    PolicyLossOptions options;
    options.type = type;
    options.max_completion_length = 4;
    PolicyLossInput whole = golden_input();
    policy_loss(whole, options).loss.backward();

    const at::Tensor log_probs = at::tensor(kPolicy, at::kDouble).set_requires_grad(true);
    for (const auto& [first, count, tokens_before, tokens] :
         {std::tuple{0, 1, 0, 3}, std::tuple{1, 2, 3, 3}, std::tuple{3, 1, 6, 3}}) {
      PolicyLossInput part = golden_input();
      part.log_probs = log_probs.narrow(0, tokens_before, tokens);
      part.old_log_probs = part.old_log_probs.narrow(0, tokens_before, tokens);
      part.ref_log_probs = part.ref_log_probs.narrow(0, tokens_before, tokens);
      part.sequence = part.sequence.narrow(0, tokens_before, tokens) - first;
      part.advantages = part.advantages.narrow(0, first, count);
      part.lengths = part.lengths.narrow(0, first, count);
      policy_loss(part, options).loss.backward();
    }
    EXPECT_TRUE(at::allclose(log_probs.grad(), whole.log_probs.grad(), 1e-12, 1e-12)) << loss_type_name(type);
  }
}

TEST(PolicyLossTest, OnPolicyLossIsNearZeroButItsGradientIsNot) {
  PolicyLossInput input = golden_input();
  input.old_log_probs.reset();
  PolicyLossOptions options;
  options.beta = 0;
  options.type = LossType::grpo;
  const PolicyLoss loss = policy_loss(input, options);
  loss.loss.backward();
  EXPECT_NEAR(loss.loss.item<double>(), 0, 1e-9);
  EXPECT_GT(input.log_probs.grad().abs().max().item<double>(), 0.05);
}

TEST(PolicyLossTest, DualClipBoundsTheRatioOfBadTokens) {
  PolicyLossInput input = golden_input();
  input.log_probs = at::full({9}, 3.0, at::kDouble);
  PolicyLossOptions options;
  options.beta = 0;
  options.type = LossType::dapo;
  const double unbounded = policy_loss(input, options).loss.item<double>();
  options.delta = 2;
  EXPECT_LT(policy_loss(input, options).loss.item<double>(), unbounded);
}

TEST(PolicyLossTest, WrongUseIsAnError) {
  PolicyLossInput input = golden_input();
  input.ref_log_probs.reset();
  EXPECT_THROW(policy_loss(input, {}), std::invalid_argument);
  PolicyLossOptions options;
  options.beta = 0;
  options.type = LossType::dr_grpo;
  EXPECT_THROW(policy_loss(input, options), std::invalid_argument);
  EXPECT_THROW(parse_loss_type("ppo"), std::invalid_argument);
  EXPECT_THROW(parse_advantage_scaling("std"), std::invalid_argument);
  EXPECT_THROW(group_advantages({1, 2, 3}, 2, AdvantageScaling::group), std::invalid_argument);
}

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

}  // namespace
}  // namespace thinkvg::rl
