#include "thinkvg/nn/layers.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <cmath>
#include <functional>

#include "nn/cpu/layers.h"
#include "thinkvg/nn/rotary.h"

namespace thinkvg::nn {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

double largest(const at::Tensor& a, const at::Tensor& b) { return (a - b).abs().max().item<double>(); }

// Central differences of sum(weights * f(x)) against the gradient that backward gives.
void expect_gradient(const std::function<at::Tensor(const at::Tensor&)>& f, const at::Tensor& start) {
  at::Tensor x = start.detach().clone().requires_grad_();
  const at::Tensor output = f(x);
  const at::Tensor weights = at::randn(output.sizes(), output.options());
  (output * weights).sum().backward();
  const at::Tensor gradient = x.grad().clone();
  const at::NoGradGuard no_grad;
  double* data = x.mutable_data_ptr<double>();
  for (std::int64_t i = 0; i < x.numel(); ++i) {
    const double kept = data[i];
    data[i] = kept + 1e-5;
    const double above = (f(x) * weights).sum().item<double>();
    data[i] = kept - 1e-5;
    const double below = (f(x) * weights).sum().item<double>();
    data[i] = kept;
    ASSERT_NEAR((above - below) / 2e-5, gradient.flatten()[i].item<double>(), 1e-7) << "entry " << i;
  }
}

template <class Layer>
void randomise(Layer& layer) {
  layer.to(at::kDouble);
  const at::NoGradGuard no_grad;
  for (at::Tensor& parameter : layer.parameters()) parameter.normal_();
}

TEST(RmsNorm, EqualsItsFormula) {
  at::manual_seed(0);
  RmsNorm norm(12, 1e-3);
  randomise(norm);
  const at::Tensor x = at::randn({5, 12}, at::kDouble);
  const at::Tensor expected = x / (x.pow(2).mean(-1, true) + 1e-3).sqrt() * norm.weight;
  EXPECT_LE(largest(norm.forward(x), expected), 1e-12);
  expect_gradient([&](const at::Tensor& input) { return norm.forward(input); }, x);
}

TEST(GatedMlp, EqualsItsFormulaAndNamesItsParameters) {
  at::manual_seed(0);
  GatedMlp mlp(6, 10, true);
  randomise(mlp);
  const auto parameters = mlp.named_parameters();
  const at::Tensor x = at::randn({4, 6}, at::kDouble);
  const auto linear = [&](const at::Tensor& input, const std::string& name) {
    return at::linear(input, parameters[name + ".weight"], parameters[name + ".bias"]);
  };
  const at::Tensor gate = linear(x, "gate_proj");
  const at::Tensor expected = linear(gate * gate.sigmoid() * linear(x, "up_proj"), "down_proj");
  EXPECT_LE(largest(mlp.forward(x), expected), 1e-12);
  expect_gradient([&](const at::Tensor& input) { return mlp.forward(input); }, x);
}

// The fused fp32 kernels against the same layer in fp64; widths that fill vectors and that do not, values far out.
TEST(CpuLayers, EqualTheirDoublePrecision) {
  at::manual_seed(0);
  for (const std::int64_t width : {1, 15, 16, 37, 160}) {
    for (const std::int64_t num_rows : {1, 7, 1100}) {
      const at::Tensor gate = at::randn({num_rows, width}) * 20;
      const at::Tensor up = at::randn({num_rows, width});
      const at::Tensor of_out = at::randn({num_rows, width});
      gate.flatten()[0] = 200;
      gate.flatten()[gate.numel() - 1] = -200;
      RmsNorm norm(width, 1e-5);
      const at::Tensor weight = at::randn({width});
      const auto run = [&](at::ScalarType type) {
        norm.zero_grad();
        norm.to(type);
        norm.weight.set_data(weight.to(type));
        const at::Tensor g = gate.to(type, false, true).requires_grad_();
        const at::Tensor u = up.to(type, false, true).requires_grad_();
        const at::Tensor product = type == at::kFloat ? cpu_gated_product(g, u) : at::silu(g) * u;
        const at::Tensor normed = norm.forward(product);
        (normed * of_out.to(type)).sum().backward();
        return std::vector<at::Tensor>{product.detach(), normed.detach(), g.grad(), u.grad(), norm.weight.grad()};
      };
      const auto got = run(at::kFloat);
      const auto expected = run(at::kDouble);
      for (std::size_t i = 0; i < got.size(); ++i) {
        const double scale = expected[i].abs().max().item<double>() + 1e-3;
        EXPECT_EQ(got[i].scalar_type(), at::kFloat);
        EXPECT_LE(largest(got[i].to(at::kDouble), expected[i]) / scale, 1e-5)
            << "tensor " << i << ", " << num_rows << " rows of " << width;
      }
    }
  }
}

// bf16 numbers are computed as fp32 and rounded once: as close to the double precision of the same numbers as bf16 is.
TEST(CpuLayers, Bfloat16EqualsItsDoublePrecision) {
  at::manual_seed(1);
  for (const std::int64_t width : {1, 15, 16, 37, 1500}) {
    for (const std::int64_t num_rows : {1, 7, 700}) {
      const auto random = [&] { return at::randn({num_rows, width}).to(at::kBFloat16); };
      const at::Tensor gate = random() * 4, up = random(), input = random() * 3, of_out = random();
      RmsNorm norm(width, 1e-5);
      const at::Tensor weight = at::randn({width}).to(at::kBFloat16);
      const auto run = [&](at::ScalarType type) {
        norm.zero_grad();
        norm.to(type);
        norm.weight.set_data(weight.to(type));
        const auto leaf = [&](const at::Tensor& tensor) { return tensor.to(type, false, true).requires_grad_(); };
        const at::Tensor g = leaf(gate), u = leaf(up), x = leaf(input);
        const at::Tensor product = type == at::kBFloat16 ? cpu_gated_product(g, u) : at::silu(g) * u;
        const at::Tensor normed = norm.forward(x);
        torch::autograd::backward({product, normed}, {of_out.to(type), of_out.to(type)});
        const at::NoGradGuard no_grad;
        EXPECT_TRUE(type != at::kBFloat16 || norm.forward(x).equal(normed)) << "with and without gradient";
        return std::vector<at::Tensor>{product.detach(), normed.detach(), g.grad(),
                                       u.grad(),         x.grad(),        norm.weight.grad()};
      };
      const auto got = run(at::kBFloat16), expected = run(at::kDouble);
      for (std::size_t i = 0; i < got.size(); ++i) {
        EXPECT_EQ(got[i].scalar_type(), at::kBFloat16);
        const double scale = expected[i].abs().max().item<double>() + 1e-3;
        EXPECT_LE(largest(got[i].to(at::kDouble), expected[i]) / scale, 0x1p-8 + 1e-4)
            << "tensor " << i << ", " << num_rows << " rows of " << width;
      }
    }
  }
}

TEST(CpuLayers, NotANumberStays) {
  const at::Tensor bad = at::full({3}, std::nan(""));
  EXPECT_TRUE(cpu_gated_product(bad, at::ones(3)).isnan().all().item<bool>());
  EXPECT_TRUE(cpu_rms_norm(bad, at::ones(3), 1e-6).isnan().all().item<bool>());
}

TEST(Rotary, SectionsGoToTheirAxes) {
  // Head width 8: frequencies 1, 10^-0.5, 0.1, 10^-1.5 at theta 100, dealt 1, 2, 1 to time, height, width.
  const at::Tensor positions = at::tensor({1, 2, 3}, at::kLong).view({3, 1});
  const RotaryTable table = multimodal_rotary(positions, {1, 2, 1}, 100.0, 8);
  const double angles[] = {1.0, 2 * std::pow(100.0, -0.25), 2 * 0.1, 3 * std::pow(100.0, -0.75)};
  for (int i = 0; i < 4; ++i) {
    EXPECT_NEAR(table.cos[0][i].item<double>(), std::cos(angles[i]), 1e-6) << i;
    EXPECT_NEAR(table.sin[0][i].item<double>(), std::sin(angles[i]), 1e-6) << i;
  }
  EXPECT_THAT(
      [&] {
        multimodal_rotary(positions, {1, 1, 1}, 100.0, 8);
      },
      ThrowsMessage<std::invalid_argument>(HasSubstr("sum to 3")));
}

TEST(Rotary, RowsAndColumnsTurnApart) {
  const at::Tensor coordinates = at::tensor({3, 5}, at::kLong).view({2, 1});
  const RotaryTable table = axial_rotary(coordinates, 100.0, 8);
  const double angles[] = {3.0, 0.3, 5.0, 0.5};
  for (int i = 0; i < 4; ++i) EXPECT_NEAR(table.cos[0][i].item<double>(), std::cos(angles[i]), 1e-6) << i;
}

TEST(Rotary, TurnsPairsAndKeepsLengths) {
  at::manual_seed(0);
  const at::Tensor positions = at::arange(5).expand({3, 5});
  const RotaryTable table = multimodal_rotary(positions, {1, 1, 1}, 50.0, 6);
  const at::Tensor x = at::randn({5, 4, 6}, at::kDouble);
  const at::Tensor cos = at::cat({table.cos, table.cos}, 1).unsqueeze(1);
  const at::Tensor sin = at::cat({table.sin, table.sin}, 1).unsqueeze(1);
  const at::Tensor half_turned = at::cat({-x.slice(2, 3), x.slice(2, 0, 3)}, 2);
  const at::Tensor got = rotate(x, table);
  EXPECT_LE(largest(got, x * cos + half_turned * sin), 1e-12);
  EXPECT_LE(largest(got.norm(2, -1), x.norm(2, -1)), 1e-6);
  expect_gradient([&](const at::Tensor& input) { return rotate(input, table); }, x);
  // A strided view of a larger tensor.
  const at::Tensor wide = at::randn({5, 3, 4, 6}, at::kDouble);
  EXPECT_TRUE(rotate(wide.select(1, 1), table).equal(rotate(wide.select(1, 1).contiguous(), table)));
  EXPECT_THAT(
      [&] {
        rotate(at::randn({4, 4, 6}), table);
      },
      ThrowsMessage<std::invalid_argument>(HasSubstr("does not fit")));
}

}  // namespace
}  // namespace thinkvg::nn
