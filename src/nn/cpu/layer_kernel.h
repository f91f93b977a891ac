#pragma once

// Plain C++, so that the kernels' source needs no LibTorch headers and can be compiled for several instruction sets.

#include <cstdint>

namespace thinkvg::nn::cpu {

// out = silu(gate) * up, `count` numbers.
struct GatedRows {
  const float* gate = nullptr;
  const float* up = nullptr;
  float* out = nullptr;
  std::int64_t count = 0;
};
void gated_product(const GatedRows& rows);

struct GatedGradientRows {
  const float* gate = nullptr;
  const float* up = nullptr;
  const float* gradient = nullptr;
  float* of_gate = nullptr;
  float* of_up = nullptr;
  std::int64_t count = 0;
};
void gated_product_gradient(const GatedGradientRows& rows);

// out = input * scale * weight with scale = 1 / sqrt(mean(input^2) + eps), one scale a row; rows are contiguous.
struct NormRows {
  const float* input = nullptr;
  const float* weight = nullptr;
  float* out = nullptr;
  float* scale = nullptr;
  std::int64_t num_rows = 0;
  std::int64_t width = 0;
  double eps = 0;
};
void rms_norm(const NormRows& rows);

// Adds the rows' share to of_weight; writes of_input.
struct NormGradientRows {
  const float* input = nullptr;
  const float* weight = nullptr;
  const float* scale = nullptr;
  const float* gradient = nullptr;
  float* of_input = nullptr;
  float* of_weight = nullptr;
  std::int64_t num_rows = 0;
  std::int64_t width = 0;
};
void rms_norm_gradient(const NormGradientRows& rows);

}  // namespace thinkvg::nn::cpu
