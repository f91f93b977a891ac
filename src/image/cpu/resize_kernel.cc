#include "image/cpu/resize_kernel.h"

#include <immintrin.h>

#include <algorithm>
#include <cstring>

namespace thinkvg::image::cpu {
namespace {

std::uint8_t to_byte(std::int32_t sum, int precision) {
  return static_cast<std::uint8_t>(std::clamp(sum >> precision, 0, 255));
}

struct Row {
  const std::uint8_t* in;
  std::uint8_t* out;
};

// Outputs [begin, end) of one row. Reads only what the taps name.
void row_portable(const Row& row, const AxisWeights& axis, std::int64_t begin, std::int64_t end) {
  for (std::int64_t i = begin; i < end; ++i) {
    const auto n = static_cast<std::size_t>(i);
    const std::int16_t* weights = axis.weights.data() + i * axis.stride;
    const std::uint8_t* from = row.in + axis.first[n];
    std::int32_t sum = 1 << (axis.precision - 1);
    for (std::int64_t t = 0; t < axis.taps[n]; ++t) sum += std::int32_t{weights[t]} * from[t];
    row.out[i] = to_byte(sum, axis.precision);
  }
}

[[gnu::target("avx2")]] __m256i products(const std::uint8_t* from, const std::int16_t* weights, std::int64_t stride) {
  __m256i sum = _mm256_setzero_si256();
  for (std::int64_t t = 0; t < stride; t += 16) {
    const __m256i pixels = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + t)));
    const __m256i factors = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights + t));
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pixels, factors));
  }
  return sum;
}

// Outputs [0, end), four at a time; reads up to `stride` bytes from each output's first input. Returns how many it did.
[[gnu::target("avx2")]] std::int64_t row_avx2(const Row& row, const AxisWeights& axis, std::int64_t end) {
  const std::int64_t stride = axis.stride;
  const __m128i half = _mm_set1_epi32(1 << (axis.precision - 1));
  const __m128i shift = _mm_cvtsi32_si128(axis.precision);
  std::int64_t i = 0;
  for (; i + 4 <= end; i += 4) {
    const std::int64_t* first = axis.first.data() + i;
    const std::int16_t* weights = axis.weights.data() + i * stride;
    const __m256i a = products(row.in + first[0], weights, stride);
    const __m256i b = products(row.in + first[1], weights + stride, stride);
    const __m256i c = products(row.in + first[2], weights + 2 * stride, stride);
    const __m256i d = products(row.in + first[3], weights + 3 * stride, stride);
    const __m256i abcd = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
    __m128i sums = _mm_add_epi32(_mm256_castsi256_si128(abcd), _mm256_extracti128_si256(abcd, 1));
    sums = _mm_sra_epi32(_mm_add_epi32(sums, half), shift);
    const __m128i words = _mm_packs_epi32(sums, sums);
    const std::int32_t bytes = _mm_cvtsi128_si32(_mm_packus_epi16(words, words));
    std::memcpy(row.out + i, &bytes, sizeof bytes);
  }
  return i;
}

// One output row: the weighted sum of `taps` rows. Blocks keep the sums in registers.
constexpr std::int64_t kBlock = 64;

[[gnu::always_inline]] inline void column_block(const std::uint8_t* from, std::int64_t width,
                                                const std::int16_t* weights, std::int64_t taps, int precision,
                                                std::int64_t count, std::uint8_t* out) {
  std::int32_t sums[kBlock];
  for (std::int64_t x = 0; x < count; ++x) sums[x] = 1 << (precision - 1);
  for (std::int64_t t = 0; t < taps; ++t, from += width) {
    const std::int32_t weight = weights[t];
    for (std::int64_t x = 0; x < count; ++x) sums[x] += weight * from[x];
  }
  for (std::int64_t x = 0; x < count; ++x) out[x] = to_byte(sums[x], precision);
}

[[gnu::always_inline]] inline void columns(const Plane& in, const AxisWeights& axis, std::uint8_t* out) {
  for (std::size_t y = 0; y < axis.first.size(); ++y, out += in.width) {
    const std::uint8_t* from = in.values + axis.first[y] * in.width;
    const std::int16_t* weights = axis.weights.data() + static_cast<std::int64_t>(y) * axis.stride;
    std::int64_t x = 0;
    for (; x + kBlock <= in.width; x += kBlock)
      column_block(from + x, in.width, weights, axis.taps[y], axis.precision, kBlock, out + x);
    if (x < in.width) column_block(from + x, in.width, weights, axis.taps[y], axis.precision, in.width - x, out + x);
  }
}

[[gnu::target("avx512f,avx512bw,avx512vl")]] void columns_avx512(const Plane& in, const AxisWeights& axis,
                                                                 std::uint8_t* out) {
  columns(in, axis, out);
}
[[gnu::target("avx2")]] void columns_avx2(const Plane& in, const AxisWeights& axis, std::uint8_t* out) {
  columns(in, axis, out);
}
void columns_portable(const Plane& in, const AxisWeights& axis, std::uint8_t* out) { columns(in, axis, out); }

}  // namespace

void resize_width(const Plane& in, const AxisWeights& axis, std::uint8_t* out) {
  const auto outputs = static_cast<std::int64_t>(axis.first.size());
  const bool fast = __builtin_cpu_supports("avx2");
  // The outputs whose wide reads stay inside the row; only those of the very last row could leave the plane, but one
  // rule for all rows is simpler.
  std::int64_t inside = 0;
  if (fast)
    while (inside < outputs && axis.first[static_cast<std::size_t>(inside)] + axis.stride <= in.width) ++inside;
  for (std::int64_t y = 0; y < in.height; ++y) {
    const Row row{in.values + y * in.width, out + y * outputs};
    const std::int64_t done = fast ? row_avx2(row, axis, inside) : 0;
    row_portable(row, axis, done, outputs);
  }
}

void resize_height(const Plane& in, const AxisWeights& axis, std::uint8_t* out) {
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
    return columns_avx512(in, axis, out);
  if (__builtin_cpu_supports("avx2")) return columns_avx2(in, axis, out);
  columns_portable(in, axis, out);
}

}  // namespace thinkvg::image::cpu
