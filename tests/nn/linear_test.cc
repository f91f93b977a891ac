#include "thinkvg/nn/linear.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>

#include "nn/cpu/stepped_products.h"
#include "thinkvg/nn/exact.h"
#include "thinkvg/nn/layers.h"

namespace thinkvg::nn {
namespace {

double largest_error(const at::Tensor& result, const at::Tensor& expected) {
  return ((result.to(at::kDouble) - expected).abs() / (expected.abs() + 1)).max().item<double>();
}

at::Tensor exact_product(const at::Tensor& input, const LinearWeights& part) {
  const at::Tensor product = input.to(at::kDouble).matmul(part.weight.to(at::kDouble).t());
  return part.bias.defined() ? product + part.bias.to(at::kDouble) : product;
}

TEST(Linear, FewRowsEqualTheProductInDoublePrecision) {
  const at::NoGradGuard no_grad;
  at::manual_seed(1);
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    const double tolerance = type == at::kFloat ? 1e-5 : 1e-2;
    for (const std::int64_t width : {1, 7, 16, 33, 256, 900}) {
      for (const std::int64_t out : {1, 3, 10, 301}) {
        const LinearWeights part{at::randn({out, width}).to(type) * 0.1, at::randn({out}).to(type)};
        const LinearWeights other{at::randn({2 * out, width}).to(type) * 0.1, at::Tensor()};
        for (const std::int64_t rows : {1, 2, 5, 6, 13, 40}) {
          const at::Tensor input = at::randn({rows, width}).to(type), residual = at::randn({rows, out}).to(type);
          EXPECT_LT(largest_error(linear(input, part.weight, part.bias), exact_product(input, part)), tolerance);
          EXPECT_LT(largest_error(linear(input, part.weight, part.bias, residual),
                                  exact_product(input, part) + residual.to(at::kDouble)),
                    tolerance);
          const LinearWeights both[] = {part, other};
          const std::vector<at::Tensor> together = linears(input, both);
          EXPECT_TRUE(together[0].equal(linear(input, part.weight, part.bias)));
          EXPECT_TRUE(together[1].equal(nn::linear(input, other.weight)));
          const LinearWeights gate = part, up{part.weight * -0.5, part.bias};
          ASSERT_TRUE(has_gated_linear(input, gate, up));
          EXPECT_LT(largest_error(gated_linear(input, gate, up),
                                  at::silu(exact_product(input, gate)) * exact_product(input, up)),
                    2 * tolerance);
        }
      }
    }
  }
}

TEST(Linear, ARowDoesNotDependOnTheOthers) {
  const at::NoGradGuard no_grad;
  at::manual_seed(2);
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    const at::Tensor weight = at::randn({123, 77}).to(type), bias = at::randn({123}).to(type);
    const at::Tensor input = at::randn({45, 77}).to(type);
    const at::Tensor all = linear(input, weight, bias);
    for (const std::int64_t rows : {1, 2, 3, 7, 30})
      for (const std::int64_t begin : {0, 4, 15})
        EXPECT_TRUE(linear(input.narrow(0, begin, rows), weight, bias).equal(all.narrow(0, begin, rows)));
  }
}

TEST(Linear, ExactRowsDoNotDependOnTheOthersAndHaveGradients) {
  const ExactForward exact;
  at::manual_seed(3);
  const at::Tensor weight = at::randn({50, 33}).requires_grad_(), bias = at::randn({50}).requires_grad_();
  const at::Tensor input = at::randn({700, 33}).requires_grad_();
  const at::Tensor all = linear(input, weight, bias);
  EXPECT_TRUE(linear(input.narrow(0, 650, 1), weight, bias).equal(all.narrow(0, 650, 1)));
  EXPECT_TRUE(linear(input.narrow(0, 100, 333), weight, bias).equal(all.narrow(0, 100, 333)));
  const at::Tensor factors = at::randn({700, 50});
  const auto gradients = [&](const at::Tensor& output) {
    return torch::autograd::grad({(output * factors).sum()}, {input, weight, bias});
  };
  const auto own = gradients(all), expected = gradients(at::linear(input, weight, bias));
  for (std::size_t i = 0; i < own.size(); ++i) EXPECT_TRUE(own[i].allclose(expected[i], 1e-4, 1e-4));
}

// bf16 in more rows than the row kernels take, with one and with several pieces of the weight: the product in double
// precision, rounded once, and gradients as close.
TEST(Linear, ManyRowsOfBf16EqualTheProductInDoublePrecision) {
  at::manual_seed(6);
  for (const auto& [width, out] : {std::pair<std::int64_t, std::int64_t>{33, 70}, {2048, 2100}, {96, 1}}) {
    const auto random = [&](at::IntArrayRef sizes) { return at::randn(sizes).to(at::kBFloat16); };
    const at::Tensor input = random({2, 70, width}).requires_grad_(), bias = random({out}).requires_grad_();
    const at::Tensor weight = (random({out, width}) / std::sqrt(static_cast<double>(width))).detach().requires_grad_();
    const at::Tensor residual = random({2, 70, out}), factors = random({2, 70, out});
    const auto wide = [](const at::Tensor& tensor) { return tensor.detach().to(at::kDouble).requires_grad_(); };
    const at::Tensor wide_input = wide(input), wide_weight = wide(weight), wide_bias = wide(bias);
    const at::Tensor exact = at::linear(wide_input, wide_weight, wide_bias);
    const at::Tensor got = linear(input, weight, bias);
    ASSERT_EQ(got.scalar_type(), at::kBFloat16);
    ASSERT_EQ(got.sizes(), exact.sizes());
    // Half of the last place of bf16, and what fp32 loses in the sum.
    EXPECT_LE(largest_error(got, exact), 0x1p-8 + 1e-5) << width;
    const auto gradients = torch::autograd::grad({got}, {input, weight, bias}, {factors});
    const auto expected =
        torch::autograd::grad({exact}, {wide_input, wide_weight, wide_bias}, {factors.to(at::kDouble)});
    for (std::size_t i = 0; i < gradients.size(); ++i) {
      EXPECT_EQ(gradients[i].scalar_type(), at::kBFloat16);
      ASSERT_EQ(gradients[i].sizes(), expected[i].sizes());
      EXPECT_LE(largest_error(gradients[i], expected[i]), 0x1p-8 + 1e-4) << width << " gradient " << i;
    }
    const at::NoGradGuard no_grad;
    EXPECT_TRUE(linear(input, weight, bias).equal(got));
    // LibTorch's own products, where the processor has fast ones of bf16, are rounded before the residual comes on top.
    EXPECT_LE(largest_error(linear(input, weight, bias, residual), exact + residual.to(at::kDouble)), 0x1p-7 + 1e-5);
    EXPECT_LE(largest_error(nn::linear(input, weight), at::linear(wide_input, wide_weight)), 0x1p-8 + 1e-5);
  }
}

// Numbers of rows below, at and between the steps.
TEST(SteppedProducts, EqualTheProductInDoublePrecision) {
  at::manual_seed(7);
  for (const std::int64_t rows : {1, 64, 65, 255, 256, 257, 320, 777, 1024}) {
    const at::Tensor left = at::randn({rows, 40}).to(at::kBFloat16), right = at::randn({rows, 24}).to(at::kBFloat16);
    const at::Tensor weight = at::randn({24, 40}).to(at::kBFloat16);
    const auto wide = [](const at::Tensor& tensor) { return tensor.to(at::kDouble); };
    EXPECT_LE(largest_error(stepped_product(right, weight), wide(right).mm(wide(weight))), 0x1p-8) << rows;
    EXPECT_LE(largest_error(stepped_product(left, weight.t()), wide(left).mm(wide(weight).t())), 0x1p-8) << rows;
    const at::Tensor sum = wide(left).t().mm(wide(right));
    // Two parts and their sum are rounded, each by half of a last place.
    EXPECT_LE((wide(stepped_sum(left, right)) - sum).abs().max().item<double>(),
              3 * 0x1p-9 * sum.abs().max().item<double>())
        << rows;
  }
}

TEST(GatedMlp, ExactTrainingPassEqualsTheDecodingPass) {
  const ExactForward exact;
  at::manual_seed(4);
  GatedMlp mlp(40, 53, false);
  for (at::Tensor& parameter : mlp.parameters()) {
    const at::NoGradGuard no_grad;
    parameter.normal_();
  }
  const at::Tensor input = at::randn({300, 40});
  const at::Tensor trained = mlp.forward(input);
  EXPECT_TRUE(trained.requires_grad());
  const at::NoGradGuard no_grad;
  EXPECT_TRUE(mlp.forward(input).equal(trained.detach()));
  for (const std::int64_t row : {0, 7, 299})
    EXPECT_TRUE(mlp.forward(input.narrow(0, row, 1)).equal(trained.detach().narrow(0, row, 1)));
}

TEST(RmsNorm, ARowDoesNotDependOnTheOthersNorOnGradients) {
  at::manual_seed(5);
  RmsNorm norm(83, 1e-6);
  {
    const at::NoGradGuard no_grad;
    norm.weight.normal_();
  }
  const at::Tensor input = at::randn({400, 83});
  const at::Tensor trained = norm.forward(input).detach();
  const at::NoGradGuard no_grad;
  EXPECT_TRUE(norm.forward(input).equal(trained));
  EXPECT_TRUE(norm.forward(input.narrow(0, 33, 1)).equal(trained.narrow(0, 33, 1)));
  norm.weight.set_data(norm.weight.to(at::kBFloat16));
  const at::Tensor narrow = input.to(at::kBFloat16);
  const at::Tensor wide = narrow.to(at::kDouble);
  const at::Tensor expected = wide * (wide.square().mean(-1, true) + 1e-6).rsqrt() * norm.weight.to(at::kDouble);
  EXPECT_LT(largest_error(norm.forward(narrow), expected), 1e-2);
}

}  // namespace
}  // namespace thinkvg::nn
