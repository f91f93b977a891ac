#include "image/cpu/resize_kernel.h"

#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <utility>

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

// ---- sixteen rows at once ----
//
// A row by itself spends its time on adding up neighbours. With the same two columns of sixteen rows side by side, each
// instruction adds to sixteen outputs. Two columns make 32 words: rows 0..3, 8..11, then rows 4..7, 12..15, each row's
// two values together, in the order in which packing brings them back.

constexpr std::int64_t kRowsAtOnce = 16;
constexpr std::int64_t kPairWords = 2 * kRowsAtOnce;

std::int64_t word_of_row(std::int64_t row) { return row % 8 / 4 * 16 + row / 8 * 8 + row % 4 * 2; }

// Columns [2 * begin, 2 * end) as pairs; a column behind the last is 0.
void gather_portable(const Rows& in, std::int64_t width, std::int64_t begin, std::uint16_t* to) {
  for (std::int64_t pair = begin; 2 * pair < width; ++pair) {
    for (std::int64_t row = 0; row < kRowsAtOnce; ++row) {
      const std::uint8_t* from = in.values + row * in.stride + 2 * pair;
      std::uint16_t* words = to + pair * kPairWords + word_of_row(row);
      words[0] = from[0];
      words[1] = 2 * pair + 1 < width ? from[1] : 0;
    }
  }
}

// Eight pairs of columns at a time; returns how many pairs it did.
[[gnu::target("avx2")]] std::int64_t gather_avx2(const Rows& in, std::int64_t width, std::uint16_t* to) {
  const __m256i zero = _mm256_setzero_si256();
  std::int64_t pair = 0;
  for (; 2 * pair + 16 <= width; pair += 8, to += 8 * kPairWords) {
    __m256i a[8], b[8];
    for (std::int64_t row = 0; row < 8; ++row) {
      const std::uint8_t* from = in.values + row * in.stride + 2 * pair;
      const __m128i upper = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
      const __m128i lower = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 8 * in.stride));
      a[row] = _mm256_inserti128_si256(_mm256_castsi128_si256(upper), lower, 1);
    }
    // Three perfect shuffles of the pairs turn rows into columns.
    for (std::int64_t i = 0; i < 4; ++i) {
      b[2 * i] = _mm256_unpacklo_epi16(a[i], a[i + 4]);
      b[2 * i + 1] = _mm256_unpackhi_epi16(a[i], a[i + 4]);
    }
    for (std::int64_t i = 0; i < 4; ++i) {
      a[2 * i] = _mm256_unpacklo_epi16(b[i], b[i + 4]);
      a[2 * i + 1] = _mm256_unpackhi_epi16(b[i], b[i + 4]);
    }
    for (std::int64_t i = 0; i < 4; ++i) {
      b[2 * i] = _mm256_unpacklo_epi16(a[i], a[i + 4]);
      b[2 * i + 1] = _mm256_unpackhi_epi16(a[i], a[i + 4]);
    }
    for (std::int64_t i = 0; i < 8; ++i) {
      auto* words = reinterpret_cast<__m256i*>(to + i * kPairWords);
      _mm256_storeu_si256(words, _mm256_unpacklo_epi8(b[i], zero));
      _mm256_storeu_si256(words + 1, _mm256_unpackhi_epi8(b[i], zero));
    }
  }
  return pair;
}

struct PairWeights {
  const std::int32_t* weights;  // [output * pairs + pair]
  std::int64_t pairs;
};

// The sixteen rows' values of one output, as words: rows 0..7, then 8..15.
[[gnu::target("avx2"), gnu::always_inline]] inline __m256i one_output(const std::uint16_t* from,
                                                                      const std::int32_t* weights, std::int64_t pairs,
                                                                      int precision) {
  __m256i first = _mm256_set1_epi32(1 << (precision - 1)), second = first;
  for (std::int64_t pair = 0; pair < pairs; ++pair, from += kPairWords) {
    const __m256i factors = _mm256_set1_epi32(weights[pair]);
    const auto* words = reinterpret_cast<const __m256i*>(from);
    first = _mm256_add_epi32(first, _mm256_madd_epi16(_mm256_loadu_si256(words), factors));
    second = _mm256_add_epi32(second, _mm256_madd_epi16(_mm256_loadu_si256(words + 1), factors));
  }
  const __m128i shift = _mm_cvtsi32_si128(precision);
  return _mm256_packs_epi32(_mm256_sra_epi32(first, shift), _mm256_sra_epi32(second, shift));
}

// All outputs of sixteen rows, sixteen outputs at a time; the last sixteen may be made twice. Needs as many outputs.
[[gnu::target("avx2")]] void outputs_avx2(const std::uint16_t* columns, const AxisWeights& axis, const PairWeights& by,
                                          std::uint8_t* out) {
  const std::int64_t outputs = axis.outputs();
  for (std::int64_t block = 0; block < outputs; block += 16) {
    const std::int64_t begin = std::min(block, outputs - 16);
    __m256i a[8], b[8];
    for (std::int64_t i = 0; i < 8; ++i) {
      const std::int64_t at = begin + 2 * i;
      const std::int64_t* first = axis.first.data() + at;
      const __m256i even =
          one_output(columns + first[0] / 2 * kPairWords, by.weights + at * by.pairs, by.pairs, axis.precision);
      const __m256i odd =
          one_output(columns + first[1] / 2 * kPairWords, by.weights + (at + 1) * by.pairs, by.pairs, axis.precision);
      a[i] = _mm256_packus_epi16(even, odd);
    }
    // Four perfect shuffles of the bytes turn outputs into rows.
    for (int round = 0; round < 2; ++round) {
      for (std::int64_t i = 0; i < 4; ++i) {
        b[2 * i] = _mm256_unpacklo_epi8(a[i], a[i + 4]);
        b[2 * i + 1] = _mm256_unpackhi_epi8(a[i], a[i + 4]);
      }
      for (std::int64_t i = 0; i < 4; ++i) {
        a[2 * i] = _mm256_unpacklo_epi8(b[i], b[i + 4]);
        a[2 * i + 1] = _mm256_unpackhi_epi8(b[i], b[i + 4]);
      }
    }
    for (std::int64_t row = 0; row < 8; ++row) {
      std::uint8_t* to = out + row * outputs + begin;
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(a[row]));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 8 * outputs), _mm256_extracti128_si256(a[row], 1));
    }
  }
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

[[gnu::always_inline]] inline void weigh(const WeighedRows& rows, const AxisWeights& axis, std::uint8_t* out) {
  const std::int16_t* weights = axis.weights.data() + rows.output * axis.stride;
  const std::int64_t taps = axis.taps[static_cast<std::size_t>(rows.output)], width = rows.width;
  std::int64_t x = 0;
  for (; x + kBlock <= width; x += kBlock)
    column_block(rows.from + x, width, weights, taps, axis.precision, kBlock, out + x);
  if (x < width) column_block(rows.from + x, width, weights, taps, axis.precision, width - x, out + x);
}

[[gnu::target("avx512f,avx512bw,avx512vl")]] void weigh_avx512(const WeighedRows& rows, const AxisWeights& axis,
                                                               std::uint8_t* out) {
  weigh(rows, axis, out);
}
[[gnu::target("avx2")]] void weigh_avx2(const WeighedRows& rows, const AxisWeights& axis, std::uint8_t* out) {
  weigh(rows, axis, out);
}
void weigh_portable(const WeighedRows& rows, const AxisWeights& axis, std::uint8_t* out) { weigh(rows, axis, out); }

}  // namespace

WidthResizer::WidthResizer(AxisWeights axis, std::int64_t width) : axis_(std::move(axis)), width_(width) {
  if (!__builtin_cpu_supports("avx2")) return;
  // Only those of the very last row could leave the picture, but one rule for all rows is simpler.
  while (num_inside_ < axis_.outputs() && axis_.first[static_cast<std::size_t>(num_inside_)] + axis_.stride <= width)
    ++num_inside_;
  if (axis_.outputs() < 16) return;
  const std::int64_t most = *std::max_element(axis_.taps.begin(), axis_.taps.end());
  pairs_ = most / 2 + 1;  // an odd first column comes with the one before it
  pair_weights_.assign(static_cast<std::size_t>(axis_.outputs() * pairs_), 0);
  for (std::int64_t i = 0; i < axis_.outputs(); ++i) {
    const auto n = static_cast<std::size_t>(i);
    for (std::int64_t t = 0; t < axis_.taps[n]; ++t) {
      const std::int64_t place = t + axis_.first[n] % 2;
      const auto word = static_cast<std::uint16_t>(axis_.weights[static_cast<std::size_t>(i * axis_.stride + t)]);
      std::int32_t& pair = pair_weights_[static_cast<std::size_t>(i * pairs_ + place / 2)];
      pair |= static_cast<std::int32_t>(std::uint32_t{word} << (place % 2 == 0 ? 0 : 16));
    }
  }
  columns_.assign(static_cast<std::size_t>(((width + 1) / 2 + pairs_) * kPairWords), 0);
}

void WidthResizer::run(const Rows& in, std::uint8_t* out) {
  const std::int64_t outputs = axis_.outputs();
  std::int64_t y = 0;
  for (; pairs_ > 0 && y + kRowsAtOnce <= in.count; y += kRowsAtOnce) {
    const Rows rows{in.values + y * in.stride, in.stride, kRowsAtOnce};
    gather_portable(rows, width_, gather_avx2(rows, width_, columns_.data()), columns_.data());
    outputs_avx2(columns_.data(), axis_, {pair_weights_.data(), pairs_}, out + y * outputs);
  }
  for (; y < in.count; ++y) {
    const Row row{in.values + y * in.stride, out + y * outputs};
    row_portable(row, axis_, num_inside_ > 0 ? row_avx2(row, axis_, num_inside_) : 0, outputs);
  }
}

void resize_height(const WeighedRows& rows, const AxisWeights& axis, std::uint8_t* out) {
  static const auto chosen = [] {
    const bool wide =
        __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    return wide ? weigh_avx512 : __builtin_cpu_supports("avx2") ? weigh_avx2 : weigh_portable;
  }();
  chosen(rows, axis, out);
}

}  // namespace thinkvg::image::cpu
