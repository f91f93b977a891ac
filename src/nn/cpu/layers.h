#pragma once

#include <ATen/core/Tensor.h>

namespace thinkvg::nn {

// One pass over memory each, on several threads; fp32 or bf16 on the CPU, computed in fp32 and rounded once. What a row
// becomes does not depend on the other rows.
bool has_cpu_layers(const at::Tensor& input);
// Differentiable; input and weight are of one type, and so are gate and up.
at::Tensor cpu_rms_norm(const at::Tensor& input, const at::Tensor& weight, double eps);
at::Tensor cpu_gated_product(const at::Tensor& gate, const at::Tensor& up);
// Without gradient, with less around it.
at::Tensor cpu_rms_norm_rows(const at::Tensor& input, const at::Tensor& weight, double eps);

}  // namespace thinkvg::nn
