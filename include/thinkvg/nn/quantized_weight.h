#pragma once

// Shape letters: D width coming in, E width going out.

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace thinkvg::nn {

enum class Quantization { none, int8, int4 };

// A weight [E, D] of a linear layer in 8 or 4 bits, for inference on a CPU (nn/linear.h takes it). Rounded to the
// nearest: in 8 bits, 64 inputs of an output share a scale, the largest of them being 127 (error about 0.6 % of the
// weights' deviation); in 4 bits, 32 inputs share a scale and a smallest value (about 7 %). D and E may be any.
// Immutable; safe to use from several threads.
class QuantizedWeight {
 public:
  // weight [E, D], fp32 or bf16, on the CPU; it is read once and not kept. Throws std::invalid_argument for other
  // tensors and for Quantization::none, std::runtime_error for weights that are not finite (or above 1e38).
  QuantizedWeight(const at::Tensor& weight, Quantization kind);

  // The weights that the numbers stand for: [E, D] fp32.
  at::Tensor dequantized() const;

  Quantization kind() const { return kind_; }
  int bits() const { return kind_ == Quantization::int8 ? 8 : 4; }
  std::int64_t in() const { return in_; }    // D
  std::int64_t out() const { return out_; }  // E
  // As nn/cpu/quantized_kernel.h lays them out.
  const std::uint8_t* blocks() const { return blocks_.const_data_ptr<std::uint8_t>(); }
  std::int64_t num_bytes() const { return blocks_.numel(); }

 private:
  Quantization kind_;
  std::int64_t in_;
  std::int64_t out_;
  at::Tensor blocks_;  // uint8 [tiles, bytes of a tile]
};

}  // namespace thinkvg::nn
