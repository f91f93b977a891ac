#include "thinkvg/nn/head_stats.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <limits>

namespace thinkvg::nn {
namespace {

struct Case {
  at::Tensor hidden = at::randn({37, 16}).set_requires_grad(true);
  at::Tensor weight = at::randn({50, 16}).set_requires_grad(true);
  at::Tensor targets = at::randint(3, 50, {37});
  at::Tensor banned = at::tensor({0, 2}, at::kLong);
  at::Tensor factors = at::randn({37});

  // The loss, and its gradients with respect to hidden and weight.
  std::vector<at::Tensor> of(const TokenStats& stats) const {
    const at::Tensor loss = (stats.logprob * factors).sum() + (stats.entropy * factors.square()).sum();
    std::vector<at::Tensor> result = torch::autograd::grad({loss}, {hidden, weight});
    result.push_back(loss.detach());
    return result;
  }
  TokenStats plain(double temperature) const {
    const at::Tensor logits = at::linear(hidden, weight).index_fill(1, banned, -std::numeric_limits<float>::infinity());
    return token_stats(logits, targets, temperature);
  }
};

TEST(HeadStatsTest, EqualsTheStatisticsOfAllLogitsAtOnce) {
  at::manual_seed(1);
  const Case c;
  for (const std::int64_t chunk_rows : {1, 10, 37, 0}) {
    const std::vector<at::Tensor> expected = c.of(c.plain(0.7));
    const std::vector<at::Tensor> got =
        c.of(head_token_stats(c.hidden, c.weight, c.targets, {0.7, c.banned, chunk_rows}));
    for (std::size_t i = 0; i < expected.size(); ++i)
      EXPECT_LT((expected[i] - got[i]).abs().max().item<double>(), 1e-4) << "chunk " << chunk_rows << " result " << i;
  }
}

TEST(HeadStatsTest, TakesBf16AndAFixedHead) {
  at::manual_seed(2);
  const at::Tensor hidden = at::randn({9, 16}).to(at::kBFloat16).set_requires_grad(true);
  const at::Tensor weight = at::randn({30, 16}).to(at::kBFloat16);
  const at::Tensor targets = at::randint(0, 30, {9});
  const TokenStats got = head_token_stats(hidden, weight, targets, {});
  const TokenStats expected = token_stats(at::linear(hidden, weight), targets);
  EXPECT_TRUE(at::equal(got.logprob, expected.logprob));
  const auto gradient = torch::autograd::grad({got.logprob.sum()}, {hidden});
  EXPECT_EQ(gradient[0].scalar_type(), at::kBFloat16);
  EXPECT_TRUE(at::allclose(gradient[0].to(at::kFloat),
                           torch::autograd::grad({expected.logprob.sum()}, {hidden})[0].to(at::kFloat), 1e-2, 1e-2));
}

TEST(HeadStatsTest, RefusesShapesThatDoNotFit) {
  EXPECT_THROW(head_token_stats(at::zeros({2, 4}), at::zeros({3, 5}), at::zeros({2}, at::kLong), {}),
               std::invalid_argument);
}

}  // namespace
}  // namespace thinkvg::nn
