#include "thinkvg/nn/rotary.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <spdlog/fmt/ranges.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <algorithm>
#include <numeric>

#include "nn/inference.h"
#include "thinkvg/core/error.h"
#include "thinkvg/nn/workers.h"

namespace thinkvg::nn {
namespace {

constexpr std::int64_t kTokensOfAStep = 128;

// theta^(-2i/width) for i < width/2.
at::Tensor frequencies(double theta, std::int64_t width, const at::Device& device) {
  const at::Tensor exponents = at::arange(0, width, 2, at::TensorOptions(at::kFloat)) / static_cast<double>(width);
  return at::pow(theta, exponents).reciprocal().to(device);
}

// One pass over x; `direction` -1 turns back.
at::Tensor rotate_on_cpu(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, int direction) {
  const at::Tensor input = x.stride(2) == 1 ? x : x.contiguous();
  at::Tensor output = at::empty(x.sizes(), x.options());
  const std::int64_t num_heads = x.size(1);
  const std::int64_t half = x.size(2) / 2;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "rotate", [&] {
    using Accumulate = at::opmath_type<scalar_t>;
    const scalar_t* from = input.const_data_ptr<scalar_t>();
    scalar_t* to = output.mutable_data_ptr<scalar_t>();
    const float* cosines = cos.const_data_ptr<float>();
    const float* sines = sin.const_data_ptr<float>();
    const std::int64_t token_stride = input.stride(0);
    const std::int64_t head_stride = input.stride(1);
    const auto some_tokens = [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t t = begin; t < end; ++t) {
        const float* __restrict c = cosines + t * half;
        const float* __restrict s = sines + t * half;
        for (std::int64_t h = 0; h < num_heads; ++h) {
          const scalar_t* __restrict in = from + t * token_stride + h * head_stride;
          scalar_t* __restrict out = to + (t * num_heads + h) * 2 * half;
          for (std::int64_t k = 0; k < half; ++k) {
            const Accumulate first = in[k];
            const Accumulate second = in[k + half];
            const Accumulate turn = static_cast<Accumulate>(direction) * s[k];
            out[k] = static_cast<scalar_t>(first * c[k] - second * turn);
            out[k + half] = static_cast<scalar_t>(second * c[k] + first * turn);
          }
        }
      }
    };
    // As in cpu/layers.cc: a decoding step leaves OpenMP alone.
    if (x.size(0) <= kTokensOfAStep)
      share_out(x.size(0), 64, some_tokens);
    else
      at::parallel_for(0, x.size(0), 64, some_tokens);
  });
  return output;
}

struct CpuRotation final : torch::autograd::Function<CpuRotation> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x, const at::Tensor& cos,
                            const at::Tensor& sin) {
    context->save_for_backward({cos, sin});
    return rotate_on_cpu(x, cos, sin, 1);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grads) {
    const torch::autograd::variable_list saved = context->get_saved_variables();
    return {rotate_on_cpu(grads[0], saved[0], saved[1], -1), at::Tensor(), at::Tensor()};
  }
};

void check_sections(const at::Tensor& positions, const std::vector<std::int64_t>& sections, std::int64_t head_dim) {
  const std::int64_t total = std::accumulate(sections.begin(), sections.end(), std::int64_t{0});
  if (positions.dim() != 2 || positions.size(0) != 3) {
    throw_invalid("rotary embedding: expected positions [3, T], got [{}]", fmt::join(positions.sizes(), ", "));
  }
  if (total * 2 != head_dim) {
    throw_invalid("rotary embedding: sections [{}] sum to {}, expected half the head width {}",
                  fmt::join(sections, ", "), total, head_dim);
  }
}

// MKL shares out 128 cosines and more among threads of its own; woken by a decoding step, they would go on looking for
// work for a while, in the way of the threads that decode. The numbers are the same, however they are cut.
constexpr std::int64_t kMostAlone = 64, kMostOfAStep = 4096;

RotaryTable table_of(const at::Tensor& angles) {
  if (!angles.is_cpu() || angles.numel() > kMostOfAStep) return {angles.cos(), angles.sin()};
  const at::Tensor dense = angles.contiguous().view(-1);
  at::Tensor cos = at::empty_like(dense), sin = at::empty_like(dense);
  for (std::int64_t first = 0; first < dense.numel(); first += kMostAlone) {
    const std::int64_t count = std::min(kMostAlone, dense.numel() - first);
    const at::Tensor part = dense.narrow(0, first, count);
    at::Tensor part_cos = cos.narrow(0, first, count), part_sin = sin.narrow(0, first, count);
    at::cos_out(part_cos, part);
    at::sin_out(part_sin, part);
  }
  return {cos.view(angles.sizes()), sin.view(angles.sizes())};
}

// Frequency i turns with axis axes[i] of positions [3, T].
RotaryTable deal_axes(const at::Tensor& positions, const std::vector<std::int64_t>& axes, double theta,
                      std::int64_t head_dim) {
  const at::NoGradGuard no_grad;
  const at::Tensor angles =
      positions.to(at::kFloat).unsqueeze(-1) * frequencies(theta, head_dim, positions.device());  // [3, T, K/2]
  const at::Tensor chosen = at::tensor(axes, at::kLong).to(positions.device()).view({1, 1, -1});
  const at::Tensor dealt = angles.gather(0, chosen.expand({1, angles.size(1), -1})).squeeze(0);
  return table_of(dealt);
}

}  // namespace

RotaryTable multimodal_rotary(const at::Tensor& positions, const std::vector<std::int64_t>& sections, double theta,
                              std::int64_t head_dim) {
  check_sections(positions, sections, head_dim);
  std::vector<std::int64_t> axes;
  for (std::size_t i = 0; i < sections.size(); ++i)
    axes.insert(axes.end(), static_cast<std::size_t>(sections[i]), static_cast<std::int64_t>(i % 3));
  return deal_axes(positions, axes, theta, head_dim);
}

RotaryTable interleaved_rotary(const at::Tensor& positions, const std::vector<std::int64_t>& sections, double theta,
                               std::int64_t head_dim) {
  check_sections(positions, sections, head_dim);
  if (sections.size() != 3) {
    throw_invalid("rotary embedding: sections [{}]; interleaved ones are three", fmt::join(sections, ", "));
  }
  std::vector<std::int64_t> axes(static_cast<std::size_t>(head_dim / 2), 0);
  for (std::size_t axis = 1; axis < 3; ++axis) {
    const auto end = std::min(axes.size(), static_cast<std::size_t>(3 * sections[axis]));
    for (std::size_t i = axis; i < end; i += 3) axes[i] = static_cast<std::int64_t>(axis);
  }
  return deal_axes(positions, axes, theta, head_dim);
}

RotaryTable linear_rotary(const at::Tensor& positions, double theta, double factor, std::int64_t head_dim) {
  if (positions.dim() != 1 || !(factor > 0) || head_dim % 2 != 0) {
    throw_invalid("rotary embedding: expected positions [T], a factor above 0 and an even head width; got [{}], {}, {}",
                  fmt::join(positions.sizes(), ", "), factor, head_dim);
  }
  const at::NoGradGuard no_grad;
  at::Tensor turns = frequencies(theta, head_dim, positions.device());
  if (factor != 1) turns = turns / factor;
  const at::Tensor angles = positions.to(at::kFloat).unsqueeze(-1) * turns;
  return table_of(angles);
}

RotaryTable axial_rotary(const at::Tensor& coordinates, double theta, std::int64_t head_dim) {
  if (coordinates.dim() != 2 || coordinates.size(0) != 2 || head_dim % 4 != 0) {
    throw_invalid(
        "axial rotary embedding: expected coordinates [2, T] and a head width that 4 divides, got [{}] and {}",
        fmt::join(coordinates.sizes(), ", "), head_dim);
  }
  const at::NoGradGuard no_grad;
  const at::Tensor angles =
      coordinates.to(at::kFloat).unsqueeze(-1) * frequencies(theta, head_dim / 2, coordinates.device());
  const at::Tensor dealt = at::cat({angles.select(0, 0), angles.select(0, 1)}, 1);
  return table_of(dealt);
}

at::Tensor rotate(const at::Tensor& x, const RotaryTable& table) {
  if (x.dim() != 3 || table.cos.size(0) != x.size(0) || table.cos.size(1) * 2 != x.size(2)) {
    throw_invalid("rotary embedding: a table [{}] does not fit [{}]; expected [T, K/2] for [T, H, K]",
                  fmt::join(table.cos.sizes(), ", "), fmt::join(x.sizes(), ", "));
  }
  if (x.is_cpu() && is_inference()) return rotate_on_cpu(x, table.cos, table.sin, 1);
  if (x.is_cpu()) return CpuRotation::apply(x, table.cos, table.sin);
  const at::Tensor cos = table.cos.unsqueeze(1);
  const at::Tensor sin = table.sin.unsqueeze(1);
  const std::vector<at::Tensor> halves = x.chunk(2, 2);
  return at::cat({halves[0] * cos - halves[1] * sin, halves[1] * cos + halves[0] * sin}, 2).to(x.scalar_type());
}

}  // namespace thinkvg::nn
