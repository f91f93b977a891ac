#pragma once

// Plain C++, so that the kernels' source needs no LibTorch headers and can be compiled for several instruction sets.

#include <cstdint>
#include <span>

namespace thinkvg::nn::cpu {

// How a weight [E, D] of few bits lies in memory. kTile outputs stand side by side, and so do group_size() inputs,
// which share a scale for each output; a block is one tile of one group, and the blocks of a tile follow each other.
// Sides that are no multiple are filled up.
//   8 bits: kTile scales (bf16), then for 4 inputs at a time 4 bytes an output. weight = scale * (byte - 128).
//   4 bits: kTile scales and kTile smallest values (bf16), then for 8 inputs at a time 4 bytes an output, the first 4
//           inputs in their lower halves. weight = scale * number + smallest.
constexpr std::int64_t kTile = 32;
constexpr std::int64_t group_size(int bits) { return bits == 8 ? 64 : 32; }
constexpr std::int64_t block_bytes(int bits) {
  return bits == 8 ? kTile * (2 + group_size(8)) : kTile * (2 + 2 + group_size(4) / 2);
}
constexpr std::int64_t num_groups(std::int64_t width, int bits) {
  return (width + group_size(bits) - 1) / group_size(bits);
}

struct WeightTile {
  int bits = 8;                    // 8 or 4
  const float* weight = nullptr;   // [num_rows, width], dense
  std::int64_t num_rows = 0;       // outputs, 1 to kTile
  std::int64_t width = 0;          // D
  std::uint8_t* blocks = nullptr;  // num_groups() blocks, written
};

// Rows x [M, D] in 8 bits: x = scale * value, each group with a scale of its own. The last group is filled up with 0.
// What a row becomes depends on itself alone. A number that is not finite makes its group's scale so.
struct InputRounding {
  const float* input = nullptr;   // [M, D], dense
  std::int64_t num_rows = 0;      // M
  std::int64_t width = 0;         // D
  int bits = 8;                   // of the weight, whose groups these are
  std::int8_t* values = nullptr;  // [M, groups * group_size], written
  float* scales = nullptr;        // [M, groups], written
  std::int32_t* sums = nullptr;   // [M, groups]: of the values, written
};

// Those rows against outputs [begin, end) of a weight: out[m, e] = x[m] . W[e], fp32. Inside of a group the products
// are added up as integers, without rounding; the groups then in their order. So each number is the same to the bit for
// every M, begin and end.
struct QuantizedProducts {
  int bits = 8;
  const std::int8_t* values = nullptr;
  const float* scales = nullptr;
  const std::int32_t* sums = nullptr;
  const std::uint8_t* blocks = nullptr;
  std::int64_t num_rows = 0;  // M
  std::int64_t width = 0;     // D
  std::int64_t begin = 0;     // a multiple of kTile
  std::int64_t end = 0;
  float* out = nullptr;  // out[m * out_stride + e - begin]
  std::int64_t out_stride = 0;
};

struct QuantizedKernels {
  const char* instruction_set;
  // Rounds to the nearest of 8 bits; of 4 bits, with the range out of a few that gives the smallest squared error.
  // False where a weight is not finite, or above 1e38.
  bool (*quantize)(const WeightTile&);
  void (*quantize_inputs)(const InputRounding&);
  void (*products)(const QuantizedProducts&);
};
// Those that this processor can run, the fastest first, the portable ones last.
std::span<const QuantizedKernels> quantized_kernels();

// The weights that a tile stands for: out [num_rows, width].
void dequantize(const WeightTile& tile, float* out);

}  // namespace thinkvg::nn::cpu
