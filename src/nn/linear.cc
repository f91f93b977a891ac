#include "thinkvg/nn/linear.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <algorithm>
#include <functional>

#include "nn/cpu/layer_kernel.h"
#include "nn/cpu/linear_kernel.h"
#include "nn/cpu/processor.h"
#include "nn/cpu/quantized_kernel.h"
#include "nn/cpu/stepped_products.h"
#include "nn/inference.h"
#include "thinkvg/nn/exact.h"
#include "thinkvg/nn/workers.h"

namespace thinkvg::nn {
namespace {

// Above this, ATen's blocked products are faster than reading the weights once.
constexpr std::int64_t kFewRows = 128;
// Multiplications that are worth a thread.
constexpr std::int64_t kWorkPerThread = 65536;
// Outputs whose sums wait in scratch memory, at most, and numbers in it that a core's cache holds.
constexpr std::int64_t kOutputsAtATime = 128;
// Rows of a bf16 weight that are fp32 at a time: few enough numbers for a cache, enough rows for a fast product.
constexpr std::int64_t kWideNumbers = std::int64_t{1} << 20, kFewestWideRows = 128;
constexpr std::int64_t kScratchFloats = 64 * 1024;
// Inputs that are worth a thread when they are rounded.
constexpr std::int64_t kInputsPerThread = 32768;

bool is_dense(const at::Tensor& tensor) { return !tensor.defined() || tensor.is_contiguous(); }

bool takes_quantized(const at::Tensor& input, const LinearWeights& part) {
  const at::ScalarType type = input.scalar_type();
  return part.quantized != nullptr && is_inference() && input.is_cpu() &&
         (type == at::kFloat || type == at::kBFloat16) && input.dim() >= 1 && input.numel() > 0 &&
         input.size(-1) == part.quantized->in() &&
         (!part.bias.defined() || (part.bias.scalar_type() == type && is_dense(part.bias)));
}

// Whether own code may take the product: on the CPU, of one dtype, and of shapes that fit.
bool is_plain(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& bias) {
  const at::ScalarType type = input.scalar_type();
  if (!input.is_cpu() || !weight.is_cpu() || (type != at::kFloat && type != at::kBFloat16)) return false;
  if (weight.scalar_type() != type || (bias.defined() && bias.scalar_type() != type)) return false;
  if (weight.dim() != 2 || input.dim() < 1 || input.size(-1) != weight.size(1) || input.numel() == 0) return false;
  return is_dense(weight) && is_dense(bias);
}

bool takes_rows(const at::Tensor& input, const LinearWeights& part) {
  if (takes_quantized(input, part)) return true;
  if (!is_plain(input, part.weight, part.bias)) return false;
  if (exact_forward() && input.scalar_type() == at::kFloat) return true;
  return is_inference() && input.numel() <= kFewRows * part.weight.size(1);
}

bool has_many_bf16_rows(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& bias) {
  return input.scalar_type() == at::kBFloat16 && input.numel() > kFewRows * input.size(-1) &&
         is_plain(input, weight, bias);
}

// A layer's input as dense rows of fp32, or of bf16 where the kernels take them, or of 8 bits for quantised weights of
// so many bits.
class InputRows {
 public:
  explicit InputRows(const at::Tensor& input, int quantized_bits = 0)
      : width(input.size(-1)), num_rows(input.numel() / width), bits(quantized_bits) {
    held_ = input.contiguous();
    is_bf16 = held_.scalar_type() == at::kBFloat16 && bits == 0 && cpu::multiplies_bf16();
    if (held_.scalar_type() == at::kBFloat16 && !is_bf16) {
      const at::Tensor wide = at::empty(held_.sizes(), held_.options().dtype(at::kFloat));
      cpu::widen(static_cast<const std::uint16_t*>(held_.const_data_ptr()), wide.mutable_data_ptr<float>(),
                 held_.numel());
      held_ = wide;
    }
    data = held_.const_data_ptr();
    if (bits > 0) quantize();
  }

  // What pieces of the outputs are multiples of.
  std::int64_t unit() const { return bits > 0 ? cpu::kTile : 1; }

  std::int64_t width;
  std::int64_t num_rows;
  int bits;  // 0: as they are
  bool is_bf16 = false;
  const void* data;  // fp32, or bf16
  const std::int8_t* values = nullptr;
  const float* scales = nullptr;
  const std::int32_t* sums = nullptr;

 private:
  void quantize() {
    const std::int64_t groups = cpu::num_groups(width, bits), padded = groups * cpu::group_size(bits);
    constexpr std::int64_t kNumber = 4;  // bytes of a scale or sum
    rounded_ = at::empty({num_rows * (padded + 2 * groups * kNumber)}, at::kChar);
    auto* to = rounded_.mutable_data_ptr<std::int8_t>();
    auto* to_scales = reinterpret_cast<float*>(to + num_rows * padded);
    auto* to_sums = reinterpret_cast<std::int32_t*>(to_scales + num_rows * groups);
    share_out(num_rows, kInputsPerThread / width + 1, [&](std::int64_t begin, std::int64_t end) {
      cpu::quantized_kernels()[0].quantize_inputs({.input = static_cast<const float*>(data) + begin * width,
                                                   .num_rows = end - begin,
                                                   .width = width,
                                                   .bits = bits,
                                                   .values = to + begin * padded,
                                                   .scales = to_scales + begin * groups,
                                                   .sums = to_sums + begin * groups});
    });
    values = to;
    scales = to_scales;
    sums = to_sums;
  }

  at::Tensor held_;
  at::Tensor rounded_;  // values, scales and sums
};

std::vector<std::int64_t> output_sizes(const at::Tensor& input, std::int64_t width) {
  std::vector<std::int64_t> sizes = input.sizes().vec();
  sizes.back() = width;
  return sizes;
}

float* scratch(std::int64_t count) {
  static thread_local std::vector<float> memory;
  if (std::ssize(memory) < count) memory.resize(static_cast<std::size_t>(count));
  return memory.data();
}

// sums[m, e - begin] = x[m] . W[e] + bias[e] for e in [begin, end); begin is a multiple of the input's unit().
void sum_rows(const InputRows& input, const LinearWeights& part, std::int64_t begin, std::int64_t end, float* sums,
              std::int64_t stride) {
  if (input.bits > 0)
    cpu::quantized_kernels()[0].products({.bits = input.bits,
                                          .values = input.values,
                                          .scales = input.scales,
                                          .sums = input.sums,
                                          .blocks = part.quantized->blocks(),
                                          .num_rows = input.num_rows,
                                          .width = input.width,
                                          .begin = begin,
                                          .end = end,
                                          .out = sums,
                                          .out_stride = stride});
  else
    cpu::linear_rows({.input = input.data,
                      .input_is_bf16 = input.is_bf16,
                      .weight = part.weight.const_data_ptr(),
                      .is_bf16 = part.weight.scalar_type() == at::kBFloat16,
                      .num_rows = input.num_rows,
                      .width = input.width,
                      .begin = begin,
                      .end = end,
                      .out = sums,
                      .out_stride = stride});
  if (!part.bias.defined()) return;
  const auto add = [&](const auto* bias) {
    for (std::int64_t m = 0; m < input.num_rows; ++m)
      for (std::int64_t e = begin; e < end; ++e) sums[m * stride + e - begin] += static_cast<float>(bias[e]);
  };
  if (part.bias.scalar_type() == at::kFloat)
    add(part.bias.const_data_ptr<float>());
  else
    add(part.bias.const_data_ptr<at::BFloat16>());
}

// A multiple of the unit.
std::int64_t outputs_at_a_time(const InputRows& input) {
  return std::clamp(kScratchFloats / input.num_rows / cpu::kTile * cpu::kTile, cpu::kTile, kOutputsAtATime);
}

void compute(const InputRows& input, const LinearWeights& part, const at::Tensor& residual, const at::Tensor& output,
             std::int64_t begin, std::int64_t end) {
  const std::int64_t width = part.weight.size(0);
  if (output.scalar_type() == at::kFloat) {
    float* out = output.mutable_data_ptr<float>();
    sum_rows(input, part, begin, end, out + begin, width);
    if (!residual.defined()) return;
    const float* added = residual.const_data_ptr<float>();
    for (std::int64_t m = 0; m < input.num_rows; ++m)
      for (std::int64_t e = m * width + begin; e < m * width + end; ++e) out[e] += added[e];
    return;
  }
  auto* out = static_cast<std::uint16_t*>(output.mutable_data_ptr());
  const std::int64_t most = outputs_at_a_time(input);
  float* sums = scratch(input.num_rows * most);
  for (std::int64_t first = begin; first < end; first += most) {
    const std::int64_t count = std::min(most, end - first);
    sum_rows(input, part, first, first + count, sums, count);
    for (std::int64_t m = 0; m < input.num_rows; ++m) {
      float* row = sums + m * count;
      if (residual.defined()) {
        const auto* added = residual.const_data_ptr<at::BFloat16>() + m * width + first;
        for (std::int64_t e = 0; e < count; ++e) row[e] += static_cast<float>(added[e]);
      }
      cpu::narrow(row, out + m * width + first, count);
    }
  }
}

// Outputs that are worth a thread.
std::int64_t grain(const InputRows& input) {
  const std::int64_t work = kWorkPerThread / (input.num_rows * input.width);
  return input.bits > 0 ? std::max(input.unit(), 2 * work) : std::max<std::int64_t>(8, work);
}

// Calls body(begin, end) for pieces of `num_units` units of outputs, on several threads. They are cut between outputs
// and then moved to the next unit: 28 units in 8 pieces are 3 and 4 long in turn, not 7 times 4.
template <class Body>
void share_units(const InputRows& input, std::int64_t num_units, std::int64_t least, const Body& body) {
  const std::int64_t unit = input.unit();
  share_out(num_units * unit, least, [&](std::int64_t begin, std::int64_t end) {
    const std::int64_t first = (begin + unit - 1) / unit, last = (end + unit - 1) / unit;
    if (first < last) body(first, last);
  });
}

int bits_of(const at::Tensor& input, const LinearWeights& part) {
  return takes_quantized(input, part) ? part.quantized->bits() : 0;
}

// residual: of the only part, or undefined.
std::vector<at::Tensor> row_linears(const at::Tensor& input, std::span<const LinearWeights> parts,
                                    const at::Tensor& residual) {
  const InputRows rows(input, bits_of(input, parts.front()));
  const std::int64_t unit = rows.unit();
  const auto units_of = [&](const LinearWeights& part) { return (part.weight.size(0) + unit - 1) / unit; };
  std::vector<at::Tensor> outputs;
  std::int64_t total = 0;
  for (const LinearWeights& part : parts) {
    outputs.push_back(at::empty(output_sizes(input, part.weight.size(0)), input.options()));
    total += units_of(part);
  }
  const at::Tensor dense_residual = residual.defined() ? residual.contiguous() : residual;
  // The outputs of all parts lie in one range, which the threads share.
  share_units(rows, total, grain(rows), [&](std::int64_t begin, std::int64_t end) {
    std::int64_t start = 0;
    for (std::size_t i = 0; i < parts.size(); ++i) {
      const std::int64_t count = units_of(parts[i]);
      const std::int64_t from = std::max(begin, start) - start, to = std::min(end, start + count) - start;
      if (from < to)
        compute(rows, parts[i], dense_residual, outputs[i], from * unit, std::min(to * unit, parts[i].weight.size(0)));
      start += count;
    }
  });
  return outputs;
}

at::Tensor row_linear(const at::Tensor& input, const LinearWeights& part, const at::Tensor& residual) {
  return row_linears(input, std::span(&part, 1), residual).front();
}

struct RowLinear final : torch::autograd::Function<RowLinear> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& input,
                            const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
    context->save_for_backward({input, weight});
    context->saved_data["has_bias"] = bias.has_value();
    return row_linear(input, {weight, bias.value_or(at::Tensor())}, {});
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grads) {
    const torch::autograd::variable_list saved = context->get_saved_variables();
    const at::Tensor &input = saved[0], &weight = saved[1], &gradient = grads[0];
    const at::Tensor flat = gradient.reshape({-1, weight.size(0)});
    at::Tensor of_input, of_weight, of_bias;
    if (context->needs_input_grad(0)) of_input = gradient.matmul(weight);
    if (context->needs_input_grad(1)) of_weight = flat.t().matmul(input.reshape({-1, weight.size(1)}));
    if (context->saved_data["has_bias"].toBool() && context->needs_input_grad(2)) of_bias = flat.sum(0);
    return {of_input, of_weight, of_bias};
  }
};

std::int64_t wide_rows(const at::Tensor& weight) {
  return std::min(weight.size(0), std::max(kFewestWideRows, kWideNumbers / weight.size(1)));
}

// Calls body(first, rows [first, first + n) of a bf16 weight as fp32) for all rows of the weight.
void for_wide_rows(const at::Tensor& weight, const std::function<void(std::int64_t, const at::Tensor&)>& body) {
  static thread_local at::Tensor room = at::empty({0}, at::kFloat);
  const std::int64_t step = wide_rows(weight), width = weight.size(1);
  if (room.numel() < step * width) room = at::empty({step * width}, at::kFloat);
  for (std::int64_t first = 0; first < weight.size(0); first += step) {
    const at::Tensor rows = weight.narrow(0, first, std::min(step, weight.size(0) - first));
    body(first, room.narrow(0, 0, rows.numel()).view(rows.sizes()).copy_(rows));
  }
}

at::Tensor wide_linear(const at::Tensor& input, const LinearWeights& part, const at::Tensor& residual) {
  const at::NoGradGuard no_grad;
  const std::int64_t width = part.weight.size(0);
  const at::Tensor wide = input.reshape({-1, input.size(-1)}).to(at::kFloat);
  const at::Tensor bias = part.bias.defined() ? part.bias.to(at::kFloat) : part.bias;
  const at::Tensor added = residual.defined() ? residual.reshape({-1, width}) : residual;
  at::Tensor output = at::empty({wide.size(0), width}, input.options());
  for_wide_rows(part.weight, [&](std::int64_t first, const at::Tensor& rows) {
    const std::int64_t count = rows.size(0);
    at::Tensor sums = bias.defined() ? at::addmm(bias.narrow(0, first, count), wide, rows.t()) : at::mm(wide, rows.t());
    if (added.defined()) sums.add_(added.narrow(1, first, count));
    output.narrow(1, first, count).copy_(sums);
  });
  return output.view(output_sizes(input, width));
}

// bf16 by way of fp32: products and sums in fp32, rounded once, as ATen's are, in less time where the processor has no
// bf16 matrices.
struct WideLinear final : torch::autograd::Function<WideLinear> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& input,
                            const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
    context->save_for_backward({input, weight});
    context->saved_data["has_bias"] = bias.has_value();
    return wide_linear(input, {weight, bias.value_or(at::Tensor())}, {});
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grads) {
    const torch::autograd::variable_list saved = context->get_saved_variables();
    const at::Tensor &input = saved[0], &weight = saved[1];
    const at::Tensor gradient = grads[0].reshape({-1, weight.size(0)}).to(at::kFloat);
    at::Tensor of_input, of_weight, of_bias;
    if (context->needs_input_grad(0)) {
      of_input = at::zeros({gradient.size(0), weight.size(1)}, gradient.options());
      for_wide_rows(weight, [&](std::int64_t first, const at::Tensor& rows) {
        of_input.addmm_(gradient.narrow(1, first, rows.size(0)), rows);
      });
      of_input = of_input.to(input.scalar_type()).view(input.sizes());
    }
    if (context->needs_input_grad(1)) {
      const at::Tensor wide = input.reshape({-1, input.size(-1)}).to(at::kFloat);
      of_weight = at::empty(weight.sizes(), weight.options());
      const std::int64_t step = wide_rows(weight);
      for (std::int64_t first = 0; first < weight.size(0); first += step) {
        const std::int64_t count = std::min(step, weight.size(0) - first);
        of_weight.narrow(0, first, count).copy_(gradient.narrow(1, first, count).t().mm(wide));
      }
    }
    if (context->saved_data["has_bias"].toBool() && context->needs_input_grad(2))
      of_bias = gradient.sum(0).to(weight.scalar_type());
    return {of_input, of_weight, of_bias};
  }
};

// bf16 as LibTorch multiplies it, in steps; the rows behind the last step are computed as few rows are.
struct SteppedLinear final : torch::autograd::Function<SteppedLinear> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& input,
                            const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
    context->save_for_backward({input, weight});
    context->saved_data["has_bias"] = bias.has_value();
    return compute(input, {weight, bias.value_or(at::Tensor())});
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grads) {
    const torch::autograd::variable_list saved = context->get_saved_variables();
    const at::Tensor &input = saved[0], &weight = saved[1];
    const at::Tensor gradient = grads[0].reshape({-1, weight.size(0)});
    at::Tensor of_input, of_weight, of_bias;
    if (context->needs_input_grad(0)) of_input = stepped_product(gradient, weight).view(input.sizes());
    if (context->needs_input_grad(1)) of_weight = stepped_sum(gradient, input.reshape({-1, weight.size(1)}));
    if (context->saved_data["has_bias"].toBool() && context->needs_input_grad(2)) of_bias = gradient.sum(0);
    return {of_input, of_weight, of_bias};
  }

  static at::Tensor compute(const at::Tensor& input, const LinearWeights& part) {
    const at::NoGradGuard no_grad;
    const at::Tensor rows = input.reshape({-1, input.size(-1)});
    const std::int64_t count = rows.size(0), whole = whole_steps(count), width = part.weight.size(0);
    at::Tensor output = at::empty({count, width}, input.options());
    at::Tensor steps = output.narrow(0, 0, whole);
    if (part.bias.defined())
      at::addmm_out(steps, part.bias, rows.narrow(0, 0, whole), part.weight.t());
    else
      at::mm_out(steps, rows.narrow(0, 0, whole), part.weight.t());
    if (whole < count) {
      const InputRows rest(rows.narrow(0, whole, count - whole));
      const at::Tensor to = output.narrow(0, whole, count - whole);
      share_out(width, grain(rest),
                [&](std::int64_t begin, std::int64_t end) { nn::compute(rest, part, {}, to, begin, end); });
    }
    return output.view(output_sizes(input, width));
  }
};

std::optional<at::Tensor> where_defined(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional<at::Tensor>(tensor) : std::nullopt;
}

}  // namespace

at::Tensor linear(const at::Tensor& input, const LinearWeights& part, const at::Tensor& residual) {
  if (!takes_rows(input, part)) {
    static const bool kFastBf16 = cpu::has_fast_bf16_products();
    const bool many = has_many_bf16_rows(input, part.weight, part.bias);
    if (many && !kFastBf16 && is_inference()) return wide_linear(input, part, residual);
    const std::optional<at::Tensor> bias = where_defined(part.bias);
    at::Tensor output;
    if (!many)
      output = at::linear(input, part.weight, bias);
    else if (!kFastBf16)
      output = WideLinear::apply(input, part.weight, bias);
    else if (is_inference())
      output = SteppedLinear::compute(input, part);
    else
      output = SteppedLinear::apply(input, part.weight, bias);
    return residual.defined() ? residual + output : output;
  }
  if (is_inference() && (!residual.defined() || residual.scalar_type() == input.scalar_type()))
    return row_linear(input, part, residual);
  const at::Tensor output =
      is_inference() ? row_linear(input, part, {}) : RowLinear::apply(input, part.weight, where_defined(part.bias));
  return residual.defined() ? residual + output : output;
}

at::Tensor linear(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& bias,
                  const at::Tensor& residual) {
  return linear(input, LinearWeights{weight, bias}, residual);
}

std::vector<at::Tensor> linears(const at::Tensor& input, std::span<const LinearWeights> parts) {
  const bool by_rows = is_inference() && std::all_of(parts.begin(), parts.end(), [&](const LinearWeights& part) {
                         return takes_rows(input, part) && bits_of(input, part) == bits_of(input, parts.front());
                       });
  if (by_rows && !parts.empty()) return row_linears(input, parts, {});
  std::vector<at::Tensor> outputs;
  for (const LinearWeights& part : parts) outputs.push_back(linear(input, part));
  return outputs;
}

bool has_gated_linear(const at::Tensor& input, const LinearWeights& gate, const LinearWeights& up) {
  return is_inference() && takes_rows(input, gate) && takes_rows(input, up) &&
         bits_of(input, gate) == bits_of(input, up);
}

at::Tensor gated_linear(const at::Tensor& input, const LinearWeights& gate, const LinearWeights& up) {
  const InputRows rows(input, bits_of(input, gate));
  const std::int64_t width = gate.weight.size(0), unit = rows.unit();
  at::Tensor output = at::empty(output_sizes(input, width), input.options());
  const std::int64_t least = std::max<std::int64_t>(8, unit), num_units = (width + unit - 1) / unit;
  share_units(rows, num_units, std::max(least, grain(rows) / 2), [&](std::int64_t begin, std::int64_t end) {
    const std::int64_t most = outputs_at_a_time(rows), size = rows.num_rows * most;
    float* gates = scratch(2 * size);
    float* ups = gates + size;
    const std::int64_t last = std::min(width, end * unit);
    for (std::int64_t first = begin * unit; first < last; first += most) {
      const std::int64_t count = std::min(most, last - first);
      sum_rows(rows, gate, first, first + count, gates, count);
      sum_rows(rows, up, first, first + count, ups, count);
      cpu::gated_product({gates, ups, gates, rows.num_rows * count});
      for (std::int64_t m = 0; m < rows.num_rows; ++m) {
        const float* row = gates + m * count;
        if (output.scalar_type() == at::kFloat)
          std::copy_n(row, count, output.mutable_data_ptr<float>() + m * width + first);
        else
          cpu::narrow(row, static_cast<std::uint16_t*>(output.mutable_data_ptr()) + m * width + first, count);
      }
    }
  });
  return output;
}

}  // namespace thinkvg::nn
