#include "nn/cpu/decode_attention.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace thinkvg::nn::cpu {
namespace {

// exp for x <= 0, relative error below 2e-7: 2^n times a polynomial in the remainder (Cephes' expf). Written without
// calls and branches so that loops over it are vectorised.
inline float exp_nonpositive(float x) {
  x = x < -87.0f ? -87.0f : x;
  const float shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23 rounds to the nearest integer
  const float n = shifted - 12582912.0f;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return p * std::bit_cast<float>((static_cast<std::int32_t>(n) + 127) << 23);
}

}  // namespace

#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__)
__attribute__((target_clones("arch=skylake-avx512", "arch=haswell", "default")))
#endif
void decode_attention_row(const DecodeRow& row) {
  const std::int64_t width = row.head_dim;
  const float scale = 1.0f / std::sqrt(static_cast<float>(width));
  const float* __restrict query = row.query;
  float* __restrict scores = row.scores;
  float* __restrict output = row.output;
  float maximum = -INFINITY;
  for (std::int64_t l = 0; l < row.length; ++l) {
    const float* __restrict key = row.keys + l * width;
    float dot = 0;
#pragma omp simd reduction(+ : dot)
    for (std::int64_t k = 0; k < width; ++k) dot += query[k] * key[k];
    scores[l] = dot * scale;
    maximum = std::max(maximum, scores[l]);
  }
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t l = 0; l < row.length; ++l) {
    const float weight = exp_nonpositive(scores[l] - maximum);
    scores[l] = weight;
    sum += weight;
  }
  const float normalizer = 1.0f / sum;
  std::fill(output, output + width, 0.0f);
  for (std::int64_t l = 0; l < row.length; ++l) {
    const float weight = scores[l] * normalizer;
    const float* __restrict value = row.values + l * width;
#pragma omp simd
    for (std::int64_t k = 0; k < width; ++k) output[k] += weight * value[k];
  }
}

}  // namespace thinkvg::nn::cpu
