#include "thinkvg/nn/quantized_weight.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <spdlog/fmt/ranges.h>

#include <algorithm>
#include <vector>

#include "nn/cpu/linear_kernel.h"
#include "nn/cpu/quantized_kernel.h"
#include "thinkvg/core/error.h"

namespace thinkvg::nn {

QuantizedWeight::QuantizedWeight(const at::Tensor& weight, Quantization kind) : kind_(kind) {
  if (kind == Quantization::none)
    throw_invalid("a quantised weight has 8 or 4 bits; leave the weight as it is instead");
  const bool narrow = weight.scalar_type() == at::kBFloat16;
  if (weight.dim() != 2 || weight.numel() == 0 || !weight.is_cpu() || (!narrow && weight.scalar_type() != at::kFloat))
    throw_invalid("a weight to quantise must be [out, in] in float32 or bfloat16 on the CPU, got {} [{}] on {}",
                  c10::toString(weight.scalar_type()), fmt::join(weight.sizes(), ", "), weight.device().str());
  out_ = weight.size(0);
  in_ = weight.size(1);
  const at::Tensor dense = weight.contiguous();
  const std::int64_t num_tiles = (out_ + cpu::kTile - 1) / cpu::kTile;
  const std::int64_t tile_bytes = cpu::num_groups(in_, bits()) * cpu::block_bytes(bits());
  blocks_ = at::empty({num_tiles, tile_bytes}, at::kByte);
  auto* blocks = blocks_.mutable_data_ptr<std::uint8_t>();
  const void* from = dense.const_data_ptr();
  at::parallel_for(0, num_tiles, 1, [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> wide(static_cast<std::size_t>(narrow ? cpu::kTile * in_ : 0));
    for (std::int64_t tile = begin; tile < end; ++tile) {
      const std::int64_t first = tile * cpu::kTile, num_rows = std::min(cpu::kTile, out_ - first);
      const float* rows = wide.data();
      if (narrow)
        cpu::widen(static_cast<const std::uint16_t*>(from) + first * in_, wide.data(), num_rows * in_);
      else
        rows = static_cast<const float*>(from) + first * in_;
      if (!cpu::quantized_kernels()[0].quantize({bits(), rows, num_rows, in_, blocks + tile * tile_bytes}))
        throw_failure("a weight [{}, {}] holds numbers that are not finite in the rows {} to {}", out_, in_, first,
                      first + num_rows - 1);
    }
  });
}

at::Tensor QuantizedWeight::dequantized() const {
  at::Tensor weight = at::empty({out_, in_}, at::kFloat);
  auto* to = weight.mutable_data_ptr<float>();
  auto* blocks = blocks_.mutable_data_ptr<std::uint8_t>();
  for (std::int64_t tile = 0; tile < blocks_.size(0); ++tile) {
    const std::int64_t first = tile * cpu::kTile;
    cpu::dequantize({bits(), nullptr, std::min(cpu::kTile, out_ - first), in_, blocks + tile * blocks_.size(1)},
                    to + first * in_);
  }
  return weight;
}

}  // namespace thinkvg::nn
