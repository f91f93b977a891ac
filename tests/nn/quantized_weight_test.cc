#include "thinkvg/nn/quantized_weight.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "nn/cpu/quantized_kernel.h"
#include "thinkvg/nn/layers.h"
#include "thinkvg/nn/linear.h"

namespace thinkvg::nn {
namespace {

constexpr Quantization kKinds[] = {Quantization::int8, Quantization::int4};

// Deviation of a from b, next to that of b.
double relative_error(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor exact = b.to(at::kDouble);
  return ((a.to(at::kDouble) - exact).square().sum() / exact.square().sum()).sqrt().item<double>();
}

// Numbers of few bits with their scales: what the kernels multiply.
struct RoundedInputs {
  std::vector<std::int8_t> values;
  std::vector<float> scales;
  std::vector<std::int32_t> sums;

  RoundedInputs(const at::Tensor& input, int bits, const cpu::QuantizedKernels& kernels) {
    const std::int64_t num_rows = input.size(0), width = input.size(1), groups = cpu::num_groups(width, bits);
    values.resize(static_cast<std::size_t>(num_rows * groups * cpu::group_size(bits)));
    scales.resize(static_cast<std::size_t>(num_rows * groups));
    sums.resize(scales.size());
    kernels.quantize_inputs({.input = input.const_data_ptr<float>(),
                             .num_rows = num_rows,
                             .width = width,
                             .bits = bits,
                             .values = values.data(),
                             .scales = scales.data(),
                             .sums = sums.data()});
  }
  at::Tensor in_double(std::int64_t width, int bits) const {
    const auto groups = cpu::num_groups(width, bits), size = cpu::group_size(bits);
    const at::Tensor numbers = at::tensor(at::ArrayRef<std::int8_t>(values), at::kChar).to(at::kDouble);
    const at::Tensor factors = at::tensor(at::ArrayRef<float>(scales), at::kFloat).to(at::kDouble);
    return (numbers.view({-1, size}) * factors.view({-1, 1})).view({-1, groups * size}).narrow(1, 0, width);
  }
};

at::Tensor products(const cpu::QuantizedKernels& kernels, const QuantizedWeight& weight, const RoundedInputs& inputs,
                    std::int64_t begin, std::int64_t end) {
  const std::int64_t groups = cpu::num_groups(weight.in(), weight.bits());
  const std::int64_t num_rows = std::ssize(inputs.scales) / groups;
  at::Tensor out = at::full({num_rows, end - begin}, -7.0, at::kFloat);
  kernels.products({.bits = weight.bits(),
                    .values = inputs.values.data(),
                    .scales = inputs.scales.data(),
                    .sums = inputs.sums.data(),
                    .blocks = weight.blocks(),
                    .num_rows = num_rows,
                    .width = weight.in(),
                    .begin = begin,
                    .end = end,
                    .out = out.mutable_data_ptr<float>(),
                    .out_stride = end - begin});
  return out;
}

TEST(QuantizedWeight, StandsForNearlyTheSameWeights) {
  at::manual_seed(1);
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16})
    for (const std::int64_t width : {1, 31, 64, 200})
      for (const std::int64_t out : {1, 32, 75}) {
        const at::Tensor weight = (at::randn({out, width}) * 0.05).to(type);
        const at::Tensor near = QuantizedWeight(weight, Quantization::int8).dequantized();
        for (std::int64_t begin = 0; begin < width; begin += 64) {
          const std::int64_t count = std::min<std::int64_t>(64, width - begin);
          const at::Tensor group = weight.narrow(1, begin, count).to(at::kFloat);
          // Half a step; the scale is rounded up to bf16.
          const at::Tensor bound = group.abs().amax(1, true) * (0.5 / 127 * (1 + 1.0 / 128) * 1.0001);
          EXPECT_TRUE(((near.narrow(1, begin, count) - group).abs() <= bound).all().item<bool>());
        }
        const at::Tensor four = QuantizedWeight(weight, Quantization::int4).dequantized();
        for (std::int64_t begin = 0; begin < width; begin += 32) {
          const std::int64_t count = std::min<std::int64_t>(32, width - begin);
          const at::Tensor group = weight.narrow(1, begin, count).to(at::kFloat);
          // Half a step of a range of twice the largest, or what an end that is drawn in leaves out: 15 % of it; and
          // the rounding of both to bf16.
          const at::Tensor bound = group.abs().amax(1, true) * 0.2;
          EXPECT_TRUE(((four.narrow(1, begin, count) - group).abs() <= bound).all().item<bool>());
        }
      }
}

TEST(QuantizedWeight, ErrorsAreThoseOfTheHeader) {
  at::manual_seed(2);
  const at::Tensor weight = at::randn({256, 512}) * 0.02;
  EXPECT_LT(relative_error(QuantizedWeight(weight, Quantization::int8).dequantized(), weight), 0.0062);
  EXPECT_LT(relative_error(QuantizedWeight(weight, Quantization::int4).dequantized(), weight), 0.074);
}

TEST(QuantizedWeight, KeepsZerosAndSurvivesExtremes) {
  for (const Quantization kind : kKinds) {
    EXPECT_TRUE(QuantizedWeight(at::zeros({40, 70}), kind).dequantized().equal(at::zeros({40, 70})));
    const at::Tensor tiny = at::full({3, 70}, 1e-38f);
    EXPECT_LE((QuantizedWeight(tiny, kind).dequantized() - tiny).abs().max().item<float>(), 1e-38f);
    const at::Tensor large = at::full({3, 70}, 1e30f);
    EXPECT_LT(relative_error(QuantizedWeight(large, kind).dequantized(), large), 0.01);
  }
}

TEST(QuantizedWeight, RefusesWhatItCannotHold) {
  const at::Tensor weight = at::randn({4, 8});
  EXPECT_THROW(QuantizedWeight(weight, Quantization::none), std::invalid_argument);
  EXPECT_THROW(QuantizedWeight(weight[0], Quantization::int8), std::invalid_argument);
  EXPECT_THROW(QuantizedWeight(weight.to(at::kHalf), Quantization::int8), std::invalid_argument);
  EXPECT_THROW(QuantizedWeight(weight.to(at::kMeta), Quantization::int4), std::invalid_argument);
  for (const Quantization kind : kKinds)
    for (const float wrong : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      at::Tensor broken = weight.clone();
      broken[3][7] = wrong;
      EXPECT_THROW(QuantizedWeight(broken, kind), std::runtime_error);
    }
}

TEST(QuantizedKernels, AllInstructionSetsEqualDoublePrecision) {
  at::manual_seed(3);
  for (const Quantization kind : kKinds)
    for (const std::int64_t width : {1, 31, 64, 97, 300})
      for (const std::int64_t out : {1, 32, 70}) {
        const QuantizedWeight weight(at::randn({out, width}) * 0.1, kind);
        const at::Tensor exact_weight = weight.dequantized().to(at::kDouble);
        for (const std::int64_t rows : {1, 2, 3, 7, 8, 15, 70}) {
          const at::Tensor input = at::randn({rows, width});
          for (const cpu::QuantizedKernels& kernels : cpu::quantized_kernels()) {
            SCOPED_TRACE(std::string(kernels.instruction_set) + ", " + std::to_string(weight.bits()) + " bits, " +
                         std::to_string(rows) + " x " + std::to_string(width) + " x " + std::to_string(out));
            const RoundedInputs inputs(input, weight.bits(), kernels);
            const at::Tensor exact_input = inputs.in_double(width, weight.bits());
            EXPECT_LT((exact_input - input).abs().max().item<double>(), input.abs().max().item<double>() / 253);
            const at::Tensor exact = exact_input.matmul(exact_weight.t());
            EXPECT_LT((products(kernels, weight, inputs, 0, out) - exact).abs().max().item<double>(), 1e-5);
          }
        }
      }
}

TEST(QuantizedKernels, AllInstructionSetsRoundAlike) {
  at::manual_seed(4);
  const at::Tensor weight = at::randn({32, 200}), input = at::randn({9, 200}) * 3;
  for (const int bits : {8, 4}) {
    const std::int64_t num_bytes = cpu::num_groups(200, bits) * cpu::block_bytes(bits);
    std::vector<at::Tensor> weights;
    std::vector<RoundedInputs> inputs;
    for (const cpu::QuantizedKernels& kernels : cpu::quantized_kernels()) {
      std::vector<std::uint8_t> blocks(static_cast<std::size_t>(num_bytes));
      const cpu::WeightTile tile{bits, weight.const_data_ptr<float>(), 32, 200, blocks.data()};
      ASSERT_TRUE(kernels.quantize(tile));
      weights.push_back(at::empty({32, 200}));
      cpu::dequantize(tile, weights.back().mutable_data_ptr<float>());
      inputs.emplace_back(input, bits, kernels);
      // A number just between two may be rounded either way.
      EXPECT_LT(relative_error(weights.back(), weights.front()), 1e-2 / bits);
      EXPECT_LT(relative_error(inputs.back().in_double(200, bits), inputs.front().in_double(200, bits)), 1e-3);
    }
  }
}

TEST(QuantizedKernels, ANumberDoesNotDependOnTheOthers) {
  at::manual_seed(5);
  for (const Quantization kind : kKinds) {
    const QuantizedWeight weight(at::randn({150, 97}), kind);
    const at::Tensor input = at::randn({300, 97});
    const std::pair<std::int64_t, std::int64_t> outputs[] = {{0, 150}, {32, 64}, {64, 131}};
    for (const cpu::QuantizedKernels& kernels : cpu::quantized_kernels()) {
      const at::Tensor all = products(kernels, weight, RoundedInputs(input, weight.bits(), kernels), 0, 150);
      for (const std::int64_t rows : {1, 3, 11, 90})
        for (const std::int64_t first : {0, 64, 210})
          for (const auto& [begin, end] : outputs) {
            const at::Tensor part = input.narrow(0, first, rows).contiguous();
            const at::Tensor some = products(kernels, weight, RoundedInputs(part, weight.bits(), kernels), begin, end);
            EXPECT_TRUE(some.equal(all.narrow(0, first, rows).narrow(1, begin, end - begin)));
          }
    }
  }
}

TEST(QuantizedLinear, IsNearTheProductOfTheWeightsItStandsFor) {
  const at::NoGradGuard no_grad;
  at::manual_seed(6);
  for (const Quantization kind : kKinds)
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16})
      for (const std::int64_t width : {33, 256})
        for (const std::int64_t out : {40, 301}) {
          const at::Tensor matrix = (at::randn({out, width}) * 0.1).to(type), bias = at::randn({out}).to(type);
          const at::Tensor other = (at::randn({2 * out, width}) * 0.1).to(type);
          const QuantizedWeight quantized(matrix, kind), other_quantized(other, kind);
          const LinearWeights part{matrix, bias, &quantized}, second{other, {}, &other_quantized};
          const auto exact = [&](const QuantizedWeight& weight, const at::Tensor& input) {
            return input.to(at::kDouble).matmul(weight.dequantized().to(at::kDouble).t());
          };
          for (const std::int64_t rows : {1, 5, 40, 600}) {
            const at::Tensor input = at::randn({rows, width}).to(type), residual = at::randn({rows, out}).to(type);
            const at::Tensor expected = exact(quantized, input) + bias.to(at::kDouble);
            EXPECT_LT(relative_error(linear(input, part), expected), 0.02);
            EXPECT_LT(relative_error(linear(input, part, residual), expected + residual.to(at::kDouble)), 0.02);
            const LinearWeights both[] = {part, second};
            const std::vector<at::Tensor> together = linears(input, both);
            EXPECT_TRUE(together[0].equal(linear(input, part)));
            EXPECT_TRUE(together[1].equal(linear(input, second)));
            EXPECT_LT(relative_error(together[1], exact(other_quantized, input)), 0.02);
            const LinearWeights up{matrix, {}, &quantized};
            ASSERT_TRUE(has_gated_linear(input, part, up));
            EXPECT_LT(relative_error(gated_linear(input, part, up), at::silu(expected) * exact(quantized, input)),
                      0.04);
            const std::int64_t last = rows - 1;
            EXPECT_TRUE(linear(input.narrow(0, last, 1), part).equal(linear(input, part).narrow(0, last, 1)));
          }
        }
}

TEST(QuantizedLinear, GradientsAreThoseOfTheWeightsThemselves) {
  at::manual_seed(7);
  Linear layer(40, 50, false);
  {
    const at::NoGradGuard no_grad;
    layer.weight.normal_();
  }
  const at::Tensor input = at::randn({3, 40});
  const at::Tensor plain = layer.forward(input).detach();
  layer.quantized = std::make_shared<QuantizedWeight>(layer.weight.detach(), Quantization::int4);
  EXPECT_TRUE(layer.forward(input).detach().equal(plain));
  const at::NoGradGuard no_grad;
  EXPECT_FALSE(layer.forward(input).equal(plain));
  EXPECT_LT(relative_error(layer.forward(input), plain), 0.15);
}

TEST(QuantizedLinear, NumbersThatAreNotFiniteStayInTheirRow) {
  const at::NoGradGuard no_grad;
  at::manual_seed(8);
  const at::Tensor matrix = at::randn({40, 70}), input = at::randn({4, 70});
  for (const Quantization kind : kKinds) {
    const QuantizedWeight quantized(matrix, kind);
    const LinearWeights part{matrix, {}, &quantized};
    const at::Tensor plain = linear(input, part);
    at::Tensor broken = input.clone();
    broken[1][3] = std::numeric_limits<float>::quiet_NaN();
    broken[2][69] = std::numeric_limits<float>::infinity();
    const at::Tensor output = linear(broken, part);
    EXPECT_FALSE(output.narrow(0, 1, 2).isfinite().any().item<bool>());
    EXPECT_TRUE(output[0].equal(plain[0]));
    EXPECT_TRUE(output[3].equal(plain[3]));
  }
}

}  // namespace
}  // namespace thinkvg::nn
