#include "nn/cpu/layers.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "nn/cpu/layer_kernel.h"
#include "nn/cpu/linear_kernel.h"

namespace thinkvg::nn {
namespace {

constexpr std::int64_t kElementsPerPiece = 16384;
// Rows whose shares of a weight's gradient are summed apart: fixed, so that the sum does not depend on the threads.
constexpr std::int64_t kRowsPerSum = 512;

struct CpuRmsNorm final : torch::autograd::Function<CpuRmsNorm> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& input,
                            const at::Tensor& weight, double eps) {
    const at::Tensor dense = input.contiguous();
    const std::int64_t width = weight.numel();
    const std::int64_t num_rows = dense.numel() / width;
    at::Tensor out = at::empty_like(dense);
    const at::Tensor scale = at::empty({num_rows}, dense.options());
    const auto* from = dense.const_data_ptr<float>();
    const auto* factors = weight.const_data_ptr<float>();
    auto* to = out.mutable_data_ptr<float>();
    auto* scales = scale.mutable_data_ptr<float>();
    at::parallel_for(0, num_rows, kElementsPerPiece / width + 1, [&](std::int64_t begin, std::int64_t end) {
      cpu::rms_norm({from + begin * width, factors, to + begin * width, scales + begin, end - begin, width, eps});
    });
    context->save_for_backward({dense, weight, scale});
    return out;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grads) {
    const torch::autograd::variable_list saved = context->get_saved_variables();
    const at::Tensor &input = saved[0], &weight = saved[1], &scale = saved[2];
    const at::Tensor gradient = grads[0].contiguous();
    const std::int64_t width = weight.numel();
    const std::int64_t num_rows = scale.numel();
    const std::int64_t num_sums = (num_rows + kRowsPerSum - 1) / kRowsPerSum;
    at::Tensor of_input = at::empty_like(input);
    const at::Tensor sums = at::zeros({num_sums, width}, input.options());
    const auto* from = input.const_data_ptr<float>();
    const auto* factors = weight.const_data_ptr<float>();
    const auto* scales = scale.const_data_ptr<float>();
    const auto* of_out = gradient.const_data_ptr<float>();
    auto* to = of_input.mutable_data_ptr<float>();
    auto* of_weight = sums.mutable_data_ptr<float>();
    at::parallel_for(0, num_sums, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        const std::int64_t row = i * kRowsPerSum;
        cpu::rms_norm_gradient({from + row * width, factors, scales + row, of_out + row * width, to + row * width,
                                of_weight + i * width, std::min(kRowsPerSum, num_rows - row), width});
      }
    });
    return {of_input, sums.sum(0), at::Tensor()};
  }
};

struct CpuGatedProduct final : torch::autograd::Function<CpuGatedProduct> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& gate, const at::Tensor& up) {
    const at::Tensor dense_gate = gate.contiguous();
    const at::Tensor dense_up = up.contiguous();
    at::Tensor out = at::empty_like(dense_gate);
    const auto* gates = dense_gate.const_data_ptr<float>();
    const auto* ups = dense_up.const_data_ptr<float>();
    auto* to = out.mutable_data_ptr<float>();
    at::parallel_for(0, out.numel(), kElementsPerPiece, [&](std::int64_t begin, std::int64_t end) {
      cpu::gated_product({gates + begin, ups + begin, to + begin, end - begin});
    });
    context->save_for_backward({dense_gate, dense_up});
    return out;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grads) {
    const torch::autograd::variable_list saved = context->get_saved_variables();
    const at::Tensor gradient = grads[0].contiguous();
    at::Tensor of_gate = at::empty_like(saved[0]);
    at::Tensor of_up = at::empty_like(saved[1]);
    const auto* gates = saved[0].const_data_ptr<float>();
    const auto* ups = saved[1].const_data_ptr<float>();
    const auto* of_out = gradient.const_data_ptr<float>();
    auto* to_gate = of_gate.mutable_data_ptr<float>();
    auto* to_up = of_up.mutable_data_ptr<float>();
    at::parallel_for(0, gradient.numel(), kElementsPerPiece, [&](std::int64_t begin, std::int64_t end) {
      cpu::gated_product_gradient(
          {gates + begin, ups + begin, of_out + begin, to_gate + begin, to_up + begin, end - begin});
    });
    return {of_gate, of_up};
  }
};

}  // namespace

bool has_cpu_layers(const at::Tensor& input) { return input.is_cpu() && input.scalar_type() == at::kFloat; }

at::Tensor cpu_rms_norm(const at::Tensor& input, const at::Tensor& weight, double eps) {
  return CpuRmsNorm::apply(input, weight, eps);
}

at::Tensor cpu_gated_product(const at::Tensor& gate, const at::Tensor& up) { return CpuGatedProduct::apply(gate, up); }

bool has_cpu_rows(const at::Tensor& input) {
  return input.is_cpu() && (input.scalar_type() == at::kFloat || input.scalar_type() == at::kBFloat16);
}

at::Tensor cpu_rms_norm_rows(const at::Tensor& input, const at::Tensor& weight, double eps) {
  const at::Tensor dense = input.contiguous();
  const std::int64_t width = weight.numel(), num_rows = dense.numel() / width;
  at::Tensor out = at::empty_like(dense);
  const bool narrow = dense.scalar_type() == at::kBFloat16;
  const at::Tensor wide_weight = narrow ? weight.to(at::kFloat) : weight.contiguous();
  const float* factors = wide_weight.const_data_ptr<float>();
  const void* from = dense.const_data_ptr();
  void* to = out.mutable_data_ptr();
  at::parallel_for(0, num_rows, kElementsPerPiece / width + 1, [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> row(static_cast<std::size_t>(narrow ? width : 0));
    float scale = 0;
    for (std::int64_t i = begin; i < end; ++i) {
      if (narrow) {
        cpu::widen(static_cast<const std::uint16_t*>(from) + i * width, row.data(), width);
        cpu::rms_norm({row.data(), factors, row.data(), &scale, 1, width, eps});
        cpu::narrow(row.data(), static_cast<std::uint16_t*>(to) + i * width, width);
      } else {
        cpu::rms_norm({static_cast<const float*>(from) + i * width, factors, static_cast<float*>(to) + i * width,
                       &scale, 1, width, eps});
      }
    }
  });
  return out;
}

}  // namespace thinkvg::nn
