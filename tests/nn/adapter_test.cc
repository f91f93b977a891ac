#include "thinkvg/nn/adapter.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "thinkvg/nn/checkpoint.h"
#include "thinkvg/nn/layers.h"

namespace thinkvg::nn {
namespace {

std::shared_ptr<Linear> adapted_linear(double dropout) {
  const auto linear = std::make_shared<Linear>(6, 5, true);
  linear->weight.set_data(at::randn({5, 6}));
  linear->bias.set_data(at::randn({5}));
  auto adapter = std::make_shared<LowRankAdapter>();
  adapter->down = at::randn({2, 6}).set_requires_grad(true);
  adapter->up = at::randn({5, 2}).set_requires_grad(true);
  adapter->scale = 1.5;
  adapter->dropout = dropout;
  adapter->key = 7;
  linear->adapter = adapter;
  return linear;
}

TEST(AdapterTest, AddsItsScaledProductAndCanBeOff) {
  at::manual_seed(3);
  const auto linear = adapted_linear(0.5);
  const at::Tensor x = at::randn({4, 6});
  const at::Tensor base = at::linear(x, linear->weight, linear->bias);
  const at::Tensor change = x.matmul(linear->adapter->down.t()).matmul(linear->adapter->up.t()) * 1.5;
  EXPECT_TRUE(at::allclose(linear->forward(x), base + change, 1e-5, 1e-5));  // no dropout outside of training
  {
    const AdaptersOff off;
    EXPECT_FALSE(adapters_on());
    EXPECT_TRUE(at::equal(linear->forward(x), base));
  }
  EXPECT_TRUE(adapters_on());
}

TEST(AdapterTest, DropoutFollowsItsKey) {
  at::manual_seed(4);
  const auto linear = adapted_linear(0.5);
  const at::Tensor x = at::ones({64, 6});
  const auto draw = [&](std::uint64_t key) {
    const DropoutStream stream(key);
    return linear->forward(x).detach();
  };
  EXPECT_TRUE(at::equal(draw(1), draw(1)));
  EXPECT_FALSE(at::equal(draw(1), draw(2)));
  EXPECT_FALSE(at::equal(draw(1), linear->forward(x).detach()));
}

// Two layers with dropout: the repeated forward pass must drop the same inputs.
TEST(CheckpointTest, GradientsEqualThoseOfAPlainCall) {
  at::manual_seed(5);
  const auto first = adapted_linear(0.3);
  const auto second = std::make_shared<Linear>(5, 3, false);
  second->weight.set_data(at::randn({3, 5}));
  const at::Tensor x = at::randn({4, 6}).set_requires_grad(true);
  int calls = 0;
  const auto block = [&](const at::Tensor& input) {
    ++calls;
    return second->forward(at::tanh(first->forward(input)));
  };
  std::vector<at::Tensor> sources = trained_tensors(*first);
  EXPECT_EQ(sources.size(), 4u);  // weight, bias, both halves of the adapter
  for (const at::Tensor& tensor : trained_tensors(*second)) sources.push_back(tensor);
  std::vector<at::Tensor> all = sources;
  all.push_back(x);
  const auto gradients = [&](bool checkpointed) {
    at::Tensor y;
    {
      const DropoutStream stream(11);
      y = checkpointed ? checkpoint(block, x, sources) : block(x);
    }
    return torch::autograd::grad({y.square().sum()}, all);
  };
  const auto plain = gradients(false);
  EXPECT_EQ(calls, 1);
  const auto repeated = gradients(true);
  EXPECT_EQ(calls, 3);
  for (std::size_t i = 0; i < plain.size(); ++i) EXPECT_TRUE(at::equal(plain[i], repeated[i])) << i;
}

TEST(CheckpointTest, WithoutGradientsTheBlockRunsOnce) {
  const at::NoGradGuard no_grad;
  int calls = 0;
  const auto block = [&](const at::Tensor& input) {
    ++calls;
    return input * 2;
  };
  EXPECT_TRUE(at::equal(checkpoint(block, at::ones({2}), {}), at::full({2}, 2.0)));
  EXPECT_EQ(calls, 1);
}

}  // namespace
}  // namespace thinkvg::nn
