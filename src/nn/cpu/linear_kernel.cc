#include "nn/cpu/linear_kernel.h"

#ifdef __x86_64__
#include <immintrin.h>
#endif

#include <algorithm>

#include "nn/cpu/vectors.h"

namespace thinkvg::nn::cpu {
namespace {

// Rows of x that stay in a core's cache while the weights pass by.
constexpr std::int64_t kInputFloats = 192 * 1024;

// sum_of() of four vectors, each in its order, with fewer instructions.
[[gnu::always_inline]] inline void store_sums(float* to, const Floats (&rows)[4]) {
  const auto fold = [](Floats a, Floats b) __attribute__((always_inline)) {  // [a's halves added | b's]
    return __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
           __builtin_shufflevector(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  };
  const Floats ab = fold(rows[0], rows[1]), cd = fold(rows[2], rows[3]);
  // Quarters: those of a, b, c and d.
  const Floats quarters = __builtin_shufflevector(ab, cd, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
                          __builtin_shufflevector(ab, cd, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
  const Floats pairs =
      quarters + __builtin_shufflevector(quarters, quarters, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
  const Floats sums =
      pairs + __builtin_shufflevector(pairs, pairs, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
  using Four = float __attribute__((vector_size(16)));
  const Four out = __builtin_shufflevector(sums, sums, 0, 4, 8, 12);
  std::memcpy(to, &out, sizeof out);
}

template <int kOut, int kIn>
[[gnu::always_inline]] inline void store_tile(const Floats (&sums)[kOut][kIn], float* out, std::int64_t out_stride) {
  for (int m = 0; m < kIn; ++m) {
    if constexpr (kOut == 4)
      store_sums(out + m * out_stride, {sums[0][m], sums[1][m], sums[2][m], sums[3][m]});
    else
      for (int e = 0; e < kOut; ++e) out[m * out_stride + e] = sum_of(sums[e][m]);
  }
}

// kOut x kIn dot products at a time: each loaded vector is used several times. The numbers are multiplied as fp32.
template <class Number>
struct WideTile {
  using Input = float;
  using Weight = Number;

  template <int kOut, int kIn>
  [[gnu::always_inline]] static void run(const float* x, const Number* w, std::int64_t width, float* out,
                                         std::int64_t out_stride) {
    Floats sums[kOut][kIn] = {};
    std::int64_t k = 0;
    for (; k + kLanes <= width; k += kLanes) {
      Floats weights[kOut];
      for (int e = 0; e < kOut; ++e) weights[e] = load(w + e * width + k);
      for (int m = 0; m < kIn; ++m) {
        const Floats values = load(x + m * width + k);
        for (int e = 0; e < kOut; ++e) sums[e][m] += values * weights[e];
      }
    }
    if (k < width) {
      for (int m = 0; m < kIn; ++m) {
        const Floats values = load_part(x + m * width + k, width - k);
        for (int e = 0; e < kOut; ++e) sums[e][m] += values * load_part(w + e * width + k, width - k);
      }
    }
    store_tile(sums, out, out_stride);
  }
};

#ifdef __x86_64__
#define THINKVG_BF16_TARGET "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma"

// The same of bf16 numbers as they are, two by two.
struct PairTile {
  using Input = std::uint16_t;
  using Weight = std::uint16_t;
  static constexpr std::int64_t kPairLanes = 2 * kLanes;

  [[gnu::always_inline]] static __m512bh load_pairs(const std::uint16_t* at, std::int64_t count) {
    __m512bh pairs{};
    std::memcpy(&pairs, at, static_cast<std::size_t>(count) * sizeof *at);
    return pairs;
  }

  template <int kOut, int kIn>
  [[gnu::target(THINKVG_BF16_TARGET)]] static void run(const std::uint16_t* x, const std::uint16_t* w,
                                                       std::int64_t width, float* out, std::int64_t out_stride) {
    Floats sums[kOut][kIn] = {};
    std::int64_t k = 0;
    for (; k + kPairLanes <= width; k += kPairLanes) {
      __m512bh weights[kOut];
      for (int e = 0; e < kOut; ++e) weights[e] = load_pairs(w + e * width + k, kPairLanes);
      for (int m = 0; m < kIn; ++m) {
        const __m512bh values = load_pairs(x + m * width + k, kPairLanes);
        for (int e = 0; e < kOut; ++e) sums[e][m] = _mm512_dpbf16_ps(sums[e][m], values, weights[e]);
      }
    }
    if (k < width) {
      for (int m = 0; m < kIn; ++m) {
        const __m512bh values = load_pairs(x + m * width + k, width - k);
        for (int e = 0; e < kOut; ++e)
          sums[e][m] = _mm512_dpbf16_ps(sums[e][m], values, load_pairs(w + e * width + k, width - k));
      }
    }
    store_tile(sums, out, out_stride);
  }
};
#endif

// All rows of x against kOut rows of the weight.
template <int kOut, int kIn, class Tile>
[[gnu::always_inline]] inline void strip(const LinearRows& rows, std::int64_t first, std::int64_t last,
                                         std::int64_t e) {
  const auto* w = static_cast<const typename Tile::Weight*>(rows.weight) + e * rows.width;
  const auto at = [&](std::int64_t m) { return static_cast<const typename Tile::Input*>(rows.input) + m * rows.width; };
  const auto to = [&](std::int64_t m) { return rows.out + m * rows.out_stride + e - rows.begin; };
  std::int64_t m = first;
  for (; m + kIn <= last; m += kIn) Tile::template run<kOut, kIn>(at(m), w, rows.width, to(m), rows.out_stride);
  if constexpr (kIn > 4) {
    for (; m + 4 <= last; m += 4) Tile::template run<kOut, 4>(at(m), w, rows.width, to(m), rows.out_stride);
  }
  if constexpr (kIn > 2) {
    for (; m + 2 <= last; m += 2) Tile::template run<kOut, 2>(at(m), w, rows.width, to(m), rows.out_stride);
  }
  for (; m < last; ++m) Tile::template run<kOut, 1>(at(m), w, rows.width, to(m), rows.out_stride);
}

template <int kOut, int kIn, class Tile>
[[gnu::always_inline]] inline void all_strips(const LinearRows& rows) {
  const std::int64_t block = std::max<std::int64_t>(kIn, kInputFloats / rows.width / kIn * kIn);
  for (std::int64_t first = 0; first < rows.num_rows; first += block) {
    const std::int64_t last = std::min(rows.num_rows, first + block);
    std::int64_t e = rows.begin;
    for (; e + kOut <= rows.end; e += kOut) strip<kOut, kIn, Tile>(rows, first, last, e);
    for (; e < rows.end; ++e) strip<1, kIn, Tile>(rows, first, last, e);
  }
}

template <int kOut, int kIn>
[[gnu::always_inline]] inline void linear_of(const LinearRows& rows) {
  if (rows.is_bf16)
    all_strips<kOut, kIn, WideTile<std::uint16_t>>(rows);
  else
    all_strips<kOut, kIn, WideTile<float>>(rows);
}

[[gnu::always_inline]] inline void widen_all(const std::uint16_t* from, float* to, std::int64_t count) {
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, load(from + i));
  for (; i < count; ++i) to[i] = to_float(from[i]);
}

[[gnu::always_inline]] inline void narrow_all(const float* from, std::uint16_t* to, std::int64_t count) {
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, load(from + i));
  if (i < count) store_part(to + i, load_part(from + i, count - i), count - i);
}

struct Kernels {
  void (*linear)(const LinearRows&);
  void (*widen)(const std::uint16_t*, float*, std::int64_t);
  void (*narrow)(const float*, std::uint16_t*, std::int64_t);
};

struct Base {
  static void linear(const LinearRows& rows) { linear_of<2, 2>(rows); }
  static void widen(const std::uint16_t* from, float* to, std::int64_t count) { widen_all(from, to, count); }
  static void narrow(const float* from, std::uint16_t* to, std::int64_t count) { narrow_all(from, to, count); }
};
#ifdef __x86_64__
struct Avx2 {
  [[gnu::target("avx2,fma")]] static void linear(const LinearRows& rows) { linear_of<2, 2>(rows); }
  [[gnu::target("avx2,fma")]] static void widen(const std::uint16_t* from, float* to, std::int64_t count) {
    widen_all(from, to, count);
  }
  [[gnu::target("avx2,fma")]] static void narrow(const float* from, std::uint16_t* to, std::int64_t count) {
    narrow_all(from, to, count);
  }
};
struct Avx512 {
  [[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,fma")]] static void linear(const LinearRows& rows) {
    linear_of<4, 6>(rows);
  }
  [[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,fma")]] static void widen(const std::uint16_t* from, float* to,
                                                                              std::int64_t count) {
    widen_all(from, to, count);
  }
  [[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,fma")]] static void narrow(const float* from, std::uint16_t* to,
                                                                               std::int64_t count) {
    narrow_all(from, to, count);
  }
};
// With dot products of bf16 besides.
struct Avx512Bf16 : Avx512 {
  [[gnu::target(THINKVG_BF16_TARGET)]] static void linear(const LinearRows& rows) {
    if (rows.input_is_bf16)
      all_strips<4, 6, PairTile>(rows);
    else
      Avx512::linear(rows);
  }
};
#undef THINKVG_BF16_TARGET
#endif

template <class Set>
constexpr Kernels kernels_of() {
  return {Set::linear, Set::widen, Set::narrow};
}

Kernels choose_kernels() {
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    return multiplies_bf16() ? kernels_of<Avx512Bf16>() : kernels_of<Avx512>();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return kernels_of<Avx2>();
#endif
  return kernels_of<Base>();
}

const Kernels& kernels() {
  static const Kernels kChosen = choose_kernels();
  return kChosen;
}

}  // namespace

bool multiplies_bf16() {
#ifdef __x86_64__
  return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

void linear_rows(const LinearRows& rows) { kernels().linear(rows); }
void widen(const std::uint16_t* from, float* to, std::int64_t count) { kernels().widen(from, to, count); }
void narrow(const float* from, std::uint16_t* to, std::int64_t count) { kernels().narrow(from, to, count); }

}  // namespace thinkvg::nn::cpu
