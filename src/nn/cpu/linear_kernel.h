#pragma once

// Plain C++, so that the kernel's source needs no LibTorch headers and can be compiled for several instruction sets.

#include <cstdint>

namespace thinkvg::nn::cpu {

// Rows x [M, D] (dense, fp32; bf16 where multiplies_bf16() and W is bf16) against rows [begin, end) of a weight W [E,
// D] (fp32 or bf16, dense): out[m, e] = x[m] . W[e], fp32. Each number is added up in an order that depends on D alone:
// it is the same to the bit for every M, begin and end.
struct LinearRows {
  const void* input = nullptr;
  bool input_is_bf16 = false;
  const void* weight = nullptr;
  bool is_bf16 = false;       // the weight
  std::int64_t num_rows = 0;  // M
  std::int64_t width = 0;     // D
  std::int64_t begin = 0;
  std::int64_t end = 0;
  float* out = nullptr;  // out[m * out_stride + e - begin]
  std::int64_t out_stride = 0;
};
void linear_rows(const LinearRows& rows);
// Whether bf16 numbers need not be made fp32 first: the processor has dot products of them (AVX512_BF16).
bool multiplies_bf16();

// bf16 to fp32 and back, rounded to nearest even.
void widen(const std::uint16_t* from, float* to, std::int64_t count);
void narrow(const float* from, std::uint16_t* to, std::int64_t count);

}  // namespace thinkvg::nn::cpu
