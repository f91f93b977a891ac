#pragma once

// Shape letters: N rows, D width coming in, E width going out.

#include <ATen/core/Tensor.h>

#include <span>
#include <vector>

#include "thinkvg/nn/quantized_weight.h"

namespace thinkvg::nn {

// Matrix products of layers. On a CPU, few rows without gradient (decoding steps) take own kernels that read the
// weights once, in fp32 and bf16 with sums in fp32, whose results for a row do not depend on the other rows; so do all
// rows of fp32 while an ExactForward lives, with gradients then. More rows of bf16 are multiplied as fp32 and rounded
// once, with gradients, where the processor has no faster way for bf16. Everything else is ATen's.
//
// Without gradient, parts with quantised weights take these, however many rows there are; sums and independence of the
// other rows as above. The inputs are rounded to 8 bits for it, 64 (int8) or 32 (int4) of a row with a scale of their
// own: an error of about 0.6 % of their deviation, next to which that of int4 weights is ten times as large.

struct LinearWeights {
  at::Tensor weight;
  at::Tensor bias;                             // may be undefined
  const QuantizedWeight* quantized = nullptr;  // of this weight; null where there is none
};

// input W^T + bias (+ residual [N, E]). input [N, D], weight [E, D], bias [E] or undefined, residual or undefined.
at::Tensor linear(const at::Tensor& input, const LinearWeights& part, const at::Tensor& residual = {});
at::Tensor linear(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& bias = {},
                  const at::Tensor& residual = {});

// Several products of one input, in one go.
std::vector<at::Tensor> linears(const at::Tensor& input, std::span<const LinearWeights> parts);

// Whether gated_linear() has a kernel for this input, in the present modes.
bool has_gated_linear(const at::Tensor& input, const LinearWeights& gate, const LinearWeights& up);
// silu(input G^T + g) * (input U^T + u), in one go. Inference only.
at::Tensor gated_linear(const at::Tensor& input, const LinearWeights& gate, const LinearWeights& up);

}  // namespace thinkvg::nn
