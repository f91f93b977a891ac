#include "nn/cpu/quantized_kernel.h"

#include <algorithm>
#include <vector>

#include "nn/cpu/vectors.h"

#ifdef __x86_64__
#include <immintrin.h>
#endif

namespace thinkvg::nn::cpu {
namespace {

// Rows whose sums wait in a core's nearest cache while a tile's groups pass by.
constexpr std::int64_t kRowsAtATime = 64;
// Inputs that stay in a core's cache while the weights pass by.
constexpr std::int64_t kInputBytes = 768 * 1024;
constexpr int kZero = 128;             // what stands for 0 in 8 bits
constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, which then are the lowest bits
constexpr std::int32_t kRoundBits = 0x4B400000;
constexpr float kVanishing = 1e-30f;  // groups below it are 0: their scale's reciprocal may not be finite
constexpr float kLargest = 1e38f;     // weights up to it have finite ranges
// The ranges of 4 bits that are tried: both ends drawn in by up to kNumEnds - 1 steps. 16 pairs have nearly all of the
// gain of more (normally distributed weights: error 7.8 % of their deviation without, 7.2 % with them).
constexpr int kNumEnds = 4;
constexpr float kEndStep = 0.05f;

using Bytes = std::int8_t __attribute__((vector_size(16)));

[[gnu::always_inline]] inline Ints load_ints(const std::uint8_t* at) {
  Ints values;
  std::memcpy(&values, at, sizeof values);
  return values;
}

[[gnu::always_inline]] inline Floats rounded(Floats x) { return (x + kRound) - kRound; }

// To a bf16 number: the nearest one, or the next one that is not smaller.
[[gnu::always_inline]] inline Floats to_bf16(Floats x) {
  const Ints bits = reinterpret_cast<Ints>(x);
  return reinterpret_cast<Floats>((bits + 0x7FFF + ((bits >> 16) & 1)) & ~0xFFFF);
}
[[gnu::always_inline]] inline Floats up_to_bf16(Floats x) {
  return reinterpret_cast<Floats>((reinterpret_cast<Ints>(x) + 0xFFFF) & ~0xFFFF);
}

[[gnu::always_inline]] inline Floats smaller(Floats a, Floats b) { return a < b ? a : b; }
[[gnu::always_inline]] inline Floats magnitude(Floats x) {
  return reinterpret_cast<Floats>(reinterpret_cast<Ints>(x) & 0x7FFFFFFF);
}
[[gnu::always_inline]] inline Floats reciprocal(Floats scale) { return scale > 0.0f ? 1.0f / scale : splat(0); }

template <class Vector>
[[gnu::always_inline]] inline bool any(Vector mask) {
  std::int32_t found = 0;
  for (int i = 0; i < kLanes; ++i) found |= mask[i];
  return found != 0;
}

// One group of kLanes outputs: column k holds input k of all of them.
template <int kBits>
struct Group {
  Floats columns[group_size(kBits)];
  Ints numbers[group_size(kBits)];
  Floats scale;
  Floats smallest;  // 4 bits
};

template <int kBits>
[[gnu::always_inline]] inline void round_group(Group<kBits>& group) {
  constexpr std::int64_t kSize = group_size(kBits);
  if constexpr (kBits == 8) {
    Floats largest = {};
    for (std::int64_t k = 0; k < kSize; ++k) largest = larger(magnitude(group.columns[k]), largest);
    // The scale is rounded first, upwards: no weight lies outside of what 8 bits reach.
    group.scale = largest > kVanishing ? up_to_bf16(largest / 127.0f) : splat(0);
    const Floats inverse = reciprocal(group.scale);
    for (std::int64_t k = 0; k < kSize; ++k)
      group.numbers[k] = __builtin_convertvector(rounded(group.columns[k] * inverse), Ints) + kZero;
  } else {
    Floats lowest = group.columns[0], highest = group.columns[0];
    for (std::int64_t k = 1; k < kSize; ++k) {
      lowest = smaller(group.columns[k], lowest);
      highest = larger(group.columns[k], highest);
    }
    const auto number_of = [](Floats weight, Floats smallest, Floats inverse) __attribute__((always_inline)) {
      return larger(smaller(rounded((weight - smallest) * inverse), splat(15)), splat(0));
    };
    Floats least = {};
    for (int a = 0; a < kNumEnds; ++a)
      for (int b = 0; b < kNumEnds; ++b) {
        const Floats low = lowest * (1.0f - kEndStep * static_cast<float>(a));
        const Floats high = highest * (1.0f - kEndStep * static_cast<float>(b));
        const Floats smallest = to_bf16(low);
        Floats scale = to_bf16((high - low) / 15.0f);
        scale = scale > kVanishing ? scale : splat(0);
        const Floats inverse = reciprocal(scale);
        Floats error = {};
        for (std::int64_t k = 0; k < kSize; ++k) {
          const Floats off = group.columns[k] - (number_of(group.columns[k], smallest, inverse) * scale + smallest);
          error += off * off;
        }
        const Ints is_less = a + b == 0 ? ~Ints{} : error < least;  // the whole range even where its error overflows
        least = is_less ? error : least;
        group.scale = is_less ? scale : group.scale;
        group.smallest = is_less ? smallest : group.smallest;
      }
    const Floats inverse = reciprocal(group.scale);
    for (std::int64_t k = 0; k < kSize; ++k)
      group.numbers[k] = __builtin_convertvector(number_of(group.columns[k], group.smallest, inverse), Ints);
  }
}

template <int kBits>
[[gnu::always_inline]] inline bool quantize_tile(const WeightTile& tile) {
  constexpr std::int64_t kSize = group_size(kBits);
  for (std::int64_t g = 0; g < num_groups(tile.width, kBits); ++g) {
    std::uint8_t* block = tile.blocks + g * block_bytes(kBits);
    std::uint8_t* packed = block + kTile * (kBits == 8 ? 2 : 4);
    for (std::int64_t first = 0; first < kTile; first += kLanes) {
      Group<kBits> group = {};
      Ints is_wrong = {};
      const std::int64_t rows = std::clamp<std::int64_t>(tile.num_rows - first, 0, kLanes);
      const std::int64_t columns = std::min(kSize, tile.width - g * kSize);
      float column[kSize][kLanes] = {};
      for (std::int64_t e = 0; e < rows; ++e) {
        const float* from = tile.weight + (first + e) * tile.width + g * kSize;
        for (std::int64_t k = 0; k < columns; ++k) column[k][e] = from[k];
      }
      for (std::int64_t k = 0; k < kSize; ++k) {
        group.columns[k] = load(column[k]);
        is_wrong |= ~(magnitude(group.columns[k]) <= kLargest);
      }
      if (any(is_wrong)) return false;
      round_group(group);
      store(reinterpret_cast<std::uint16_t*>(block) + first, group.scale);
      if constexpr (kBits == 4) store(reinterpret_cast<std::uint16_t*>(block) + kTile + first, group.smallest);
      constexpr std::int64_t kInputs = 32 / kBits;  // of an output, side by side
      for (std::int64_t k = 0; k < kSize; k += kInputs) {
        Ints word = {};
        for (std::int64_t j = 0; j < 4; ++j) {
          word |= group.numbers[k + j] << static_cast<int>(8 * j);
          if constexpr (kBits == 4) word |= group.numbers[k + 4 + j] << static_cast<int>(8 * j + 4);
        }
        std::memcpy(packed + k / kInputs * kTile * 4 + first * 4, &word, sizeof word);
      }
    }
  }
  return true;
}

[[gnu::always_inline]] inline bool quantize_any(const WeightTile& tile) {
  return tile.bits == 8 ? quantize_tile<8>(tile) : quantize_tile<4>(tile);
}

[[gnu::always_inline]] inline void quantize_input_rows(const InputRounding& rows) {
  const std::int64_t size = group_size(rows.bits), groups = num_groups(rows.width, rows.bits);
  for (std::int64_t i = 0; i < rows.num_rows * groups; ++i) {
    const std::int64_t row = i / groups, first = i % groups * size;
    const float* from = rows.input + row * rows.width + first;
    const std::int64_t count = std::min(size, rows.width - first);
    const auto at = [&](std::int64_t k) __attribute__((always_inline)) {
      return k + kLanes <= count ? load(from + k) : load_part(from + k, std::max<std::int64_t>(0, count - k));
    };
    Floats highest = {};
    for (std::int64_t k = 0; k < size; k += kLanes) {
      const Floats values = magnitude(at(k));
      highest = (values > highest) | (values != values) ? values : highest;  // NaN stays
    }
    float largest = 0;
    for (int k = 0; k < kLanes; ++k)
      if (highest[k] > largest || highest[k] != highest[k]) largest = highest[k];
    const bool vanishes = largest < kVanishing;
    const float inverse = vanishes ? 0 : 127.0f / largest;
    rows.scales[i] = vanishes ? 0 : largest / 127.0f;
    Ints sum = {};
    for (std::int64_t k = 0; k < size; k += kLanes) {
      const Ints numbers = reinterpret_cast<Ints>(at(k) * inverse + kRound) - kRoundBits;
      const Bytes bytes = __builtin_convertvector(numbers, Bytes);
      std::memcpy(rows.values + i * size + k, &bytes, sizeof bytes);
      sum += numbers;
    }
    std::int32_t total = 0;
    for (int k = 0; k < kLanes; ++k) total += sum[k];
    rows.sums[i] = total;
  }
}

// An Adder adds up the products of one group: kRows rows against a tile, from `start` on. They are whole numbers below
// 2^24, which fp32 holds without rounding. Its loops over rows and vectors must be unrolled, so that the sums stay in
// registers.
template <class Vector, int kRows>
struct Sums {
  static constexpr int kVectors = static_cast<int>(kTile * sizeof(float) / sizeof(Vector));
  Vector of[kRows][kVectors];
};

// Any instruction set: the numbers go through fp32, in vectors that AVX2 has.
struct PlainAdder {
  using Vector = float __attribute__((vector_size(32)));
  using Whole = std::int32_t __attribute__((vector_size(32)));
  static constexpr int kMostRows = 2;
  static constexpr std::int64_t kWidth = 8;

  [[gnu::always_inline]] static inline Vector load(const std::uint16_t* at) {
    std::uint16_t bits __attribute__((vector_size(16)));
    std::memcpy(&bits, at, sizeof bits);
    return reinterpret_cast<Vector>(__builtin_convertvector(bits, Whole) << 16);
  }

  template <int kBits, int kRows>
  [[gnu::always_inline]] static inline Sums<Vector, kRows> add(const std::uint8_t* weights, const std::int8_t* values,
                                                               std::int64_t stride,
                                                               const std::int32_t (&start)[kRows]) {
    constexpr std::int64_t kSize = group_size(kBits), kInputs = 32 / kBits;
    float inputs[kRows][kSize];
    for (int r = 0; r < kRows; ++r)
      for (std::int64_t k = 0; k < kSize; ++k) inputs[r][k] = static_cast<float>(values[r * stride + k]);
    Sums<Vector, kRows> sums;
#pragma GCC unroll 4
    for (int v = 0; v < sums.kVectors; ++v) {
#pragma GCC unroll 2
      for (int r = 0; r < kRows; ++r) sums.of[r][v] = static_cast<float>(start[r]) - Vector{};
      for (std::int64_t k = 0; k < kSize; k += kInputs) {
        Whole words;
        std::memcpy(&words, weights + (k / kInputs * kTile + v * kWidth) * 4, sizeof words);
#pragma GCC unroll 8
        for (std::int64_t i = 0; i < kInputs; ++i) {
          const int shift = static_cast<int>(kBits == 8 ? 8 * i : 8 * (i % 4) + 4 * (i / 4));
          const Vector numbers = __builtin_convertvector((words >> shift) & ((1 << kBits) - 1), Vector);
#pragma GCC unroll 2
          for (int r = 0; r < kRows; ++r) sums.of[r][v] += numbers * inputs[r][k + i];
        }
      }
    }
    return sums;
  }
};

#ifdef __x86_64__
// Instructions that multiply four bytes a lane and add them up at once.
struct VnniAdder {
  using Vector = Floats;
  static constexpr int kMostRows = 8;
  static constexpr std::int64_t kWidth = kLanes;

  [[gnu::always_inline]] static inline Vector load(const std::uint16_t* at) { return cpu::load(at); }
  // Four inputs, for all lanes.
  [[gnu::target("avx512f"), gnu::always_inline]] static inline Ints four(const std::int8_t* at) {
    std::int32_t word;
    std::memcpy(&word, at, sizeof word);
    return reinterpret_cast<Ints>(_mm512_set1_epi32(word));
  }
  [[gnu::target("avx512f,avx512vnni"), gnu::always_inline]] static inline Ints dot(Ints sum, Ints weights,
                                                                                   Ints inputs) {
    return reinterpret_cast<Ints>(_mm512_dpbusd_epi32(
        reinterpret_cast<__m512i>(sum), reinterpret_cast<__m512i>(weights), reinterpret_cast<__m512i>(inputs)));
  }

  template <int kBits, int kRows>
  [[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma")]] static inline Sums<Vector, kRows> add(
      const std::uint8_t* weights, const std::int8_t* values, std::int64_t stride, const std::int32_t (&start)[kRows]) {
    constexpr std::int32_t kLower = 0x0F0F0F0F;
    Ints totals[kRows][2];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) totals[r][0] = totals[r][1] = reinterpret_cast<Ints>(_mm512_set1_epi32(start[r]));
    constexpr std::int64_t kSize = group_size(kBits), kInputs = 32 / kBits;
#pragma GCC unroll 1
    for (std::int64_t k = 0; k < kSize; k += kInputs) {
      const Ints left = load_ints(weights), right = load_ints(weights + kTile * 2);
      weights += kTile * 4;
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const std::int8_t* inputs = values + r * stride + k;
        if constexpr (kBits == 8) {
          totals[r][0] = dot(totals[r][0], left, four(inputs));
          totals[r][1] = dot(totals[r][1], right, four(inputs));
        } else {
          totals[r][0] = dot(totals[r][0], left & kLower, four(inputs));
          totals[r][1] = dot(totals[r][1], right & kLower, four(inputs));
          totals[r][0] = dot(totals[r][0], left >> 4 & kLower, four(inputs + 4));
          totals[r][1] = dot(totals[r][1], right >> 4 & kLower, four(inputs + 4));
        }
      }
    }
    Sums<Vector, kRows> sums;
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      sums.of[r][0] = __builtin_convertvector(totals[r][0], Vector);
      sums.of[r][1] = __builtin_convertvector(totals[r][1], Vector);
    }
    return sums;
  }
};
#endif

// Group g of a tile for kRows rows from `row` on, added to their sums [kRows, kTile].
template <class Adder, int kBits, int kRows>
[[gnu::always_inline]] inline void add_group(const QuantizedProducts& rows, const std::uint8_t* block, std::int64_t g,
                                             std::int64_t row, float* sums) {
  using Vector = typename Adder::Vector;
  const std::int64_t groups = num_groups(rows.width, kBits), stride = groups * group_size(kBits);
  const auto* numbers = reinterpret_cast<const std::uint16_t*>(block);
  std::int32_t start[kRows] = {};
  float scale[kRows], offset[kRows];
  for (int r = 0; r < kRows; ++r) {
    const std::int64_t at = (row + r) * groups + g;
    if constexpr (kBits == 8) start[r] = -kZero * rows.sums[at];
    scale[r] = rows.scales[at];
    offset[r] = scale[r] * static_cast<float>(rows.sums[at]);
  }
  const Sums<Vector, kRows> products = Adder::template add<kBits, kRows>(
      block + kTile * (kBits == 8 ? 2 : 4), rows.values + row * stride + g * group_size(kBits), stride, start);
#pragma GCC unroll 4
  for (int v = 0; v < products.kVectors; ++v) {
    const Vector scales = Adder::load(numbers + v * Adder::kWidth);
    Vector smallest = {};
    if constexpr (kBits == 4) smallest = Adder::load(numbers + kTile + v * Adder::kWidth);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      float* at = sums + r * kTile + v * Adder::kWidth;
      Vector sum;
      std::memcpy(&sum, at, sizeof sum);
      sum += products.of[r][v] * (scales * scale[r]);
      if constexpr (kBits == 4) sum += smallest * offset[r];
      std::memcpy(at, &sum, sizeof sum);
    }
  }
}

// Rows [first, last), at most kRowsAtATime, against the tile of outputs from e on.
template <class Adder, int kBits>
[[gnu::always_inline]] inline void tile_products(const QuantizedProducts& rows, std::int64_t first, std::int64_t last,
                                                 std::int64_t e) {
  const std::int64_t groups = num_groups(rows.width, kBits);
  const std::uint8_t* block = rows.blocks + e / kTile * groups * block_bytes(kBits);
  float sums[kRowsAtATime * kTile];
  std::fill_n(sums, (last - first) * kTile, 0.0f);
  for (std::int64_t g = 0; g < groups; ++g, block += block_bytes(kBits)) {
    std::int64_t m = first;
    const auto to = [&] { return sums + (m - first) * kTile; };
    if constexpr (Adder::kMostRows >= 8)
      for (; m + 8 <= last; m += 8) add_group<Adder, kBits, 8>(rows, block, g, m, to());
    if constexpr (Adder::kMostRows >= 4)
      for (; m + 4 <= last; m += 4) add_group<Adder, kBits, 4>(rows, block, g, m, to());
    for (; m + 2 <= last; m += 2) add_group<Adder, kBits, 2>(rows, block, g, m, to());
    for (; m < last; ++m) add_group<Adder, kBits, 1>(rows, block, g, m, to());
  }
  const std::int64_t count = std::min(kTile, rows.end - e);
  for (std::int64_t m = first; m < last; ++m)
    std::copy_n(sums + (m - first) * kTile, count, rows.out + m * rows.out_stride + e - rows.begin);
}

template <class Adder, int kBits>
[[gnu::always_inline]] inline void all_products(const QuantizedProducts& rows) {
  const std::int64_t row_bytes = num_groups(rows.width, kBits) * group_size(kBits);
  const std::int64_t block = std::max(kRowsAtATime, kInputBytes / row_bytes / kRowsAtATime * kRowsAtATime);
  for (std::int64_t begin = 0; begin < rows.num_rows; begin += block) {
    const std::int64_t end = std::min(rows.num_rows, begin + block);
    for (std::int64_t e = rows.begin; e < rows.end; e += kTile)
      for (std::int64_t m = begin; m < end; m += kRowsAtATime)
        tile_products<Adder, kBits>(rows, m, std::min(end, m + kRowsAtATime), e);
  }
}

template <class Adder>
[[gnu::always_inline]] inline void products_of(const QuantizedProducts& rows) {
  if (rows.bits == 8)
    all_products<Adder, 8>(rows);
  else
    all_products<Adder, 4>(rows);
}

struct Base {
  static constexpr const char* kName = "portable";
  static bool quantize(const WeightTile& tile) { return quantize_any(tile); }
  static void quantize_inputs(const InputRounding& rows) { quantize_input_rows(rows); }
  static void products(const QuantizedProducts& rows) { products_of<PlainAdder>(rows); }
};
#ifdef __x86_64__
struct Avx2 {
  static constexpr const char* kName = "AVX2";
  [[gnu::target("avx2,fma")]] static bool quantize(const WeightTile& tile) { return quantize_any(tile); }
  [[gnu::target("avx2,fma")]] static void quantize_inputs(const InputRounding& rows) { quantize_input_rows(rows); }
  [[gnu::target("avx2,fma")]] static void products(const QuantizedProducts& rows) { products_of<PlainAdder>(rows); }
};
struct Avx512 {
  static constexpr const char* kName = "AVX-512";
  [[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,fma")]] static bool quantize(const WeightTile& tile) {
    return quantize_any(tile);
  }
  [[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,fma")]] static void quantize_inputs(const InputRounding& rows) {
    quantize_input_rows(rows);
  }
  [[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,fma")]] static void products(const QuantizedProducts& rows) {
    products_of<PlainAdder>(rows);
  }
};
struct Vnni : Avx512 {
  static constexpr const char* kName = "AVX-512 VNNI";
  [[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma")]] static void products(
      const QuantizedProducts& rows) {
    products_of<VnniAdder>(rows);
  }
};
#endif

template <class Set>
QuantizedKernels kernels_of() {
  return {Set::kName, Set::quantize, Set::quantize_inputs, Set::products};
}

std::vector<QuantizedKernels> find_kernels() {
  std::vector<QuantizedKernels> found;
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    if (__builtin_cpu_supports("avx512vnni")) found.push_back(kernels_of<Vnni>());
    found.push_back(kernels_of<Avx512>());
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(kernels_of<Avx2>());
#endif
  found.push_back(kernels_of<Base>());
  return found;
}

}  // namespace

std::span<const QuantizedKernels> quantized_kernels() {
  static const std::vector<QuantizedKernels> kFound = find_kernels();
  return kFound;
}

void dequantize(const WeightTile& tile, float* out) {
  const std::int64_t size = group_size(tile.bits), inputs = 32 / tile.bits;
  for (std::int64_t e = 0; e < tile.num_rows; ++e)
    for (std::int64_t column = 0; column < tile.width; ++column) {
      const std::uint8_t* block = tile.blocks + column / size * block_bytes(tile.bits);
      const auto* numbers = reinterpret_cast<const std::uint16_t*>(block);
      const std::int64_t k = column % size, i = k % inputs;
      const std::uint8_t byte = block[kTile * (tile.bits == 8 ? 2 : 4) + (k / inputs * kTile + e) * 4 + i % 4];
      const float scale = to_float(numbers[e]);
      out[e * tile.width + column] =
          tile.bits == 8 ? scale * static_cast<float>(byte - kZero)
                         : scale * static_cast<float>(i < 4 ? byte & 15 : byte >> 4) + to_float(numbers[kTile + e]);
    }
}

}  // namespace thinkvg::nn::cpu
