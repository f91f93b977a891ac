#pragma once

// Shape letters: T tokens, H heads, K head width.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace thinkvg::nn {

// Angles of a rotary embedding (Su et al., 2021): dimensions k and k + K/2 of a head turn together.
struct RotaryTable {
  at::Tensor cos;  // [T, K/2] float32
  at::Tensor sin;  // [T, K/2] float32
};

// Multimodal rotary embedding (Qwen2-VL): positions [3, T] int64 are the temporal, height and width axes; the K/2
// frequencies theta^(-2i/K) are dealt out in consecutive sections, section s to axis s mod 3. The sections sum to K/2.
RotaryTable multimodal_rotary(const at::Tensor& positions, const std::vector<std::int64_t>& sections, double theta,
                              std::int64_t head_dim);

// The same with the axes interleaved (Qwen3-VL): of the first 3 * sections[1] frequencies every third from the second
// on belongs to the height, of the first 3 * sections[2] every third from the third on to the width, the rest to time.
RotaryTable interleaved_rotary(const at::Tensor& positions, const std::vector<std::int64_t>& sections, double theta,
                               std::int64_t head_dim);

// Rotary embedding by one axis: positions [T] int64, frequencies theta^(-2i/K) / factor (linear scaling; Chen et al.
// 2023, arXiv 2306.15595).
RotaryTable linear_rotary(const at::Tensor& positions, double theta, double factor, std::int64_t head_dim);

// Two-dimensional rotary embedding of vision towers: coordinates [2, T] int64 are row and column; the first K/4
// angles of a token turn with its row, the next K/4 with its column, both by frequencies theta^(-4i/K). K is a
// multiple of 4.
RotaryTable axial_rotary(const at::Tensor& coordinates, double theta, std::int64_t head_dim);

// Turns x [T, H, K] by the table's angles; same shape and dtype. Differentiable by x.
at::Tensor rotate(const at::Tensor& x, const RotaryTable& table);

}  // namespace thinkvg::nn
