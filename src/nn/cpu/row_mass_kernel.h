#pragma once

// Plain C++, so that the kernel's source needs no LibTorch headers and can be compiled for several instruction sets.

#include <cstdint>

namespace thinkvg::nn::cpu {

constexpr std::int64_t kMassBlock = 512;

float largest(const float* row, std::int64_t count);
// exp((x - largest) * scale) of up to kMassBlock numbers: their sum, and each where `out` is given.
float exponentials(const float* row, std::int64_t count, float largest, float scale, float* out);

}  // namespace thinkvg::nn::cpu
