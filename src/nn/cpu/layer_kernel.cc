#include "nn/cpu/layer_kernel.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace thinkvg::nn::cpu {
namespace {

// GCC's and Clang's portable vectors: the compiler splits them into what the instruction set has.
constexpr std::int64_t kLanes = 16;
using Floats = float __attribute__((vector_size(64)));
using Ints = std::int32_t __attribute__((vector_size(64)));

[[gnu::always_inline]] inline Floats splat(float value) { return value - Floats{}; }

[[gnu::always_inline]] inline Floats load(const float* at) {
  Floats values;
  std::memcpy(&values, at, sizeof values);
  return values;
}

[[gnu::always_inline]] inline void store(float* at, Floats values) { std::memcpy(at, &values, sizeof values); }

// The last, short vector, filled up with 0.
[[gnu::always_inline]] inline Floats load_part(const float* at, std::int64_t count) {
  float part[kLanes] = {};
  std::memcpy(part, at, static_cast<std::size_t>(count) * sizeof(float));
  return load(part);
}

[[gnu::always_inline]] inline void store_part(float* at, Floats values, std::int64_t count) {
  float part[kLanes];
  store(part, values);
  std::memcpy(at, part, static_cast<std::size_t>(count) * sizeof(float));
}

[[gnu::always_inline]] inline float sum_of(Floats values) {
  float part[kLanes];
  store(part, values);
  for (std::int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (std::int64_t i = 0; i < half; ++i) part[i] += part[i + half];
  }
  return part[0];
}

// 1 / (1 + exp(-x)) within 3 ulp for |x| up to 87, beyond it within 1e-37; NaN stays. The exponential reduces its
// range by ln 2 in two parts and takes a polynomial of degree 6 (Cephes, expf).
[[gnu::always_inline]] inline Floats sigmoid(Floats x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  constexpr float kLargest = 87.0f;
  Floats bounded = -x;
  bounded = bounded > kLargest ? splat(kLargest) : bounded;
  bounded = bounded < -kLargest ? splat(-kLargest) : bounded;
  const Floats shifted = bounded * 1.44269504088896341f + kRound;
  const Floats n = shifted - kRound;
  const Floats r = (bounded - n * 0.693359375f) - n * -2.12194440e-4f;
  Floats p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const Ints exponent = (reinterpret_cast<Ints>(shifted) - 0x4B400000 + 127) << 23;
  return 1.0f / (1.0f + p * reinterpret_cast<Floats>(exponent));
}

[[gnu::always_inline]] inline void gated_product_of(const GatedRows& rows) {
  const std::int64_t whole = rows.count / kLanes * kLanes;
  for (std::int64_t i = 0; i < whole; i += kLanes) {
    const Floats gate = load(rows.gate + i);
    store(rows.out + i, gate * sigmoid(gate) * load(rows.up + i));
  }
  const std::int64_t rest = rows.count - whole;
  if (rest == 0) return;
  const Floats gate = load_part(rows.gate + whole, rest);
  store_part(rows.out + whole, gate * sigmoid(gate) * load_part(rows.up + whole, rest), rest);
}

struct GatedGradient {
  Floats of_gate;
  Floats of_up;
};

[[gnu::always_inline]] inline GatedGradient gated_gradient(Floats gate, Floats up, Floats gradient) {
  const Floats sigma = sigmoid(gate);
  const Floats silu = gate * sigma;
  return {gradient * up * (sigma + silu * (1.0f - sigma)), gradient * silu};
}

[[gnu::always_inline]] inline void gated_product_gradient_of(const GatedGradientRows& rows) {
  const std::int64_t whole = rows.count / kLanes * kLanes;
  for (std::int64_t i = 0; i < whole; i += kLanes) {
    const GatedGradient result = gated_gradient(load(rows.gate + i), load(rows.up + i), load(rows.gradient + i));
    store(rows.of_gate + i, result.of_gate);
    store(rows.of_up + i, result.of_up);
  }
  const std::int64_t rest = rows.count - whole;
  if (rest == 0) return;
  const GatedGradient result = gated_gradient(load_part(rows.gate + whole, rest), load_part(rows.up + whole, rest),
                                              load_part(rows.gradient + whole, rest));
  store_part(rows.of_gate + whole, result.of_gate, rest);
  store_part(rows.of_up + whole, result.of_up, rest);
}

[[gnu::always_inline]] inline void rms_norm_of(const NormRows& rows) {
  const std::int64_t whole = rows.width / kLanes * kLanes;
  const std::int64_t rest = rows.width - whole;
  for (std::int64_t row = 0; row < rows.num_rows; ++row) {
    const float* input = rows.input + row * rows.width;
    float* out = rows.out + row * rows.width;
    Floats squares = {};
    for (std::int64_t i = 0; i < whole; i += kLanes) squares += load(input + i) * load(input + i);
    if (rest > 0) squares += load_part(input + whole, rest) * load_part(input + whole, rest);
    const double mean = static_cast<double>(sum_of(squares)) / static_cast<double>(rows.width);
    const auto scale = static_cast<float>(1.0 / std::sqrt(mean + rows.eps));
    rows.scale[row] = scale;
    for (std::int64_t i = 0; i < whole; i += kLanes) {
      store(out + i, load(input + i) * scale * load(rows.weight + i));
    }
    if (rest > 0) {
      store_part(out + whole, load_part(input + whole, rest) * scale * load_part(rows.weight + whole, rest), rest);
    }
  }
}

// With h = input * scale and g = gradient * weight: of_input = scale * (g - h * mean(g h)).
[[gnu::always_inline]] inline void rms_norm_gradient_of(const NormGradientRows& rows) {
  const std::int64_t whole = rows.width / kLanes * kLanes;
  const std::int64_t rest = rows.width - whole;
  for (std::int64_t row = 0; row < rows.num_rows; ++row) {
    const float* input = rows.input + row * rows.width;
    const float* gradient = rows.gradient + row * rows.width;
    float* of_input = rows.of_input + row * rows.width;
    const float scale = rows.scale[row];
    Floats products = {};
    for (std::int64_t i = 0; i < whole; i += kLanes) {
      const Floats share = load(gradient + i) * load(input + i) * scale;
      products += share * load(rows.weight + i);
      store(rows.of_weight + i, load(rows.of_weight + i) + share);
    }
    if (rest > 0) {
      const Floats share = load_part(gradient + whole, rest) * load_part(input + whole, rest) * scale;
      products += share * load_part(rows.weight + whole, rest);
      store_part(rows.of_weight + whole, load_part(rows.of_weight + whole, rest) + share, rest);
    }
    const float factor = sum_of(products) / static_cast<float>(rows.width) * scale;
    for (std::int64_t i = 0; i < whole; i += kLanes) {
      store(of_input + i, scale * (load(gradient + i) * load(rows.weight + i) - load(input + i) * factor));
    }
    if (rest > 0) {
      const Floats weighted = load_part(gradient + whole, rest) * load_part(rows.weight + whole, rest);
      store_part(of_input + whole, scale * (weighted - load_part(input + whole, rest) * factor), rest);
    }
  }
}

struct Kernels {
  void (*gated)(const GatedRows&);
  void (*gated_gradient)(const GatedGradientRows&);
  void (*norm)(const NormRows&);
  void (*norm_gradient)(const NormGradientRows&);
};

struct Base {
  static void gated(const GatedRows& rows) { gated_product_of(rows); }
  static void gated_gradient(const GatedGradientRows& rows) { gated_product_gradient_of(rows); }
  static void norm(const NormRows& rows) { rms_norm_of(rows); }
  static void norm_gradient(const NormGradientRows& rows) { rms_norm_gradient_of(rows); }
};
#ifdef __x86_64__
struct Avx2 {
  [[gnu::target("avx2,fma")]] static void gated(const GatedRows& rows) { gated_product_of(rows); }
  [[gnu::target("avx2,fma")]] static void gated_gradient(const GatedGradientRows& rows) {
    gated_product_gradient_of(rows);
  }
  [[gnu::target("avx2,fma")]] static void norm(const NormRows& rows) { rms_norm_of(rows); }
  [[gnu::target("avx2,fma")]] static void norm_gradient(const NormGradientRows& rows) { rms_norm_gradient_of(rows); }
};
struct Avx512 {
  [[gnu::target("avx512f,avx512vl,fma")]] static void gated(const GatedRows& rows) { gated_product_of(rows); }
  [[gnu::target("avx512f,avx512vl,fma")]] static void gated_gradient(const GatedGradientRows& rows) {
    gated_product_gradient_of(rows);
  }
  [[gnu::target("avx512f,avx512vl,fma")]] static void norm(const NormRows& rows) { rms_norm_of(rows); }
  [[gnu::target("avx512f,avx512vl,fma")]] static void norm_gradient(const NormGradientRows& rows) {
    rms_norm_gradient_of(rows);
  }
};
#endif

template <class Set>
constexpr Kernels kernels_of() {
  return {Set::gated, Set::gated_gradient, Set::norm, Set::norm_gradient};
}

Kernels choose_kernels() {
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl")) return kernels_of<Avx512>();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return kernels_of<Avx2>();
#endif
  return kernels_of<Base>();
}

const Kernels& kernels() {
  static const Kernels kChosen = choose_kernels();
  return kChosen;
}

}  // namespace

void gated_product(const GatedRows& rows) { kernels().gated(rows); }
void gated_product_gradient(const GatedGradientRows& rows) { kernels().gated_gradient(rows); }
void rms_norm(const NormRows& rows) { kernels().norm(rows); }
void rms_norm_gradient(const NormGradientRows& rows) { kernels().norm_gradient(rows); }

}  // namespace thinkvg::nn::cpu
