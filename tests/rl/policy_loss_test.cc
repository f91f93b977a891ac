#include "thinkvg/rl/policy_loss.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <set>

#include "thinkvg/core/json.h"
#include "thinkvg/rl/advantage.h"

namespace thinkvg::rl {
namespace {

// The golden case: 4 completions of one prompt, in double precision; values by hand from the published formulas, and
// the same from TRL (see PolicyLossParity).
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

double golden(LossType type, double beta, double epsilon_high = 0.2, RatioLevel level = RatioLevel::token) {
  PolicyLossOptions options;
  options.type = type;
  options.ratio_level = level;
  options.beta = beta;
  options.epsilon_low = 0.2;
  options.epsilon_high = epsilon_high;
  options.max_completion_length = 4;
  return policy_loss(golden_input(), options).loss.item<double>();
}

// The micro-batch of `count` completions from `first` on; totals stay the whole step's.
PolicyLossInput micro_batch(const PolicyLossInput& whole, std::int64_t first, std::int64_t count) {
  const auto begin = whole.lengths.narrow(0, 0, first).sum().item<std::int64_t>();
  const auto tokens = whole.lengths.narrow(0, first, count).sum().item<std::int64_t>();
  PolicyLossInput part = whole;
  part.log_probs = whole.log_probs.narrow(0, begin, tokens);
  if (whole.old_log_probs.defined()) part.old_log_probs = whole.old_log_probs.narrow(0, begin, tokens);
  if (whole.ref_log_probs.defined()) part.ref_log_probs = whole.ref_log_probs.narrow(0, begin, tokens);
  const auto narrow = [&](at::Tensor& tensor) {
    if (tensor.defined()) tensor = tensor.narrow(0, begin, tokens);
  };
  for (at::Tensor* tensor : {&part.rollout_log_probs, &part.entropy, &part.token_weights, &part.token_mask})
    narrow(*tensor);
  part.sequence = whole.sequence.narrow(0, begin, tokens) - first;
  part.advantages = whole.advantages.narrow(0, first, count);
  part.lengths = whole.lengths.narrow(0, first, count);
  return part;
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
  EXPECT_NEAR(golden(LossType::grpo, 0, .2, RatioLevel::sequence), -.086618, 1e-6);
  EXPECT_NEAR(golden(LossType::luspo, 0, .2, RatioLevel::sequence), -.849235, 1e-6);
  EXPECT_NEAR(golden(LossType::cispo, 0, 5), .396670, 1e-6);
  EXPECT_NEAR(golden(LossType::cispo, 0, .2), .065104, 1e-6);
  EXPECT_NEAR(golden(LossType::sapo, 0), -.178881, 1e-6);
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
  for (const LossType type :
       {LossType::grpo, LossType::dr_grpo, LossType::dapo, LossType::luspo, LossType::cispo, LossType::sapo})
    for (const RatioLevel level : {RatioLevel::token, RatioLevel::sequence}) {
      PolicyLossOptions options;
      options.type = type;
      options.ratio_level = level;
      options.max_completion_length = 4;
      const PolicyLossInput whole = golden_input();
      policy_loss(whole, options).loss.backward();

      const PolicyLossInput split = golden_input();
      for (const auto& [first, count] : {std::pair{0, 1}, std::pair{1, 2}, std::pair{3, 1}})
        policy_loss(micro_batch(split, first, count), options).loss.backward();
      EXPECT_GT(whole.log_probs.grad().abs().max().item<double>(), 0.01);
      EXPECT_TRUE(at::allclose(split.log_probs.grad(), whole.log_probs.grad(), 1e-12, 1e-12)) << loss_type_name(type);
    }
}

TEST(PolicyLossTest, SequenceRatioOfOneTokenIsTheTokenRatio) {
  PolicyLossInput input = golden_input();
  input.lengths = at::ones({9}, at::kLong);
  input.sequence = at::arange(9, at::kLong);
  input.advantages = at::linspace(-1, 1, 9, at::kDouble);
  PolicyLossOptions options;
  const double token = policy_loss(input, options).loss.item<double>();
  options.ratio_level = RatioLevel::sequence;
  EXPECT_NEAR(policy_loss(input, options).loss.item<double>(), token, 1e-12);
}

PolicyLossInput input_of(const Json& entry) {
  const auto numbers = [&](const char* name) {
    return at::tensor(entry[name].get<std::vector<double>>(), at::kDouble);
  };
  PolicyLossInput input;
  input.log_probs = numbers("policy").set_requires_grad(true);
  if (!entry["old"].is_null()) input.old_log_probs = numbers("old");
  if (entry.contains("rollout")) input.rollout_log_probs = numbers("rollout");
  if (entry.contains("entropy")) input.entropy = numbers("entropy").set_requires_grad(true);
  input.ref_log_probs = numbers("reference");
  input.advantages = numbers("advantages");
  input.lengths = at::tensor(entry["lengths"].get<std::vector<std::int64_t>>(), at::kLong);
  input.sequence = at::repeat_interleave(input.lengths);
  input.total_completions = input.lengths.size(0);
  input.total_tokens = input.log_probs.size(0);
  input.num_micro_batches = entry["micro_batches"].get<std::int64_t>();
  const double share = entry.value("top_entropy_quantile", 1.0);
  if (share < 1) {
    input.token_mask = top_entropy_tokens(input.entropy.detach(), share);
    input.total_masked_tokens = input.token_mask.sum().item<std::int64_t>();
  }
  const std::string correction = entry.value("rollout_correction", "none");
  if (correction != "none")
    input.token_weights =
        rollout_correction(input.old_log_probs, input.rollout_log_probs, input.sequence, input.lengths,
                           {parse_rollout_correction(correction), entry["correction_min"].get<double>(),
                            entry["correction_max"].get<double>()});
  return input;
}

PolicyLossOptions options_of(const Json& entry) {
  PolicyLossOptions options;
  options.type = parse_loss_type(entry["loss_type"].get<std::string>());
  options.ratio_level = parse_ratio_level(entry["importance_sampling_level"].get<std::string>());
  options.epsilon_low = entry["epsilon_low"].get<double>();
  options.epsilon_high = entry["epsilon_high"].get<double>();
  options.delta = entry["delta"].is_null() ? 0 : entry["delta"].get<double>();
  options.beta = entry["beta"].get<double>();
  options.sapo_temperature_pos = entry["sapo_temperature_pos"].get<double>();
  options.sapo_temperature_neg = entry["sapo_temperature_neg"].get<double>();
  options.max_completion_length = entry["max_completion_length"].get<std::int64_t>();
  options.bias_corrected_kl = entry.value("bias_corrected_kl", false);
  options.entropy_coef = entry.value("entropy_coef", 0.0);
  options.off_policy_threshold = entry.value("off_policy_threshold", 0.0);
  return options;
}

// Against TRL itself, see tests/parity/write_policy_loss.py.
TEST(PolicyLossParity, LossesAndGradientsEqualTrls) {
  const Json stored = read_json_file(THINKVG_TEST_DATA "/policy_loss/golden.json");
  ASSERT_GE(stored["cases"].size(), 30u);
  std::set<std::string> kinds;
  for (const Json& entry : stored["cases"]) {
    SCOPED_TRACE(entry["name"].get<std::string>());
    const PolicyLossInput input = input_of(entry);
    const PolicyLossOptions options = options_of(entry);
    kinds.insert(entry["loss_type"].get<std::string>() + " " + entry["importance_sampling_level"].get<std::string>());
    const std::int64_t count = input.total_completions / input.num_micro_batches;
    PolicyLoss sum{at::zeros({}, at::kDouble)};
    for (std::int64_t m = 0; m < input.num_micro_batches; ++m) {
      const PolicyLoss part = policy_loss(micro_batch(input, m * count, count), options);
      part.loss.backward();
      sum.loss += part.loss.detach();
      sum.kl_sum += part.kl_sum;
      sum.clipped_low += part.clipped_low;
      sum.clipped_high += part.clipped_high;
    }
    EXPECT_NEAR(sum.loss.item<double>(), entry["loss"].get<double>(), 1e-9);
    if (options.entropy_coef != 0) {
      const at::Tensor of_entropy = at::tensor(entry["entropy_gradient"].get<std::vector<double>>(), at::kDouble);
      EXPECT_LT((input.entropy.grad() - of_entropy).abs().max().item<double>(), 1e-9);
    }
    const at::Tensor expected = at::tensor(entry["gradient"].get<std::vector<double>>(), at::kDouble);
    EXPECT_LT((input.log_probs.grad() - expected).abs().max().item<double>(), 1e-9);
    // TRL counts clipped tokens in single precision.
    const auto tokens = static_cast<double>(input.total_tokens);
    if (entry.contains("kl")) EXPECT_NEAR(sum.kl_sum / tokens, entry["kl"].get<double>(), 1e-9);
    if (entry.contains("clip_low")) EXPECT_NEAR(sum.clipped_low / tokens, entry["clip_low"].get<double>(), 1e-7);
    if (entry.contains("clip_high")) EXPECT_NEAR(sum.clipped_high / tokens, entry["clip_high"].get<double>(), 1e-7);
  }
  for (const char* type : {"grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo"})
    EXPECT_TRUE(kinds.contains(std::string(type) + " token") || kinds.contains(std::string(type) + " sequence"))
        << type;
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

TEST(PolicyLossTest, KlEstimatesAreTheirFormulas) {
  const at::Tensor policy = at::tensor({-1.0, -0.5}, at::kDouble), reference = at::tensor({-1.3, -0.1}, at::kDouble);
  const auto values = [&](const char* name) { return kl_estimate(policy, reference, parse_kl_estimator(name)); };
  EXPECT_TRUE(at::allclose(values("k1"), at::tensor({0.3, -0.4}, at::kDouble)));
  EXPECT_TRUE(at::allclose(values("k2"), at::tensor({0.045, 0.08}, at::kDouble)));
  EXPECT_TRUE(at::allclose(values("k3"), at::tensor({std::exp(-0.3) + 0.3 - 1, std::exp(0.4) - 0.4 - 1}, at::kDouble)));
  EXPECT_THROW(parse_kl_estimator("k4"), std::invalid_argument);
  EXPECT_THROW(parse_rollout_correction("clip"), std::invalid_argument);
}

TEST(PolicyLossTest, WrongUseIsAnError) {
  PolicyLossInput input = golden_input();
  input.ref_log_probs.reset();
  EXPECT_THROW(policy_loss(input, {}), std::invalid_argument);
  PolicyLossOptions options;
  options.beta = 0;
  options.type = LossType::dr_grpo;
  EXPECT_THROW(policy_loss(input, options), std::invalid_argument);
  options.type = LossType::sapo;
  options.sapo_temperature_neg = 0;
  EXPECT_THROW(policy_loss(input, options), std::invalid_argument);
  EXPECT_THROW(parse_loss_type("ppo"), std::invalid_argument);
  EXPECT_THROW(parse_ratio_level("word"), std::invalid_argument);
  EXPECT_THROW(parse_advantage_scaling("std"), std::invalid_argument);
  EXPECT_THROW(group_advantages({1, 2, 3}, 2, AdvantageScaling::group), std::invalid_argument);
}

}  // namespace
}  // namespace thinkvg::rl
