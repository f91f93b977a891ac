#include "thinkvg/nn/token_stats.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "nn/cuda_kernels.h"
#include "nn/online_softmax.h"
#include "thinkvg/nn/cuda.h"

namespace thinkvg::nn {
namespace {

at::Generator generator(std::uint64_t seed) { return at::detail::createCPUGenerator(seed); }

at::Tensor random_logits(std::int64_t rows, std::int64_t classes, double spread) {
  return at::randn({rows, classes}, generator(17)) * spread;
}

at::Tensor random_targets(std::int64_t rows, std::int64_t classes) {
  return at::randint(classes, {rows}, generator(18), at::kLong);
}

// The same numbers out of whole-tensor operations in double precision.
TokenStats reference(const at::Tensor& logits, const at::Tensor& targets, double temperature) {
  const at::Tensor log_p = at::log_softmax(logits.to(at::kDouble) / temperature, 1);
  const at::Tensor terms = at::where(at::isneginf(log_p), at::zeros_like(log_p), log_p.exp() * log_p);
  return {log_p.gather(1, targets.unsqueeze(1)).squeeze(1), at::logsumexp(logits.to(at::kDouble) / temperature, {1}),
          -terms.sum(1), temperature};
}

void expect_close(const at::Tensor& actual, const at::Tensor& expected, double tolerance, const char* name) {
  ASSERT_EQ(actual.sizes(), expected.sizes()) << name;
  const at::Tensor error =
      (actual.to(at::kDouble) - expected.to(at::kDouble)).abs() / expected.to(at::kDouble).abs().clamp_min(1.0);
  EXPECT_LE(error.max().item<double>(), tolerance) << name;
  EXPECT_FALSE(actual.isnan().any().item<bool>()) << name;
}

struct Case {
  std::int64_t rows, classes;
  double temperature, spread;
  at::ScalarType type;

  friend void PrintTo(const Case& c, std::ostream* stream) {
    *stream << c.rows << " x " << c.classes << " " << c10::toString(c.type) << ", temperature " << c.temperature;
  }
};

class TokenStatsCases : public testing::TestWithParam<Case> {};

TEST_P(TokenStatsCases, EqualsTheReference) {
  const Case& c = GetParam();
  const at::Tensor logits = random_logits(c.rows, c.classes, c.spread).to(c.type);
  const at::Tensor targets = random_targets(c.rows, c.classes);
  const TokenStats stats = token_stats(logits, targets, c.temperature);
  const TokenStats expected = reference(logits, targets, c.temperature);
  EXPECT_EQ(stats.logprob.scalar_type(), at::kFloat);
  expect_close(stats.logprob, expected.logprob, 2e-6, "logprob");
  expect_close(stats.logsumexp, expected.logsumexp, 2e-6, "logsumexp");
  expect_close(stats.entropy, expected.entropy, 5e-6, "entropy");
}

TEST_P(TokenStatsCases, GradientEqualsAutogradOfTheReference) {
  const Case& c = GetParam();
  const at::Tensor logits = random_logits(c.rows, c.classes, c.spread).to(c.type);
  const at::Tensor targets = random_targets(c.rows, c.classes);
  const at::Tensor weights = at::randn({3, c.rows}, generator(19));

  at::Tensor ours = logits.detach().clone().requires_grad_(true);
  const TokenStats stats = token_stats(ours, targets, c.temperature);
  (stats.logprob * weights[0] + stats.logsumexp * weights[1] + stats.entropy * weights[2]).sum().backward();

  at::Tensor theirs = logits.detach().to(at::kDouble).requires_grad_(true);
  const at::Tensor log_p = at::log_softmax(theirs / c.temperature, 1);
  const at::Tensor loss = log_p.gather(1, targets.unsqueeze(1)).squeeze(1) * weights[0] +
                          at::logsumexp(theirs / c.temperature, {1}) * weights[1] -
                          (log_p.exp() * log_p).sum(1) * weights[2];
  loss.sum().backward();
  EXPECT_EQ(ours.grad().scalar_type(), c.type);
  expect_close(ours.grad(), theirs.grad(), c.type == at::kFloat ? 1e-5 : 4e-3 / c.temperature, "gradient");
}

INSTANTIATE_TEST_SUITE_P(Shapes, TokenStatsCases,
                         testing::Values(Case{1, 1, 1.0, 1.0, at::kFloat}, Case{3, 15, 1.0, 2.0, at::kFloat},
                                         Case{4, 16, 0.7, 2.0, at::kFloat}, Case{5, 1000, 1.0, 10.0, at::kFloat},
                                         Case{37, 4099, 1.3, 3.0, at::kFloat}, Case{2, 151936, 1.0, 4.0, at::kFloat},
                                         Case{3, 2048, 0.05, 3.0, at::kFloat}, Case{9, 2049, 1.0, 3.0, at::kBFloat16},
                                         Case{2, 33, 0.5, 1.0, at::kBFloat16}));

TEST(TokenStats, KeepsHugeLogitsFinite) {
  const at::Tensor logits = at::tensor({3e4f, -3e4f, 2.9999e4f, -3e38f}).view({1, 4});
  const TokenStats stats = token_stats(logits, at::tensor({2}, at::kLong));
  expect_close(stats.logprob, reference(logits, at::tensor({2}, at::kLong), 1.0).logprob, 1e-5, "logprob");
  at::Tensor masked = at::full({2, 40}, -3.4e38f);
  masked.index_put_({1, 7}, 1.0f);
  EXPECT_NEAR(token_stats(masked, at::tensor({7, 7}, at::kLong)).entropy[0].item<float>(), std::log(40.0f), 1e-5);
  EXPECT_EQ(token_stats(masked, at::tensor({7, 7}, at::kLong)).logprob[1].item<float>(), 0.0f);
}

TEST(TokenStats, GivesMaskedTokensNoProbabilityAndNoGradient) {
  constexpr float kMasked = -std::numeric_limits<float>::infinity();
  at::Tensor logits = random_logits(2, 70, 1.0);
  logits.narrow(1, 0, 33).fill_(kMasked);
  const at::Tensor kept = logits.narrow(1, 33, 37).contiguous();
  logits.requires_grad_(true);
  const TokenStats stats = token_stats(logits, at::tensor({40, 69}, at::kLong));
  const TokenStats expected = reference(kept, at::tensor({7, 36}, at::kLong), 1.0);
  expect_close(stats.logprob, expected.logprob, 2e-6, "logprob");
  expect_close(stats.entropy, expected.entropy, 2e-6, "entropy");
  (stats.logprob + stats.entropy).sum().backward();
  EXPECT_EQ(logits.grad().narrow(1, 0, 33).abs().max().item<float>(), 0.0f);
  EXPECT_FALSE(logits.grad().isnan().any().item<bool>());
}

TEST(TokenStats, PassesNotANumberOn) {
  for (const std::int64_t at : {0, 16, 40, 49}) {
    at::Tensor logits = random_logits(2, 50, 1.0);
    logits.index_put_({1, at}, std::numeric_limits<float>::quiet_NaN());
    const TokenStats stats = token_stats(logits, at::tensor({3, 3}, at::kLong));
    EXPECT_FALSE(stats.logprob[0].isnan().item<bool>());
    EXPECT_TRUE(stats.logprob[1].isnan().item<bool>()) << at;
    EXPECT_TRUE(stats.entropy[1].isnan().item<bool>()) << at;
  }
}

TEST(TokenStats, ReadsRowsOfALargerTensorInPlace) {
  const at::Tensor whole = random_logits(6, 300, 2.0);
  const at::Tensor part = whole.narrow(1, 5, 200);
  const at::Tensor targets = random_targets(6, 200);
  EXPECT_TRUE(token_stats(part, targets).logprob.equal(token_stats(part.contiguous(), targets).logprob));
  const at::Tensor turned = whole.t();
  const at::Tensor more_targets = random_targets(300, 6);
  EXPECT_TRUE(token_stats(turned, more_targets).logprob.equal(token_stats(turned.contiguous(), more_targets).logprob));
}

TEST(TokenStats, TakesNoRows) {
  const TokenStats stats = token_stats(at::empty({0, 8}), at::empty({0}, at::kLong));
  EXPECT_EQ(stats.entropy.numel(), 0);
}

TEST(TokenStats, DoesNotDependOnTheNumberOfThreads) {
  const at::Tensor logits = random_logits(64, 5000, 3.0), targets = random_targets(64, 5000);
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const TokenStats one = token_stats(logits, targets);
  at::set_num_threads(4);
  const TokenStats four = token_stats(logits, targets);
  at::set_num_threads(threads);
  EXPECT_TRUE(one.logprob.equal(four.logprob));
  EXPECT_TRUE(one.entropy.equal(four.entropy));
}

std::string invalid_message(const at::Tensor& logits, const at::Tensor& targets, double temperature = 1.0) {
  try {
    token_stats(logits, targets, temperature);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "no error";
}

TEST(TokenStats, SaysWhatIsWrongWithItsArguments) {
  const at::Tensor logits = at::zeros({2, 5}), targets = at::zeros({2}, at::kLong);
  EXPECT_THAT(invalid_message(at::zeros({5}), targets), testing::HasSubstr("[tokens, vocabulary]"));
  EXPECT_THAT(invalid_message(logits.to(at::kDouble), targets), testing::HasSubstr("got Double [2, 5] on cpu"));
  EXPECT_THAT(invalid_message(logits, at::zeros({3}, at::kLong)), testing::HasSubstr("targets of shape [2]"));
  EXPECT_THAT(invalid_message(logits, targets, 0.0), testing::HasSubstr("temperature above 0, got 0"));
  EXPECT_THAT(invalid_message(logits, at::tensor({1, 5}, at::kLong)),
              testing::HasSubstr("targets from 0 to 4, but number 1 is 5"));
  EXPECT_THAT(invalid_message(logits, at::tensor({1, -1}, at::kLong)), testing::HasSubstr("number 1 is -1"));
}

TEST(OnlineSoftmax, MergesInAnyOrder) {
  const std::vector<float> numbers = {-3e38f, 2.0f, 2.5f, -7.0f, 90.0f, -INFINITY, 89.0f};
  OnlineSoftmax forward, backward, halves, rest;
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    const float other = numbers[numbers.size() - 1 - i];
    forward.merge({numbers[i], numbers[i] == -INFINITY ? 0.0f : 1.0f, 0});
    backward.merge({other, other == -INFINITY ? 0.0f : 1.0f, 0});
    (i < 4 ? halves : rest).merge({numbers[i], numbers[i] == -INFINITY ? 0.0f : 1.0f, 0});
  }
  halves.merge(rest);
  const double logsumexp = 90.0 + std::log1p(std::exp(-1.0));
  for (const OnlineSoftmax& state : {forward, backward, halves}) {
    EXPECT_NEAR(state.logsumexp(), logsumexp, 1e-5);
    EXPECT_NEAR(state.entropy(), logsumexp - (90.0 * std::exp(90.0 - logsumexp) + 89.0 * std::exp(89.0 - logsumexp)),
                1e-6);
  }
}

TEST(Cuda, SaysWhyItIsUnavailable) {
  const std::string reason = cuda_unavailable_reason();
  if (reason.empty()) GTEST_SKIP() << "this machine has CUDA";
  EXPECT_THAT(reason, testing::HasSubstr("CUDA"));
  try {
    cuda_kernels();
    FAIL() << "no error";
  } catch (const std::runtime_error& error) {
    EXPECT_EQ(error.what(), reason);
  }
}

class TokenStatsGpu : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    const std::string reason = cuda_unavailable_reason();
    if (!reason.empty()) GTEST_SKIP() << reason;
  }
};

TEST_P(TokenStatsGpu, EqualsTheCpu) {
  const Case& c = GetParam();
  const at::Tensor logits = random_logits(c.rows, c.classes, c.spread).to(c.type);
  const at::Tensor targets = random_targets(c.rows, c.classes);
  const at::Tensor weights = at::randn({3, c.rows}, generator(19));
  const TokenStats on_cpu = token_stats(logits, targets, c.temperature);
  const at::Tensor cpu_gradient = token_stats_gradient(logits, targets, on_cpu, {weights[0], weights[1], weights[2]});

  const at::Tensor gpu_logits = logits.cuda(), gpu_targets = targets.cuda(), gpu_weights = weights.cuda();
  const TokenStats on_gpu = token_stats(gpu_logits, gpu_targets, c.temperature);
  expect_close(on_gpu.logprob.cpu(), on_cpu.logprob, 1e-5, "logprob");
  expect_close(on_gpu.logsumexp.cpu(), on_cpu.logsumexp, 1e-5, "logsumexp");
  expect_close(on_gpu.entropy.cpu(), on_cpu.entropy, 2e-5, "entropy");
  const at::Tensor gpu_gradient =
      token_stats_gradient(gpu_logits, gpu_targets, on_gpu, {gpu_weights[0], gpu_weights[1], gpu_weights[2]});
  expect_close(gpu_gradient.cpu(), cpu_gradient, c.type == at::kFloat ? 2e-5 : 8e-3 / c.temperature, "gradient");
  // A row that does not start on 16 bytes.
  if (c.classes > 2)
    expect_close(
        token_stats(gpu_logits.narrow(1, 1, c.classes - 1), gpu_targets.clamp_max(c.classes - 2)).entropy.cpu(),
        token_stats(logits.narrow(1, 1, c.classes - 1), targets.clamp_max(c.classes - 2)).entropy, 2e-5,
        "entropy of unaligned rows");
}

INSTANTIATE_TEST_SUITE_P(Shapes, TokenStatsGpu,
                         testing::Values(Case{1, 1, 1.0, 1.0, at::kFloat}, Case{3, 15, 1.0, 2.0, at::kFloat},
                                         Case{37, 4099, 1.3, 3.0, at::kFloat}, Case{2, 151936, 1.0, 4.0, at::kFloat},
                                         Case{9, 2049, 1.0, 3.0, at::kBFloat16},
                                         Case{5, 151936, 0.7, 3.0, at::kBFloat16}));

}  // namespace
}  // namespace thinkvg::nn
