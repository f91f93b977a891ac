#include "nn/cpu/layers.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "nn/cpu/layer_kernel.h"
#include "nn/cpu/linear_kernel.h"
#include "thinkvg/nn/workers.h"

namespace thinkvg::nn {
namespace {

constexpr std::int64_t kElementsPerPiece = 16384;
// Rows whose shares of a weight's gradient are summed apart: fixed, so that the sum does not depend on the threads.
constexpr std::int64_t kRowsPerSum = 512;
constexpr std::int64_t kWideNumbers = 1024;
constexpr std::int64_t kRowsOfAStep = 128;

bool is_narrow(const at::Tensor& tensor) { return tensor.scalar_type() == at::kBFloat16; }

// Numbers of a dense tensor from `begin` on as fp32: where they lie, or in `room`.
const float* wide_numbers(const at::Tensor& tensor, std::int64_t begin, std::int64_t count, std::vector<float>& room) {
  if (!is_narrow(tensor)) return tensor.const_data_ptr<float>() + begin;
  room.resize(static_cast<std::size_t>(count));
  cpu::widen(static_cast<const std::uint16_t*>(tensor.const_data_ptr()) + begin, room.data(), count);
  return room.data();
}

// Where fp32 numbers go before keep_numbers() puts them into the tensor.
float* numbers_to(const at::Tensor& tensor, std::int64_t begin, std::int64_t count, std::vector<float>& room) {
  if (!is_narrow(tensor)) return tensor.mutable_data_ptr<float>() + begin;
  room.resize(static_cast<std::size_t>(count));
  return room.data();
}

void keep_numbers(const at::Tensor& tensor, std::int64_t begin, const std::vector<float>& room) {
  if (is_narrow(tensor))
    cpu::narrow(room.data(), static_cast<std::uint16_t*>(tensor.mutable_data_ptr()) + begin, std::ssize(room));
}

// input and output dense; one scale a row.
void norm_rows(const at::Tensor& input, const at::Tensor& weight, double eps, const at::Tensor& output,
               const at::Tensor& scale) {
  const std::int64_t width = weight.numel();
  const at::Tensor wide_weight = weight.to(at::kFloat).contiguous();
  const auto* factors = wide_weight.const_data_ptr<float>();
  auto* scales = scale.mutable_data_ptr<float>();
  const auto some_rows = [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> from, to;
    for (std::int64_t i = begin; i < end; ++i) {
      cpu::rms_norm({wide_numbers(input, i * width, width, from), factors, numbers_to(output, i * width, width, to),
                     scales + i, 1, width, eps});
      keep_numbers(output, i * width, to);
    }
  };
  // A decoding step leaves OpenMP's threads asleep: woken, they would go on looking for work in its threads' way.
  if (scale.numel() <= kRowsOfAStep)
    share_out(scale.numel(), kElementsPerPiece / width + 1, some_rows);
  else
    at::parallel_for(0, scale.numel(), kElementsPerPiece / width + 1, some_rows);
}

struct CpuRmsNorm final : torch::autograd::Function<CpuRmsNorm> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& input,
                            const at::Tensor& weight, double eps) {
    const at::Tensor dense = input.contiguous();
    at::Tensor out = at::empty_like(dense);
    const at::Tensor scale = at::empty({dense.numel() / weight.numel()}, dense.options().dtype(at::kFloat));
    norm_rows(dense, weight, eps, out, scale);
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
    const at::Tensor sums = at::zeros({num_sums, width}, scale.options());
    const at::Tensor wide_weight = weight.to(at::kFloat).contiguous();
    const auto* factors = wide_weight.const_data_ptr<float>();
    const auto* scales = scale.const_data_ptr<float>();
    auto* of_weight = sums.mutable_data_ptr<float>();
    at::parallel_for(0, num_sums, 1, [&](std::int64_t begin, std::int64_t end) {
      std::vector<float> from, of_out, to;
      for (std::int64_t i = begin; i < end; ++i) {
        for (std::int64_t row = i * kRowsPerSum; row < std::min(num_rows, (i + 1) * kRowsPerSum); ++row) {
          const std::int64_t place = row * width;
          cpu::rms_norm_gradient({wide_numbers(input, place, width, from), factors, scales + row,
                                  wide_numbers(gradient, place, width, of_out), numbers_to(of_input, place, width, to),
                                  of_weight + i * width, 1, width});
          keep_numbers(of_input, place, to);
        }
      }
    });
    return {of_input, sums.sum(0).to(weight.scalar_type()), at::Tensor()};
  }
};

struct CpuGatedProduct final : torch::autograd::Function<CpuGatedProduct> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& gate, const at::Tensor& up) {
    const at::Tensor dense_gate = gate.contiguous();
    const at::Tensor dense_up = up.contiguous();
    at::Tensor out = at::empty_like(dense_gate);
    in_pieces(out.numel(), [&](std::int64_t begin, std::int64_t count, std::vector<float>(&room)[5]) {
      cpu::gated_product({wide_numbers(dense_gate, begin, count, room[0]),
                          wide_numbers(dense_up, begin, count, room[1]), numbers_to(out, begin, count, room[2]),
                          count});
      keep_numbers(out, begin, room[2]);
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
    in_pieces(gradient.numel(), [&](std::int64_t begin, std::int64_t count, std::vector<float>(&room)[5]) {
      cpu::gated_product_gradient(
          {wide_numbers(saved[0], begin, count, room[0]), wide_numbers(saved[1], begin, count, room[1]),
           wide_numbers(gradient, begin, count, room[2]), numbers_to(of_gate, begin, count, room[3]),
           numbers_to(of_up, begin, count, room[4]), count});
      keep_numbers(of_gate, begin, room[3]);
      keep_numbers(of_up, begin, room[4]);
    });
    return {of_gate, of_up};
  }

 private:
  // Pieces that a core's first cache holds as fp32.
  template <class Body>
  static void in_pieces(std::int64_t total, const Body& body) {
    at::parallel_for(0, total, kElementsPerPiece, [&](std::int64_t begin, std::int64_t end) {
      std::vector<float> room[5];
      for (; begin < end; begin += kWideNumbers) body(begin, std::min(kWideNumbers, end - begin), room);
    });
  }
};

}  // namespace

bool has_cpu_layers(const at::Tensor& input) {
  return input.is_cpu() && (input.scalar_type() == at::kFloat || input.scalar_type() == at::kBFloat16);
}

at::Tensor cpu_rms_norm(const at::Tensor& input, const at::Tensor& weight, double eps) {
  return CpuRmsNorm::apply(input, weight, eps);
}

at::Tensor cpu_gated_product(const at::Tensor& gate, const at::Tensor& up) { return CpuGatedProduct::apply(gate, up); }

at::Tensor cpu_rms_norm_rows(const at::Tensor& input, const at::Tensor& weight, double eps) {
  const at::Tensor dense = input.contiguous();
  at::Tensor out = at::empty_like(dense);
  norm_rows(dense, weight, eps, out, at::empty({dense.numel() / weight.numel()}, at::kFloat));
  return out;
}

}  // namespace thinkvg::nn
