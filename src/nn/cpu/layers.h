#pragma once

#include <ATen/core/Tensor.h>

namespace thinkvg::nn {

// One pass over memory each, on several threads; fp32 on the CPU. Differentiable.
bool has_cpu_layers(const at::Tensor& input);
at::Tensor cpu_rms_norm(const at::Tensor& input, const at::Tensor& weight, double eps);
at::Tensor cpu_gated_product(const at::Tensor& gate, const at::Tensor& up);

// Without gradient; fp32 and bf16, computed in fp32. What a row becomes does not depend on the other rows.
bool has_cpu_rows(const at::Tensor& input);
at::Tensor cpu_rms_norm_rows(const at::Tensor& input, const at::Tensor& weight, double eps);

}  // namespace thinkvg::nn
