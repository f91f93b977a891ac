#pragma once

// GCC's and Clang's portable vectors, 16 numbers each: the compiler splits them into what the instruction set has. All
// functions are inlined into kernels that are compiled for several instruction sets. Plain C++, no LibTorch.

#include <cstdint>
#include <cstring>

namespace thinkvg::nn::cpu {

constexpr std::int64_t kLanes = 16;
using Floats = float __attribute__((vector_size(64)));
using Ints = std::int32_t __attribute__((vector_size(64)));
using Halves = std::uint16_t __attribute__((vector_size(32)));

[[gnu::always_inline]] inline Floats splat(float value) { return value - Floats{}; }

[[gnu::always_inline]] inline Floats load(const float* at) {
  Floats values;
  std::memcpy(&values, at, sizeof values);
  return values;
}

// bf16 is the upper half of fp32.
[[gnu::always_inline]] inline Floats load(const std::uint16_t* at) {
  Halves bits;
  std::memcpy(&bits, at, sizeof bits);
  return reinterpret_cast<Floats>(__builtin_convertvector(bits, Ints) << 16);
}

[[gnu::always_inline]] inline void store(float* at, Floats values) { std::memcpy(at, &values, sizeof values); }

// Rounds to nearest even; NaN stays NaN.
[[gnu::always_inline]] inline void store(std::uint16_t* at, Floats values) {
  const Ints bits = reinterpret_cast<Ints>(values);
  const Ints rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  const Ints is_nan = values != values;
  const Halves halves = __builtin_convertvector((rounded & ~is_nan) | (is_nan & 0x7FC0), Halves);
  std::memcpy(at, &halves, sizeof halves);
}

// The last, short vector, filled up with 0.
template <class Number>
[[gnu::always_inline]] inline Floats load_part(const Number* at, std::int64_t count) {
  Number part[kLanes] = {};
  std::memcpy(part, at, static_cast<std::size_t>(count) * sizeof(Number));
  return load(part);
}

template <class Number>
[[gnu::always_inline]] inline void store_part(Number* at, Floats values, std::int64_t count) {
  Number part[kLanes];
  store(part, values);
  std::memcpy(at, part, static_cast<std::size_t>(count) * sizeof(Number));
}

[[gnu::always_inline]] inline float to_float(float value) { return value; }
[[gnu::always_inline]] inline float to_float(std::uint16_t bits) {
  const std::uint32_t wide = static_cast<std::uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

// Halves are added, always in the same order.
[[gnu::always_inline]] inline float sum_of(Floats values) {
  using Eight = float __attribute__((vector_size(32)));
  using Four = float __attribute__((vector_size(16)));
  Eight low, high;
  std::memcpy(&low, &values, sizeof low);
  std::memcpy(&high, reinterpret_cast<const char*>(&values) + sizeof low, sizeof high);
  low += high;
  Four a, b;
  std::memcpy(&a, &low, sizeof a);
  std::memcpy(&b, reinterpret_cast<const char*>(&low) + sizeof a, sizeof b);
  a += b;
  return (a[0] + a[2]) + (a[1] + a[3]);
}

[[gnu::always_inline]] inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }

[[gnu::always_inline]] inline float max_of(Floats values) {
  float largest = values[0];
  for (int i = 1; i < kLanes; ++i) largest = values[i] > largest ? values[i] : largest;
  return largest;
}

// exp(x) for x up to about 88, within 2 ulp; 0 below -87, before fp32's slow subnormal numbers; NaN stays. Range
// reduction by ln 2 in two parts and a polynomial of degree 6 (Cephes, expf).
[[gnu::always_inline]] inline Floats exponential(Floats x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  constexpr float kSmallest = -87.0f;
  const Ints vanishes = x < kSmallest;
  const Floats bounded = vanishes ? splat(kSmallest) : x;
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
  return reinterpret_cast<Floats>(reinterpret_cast<Ints>(p * reinterpret_cast<Floats>(exponent)) & ~vanishes);
}

}  // namespace thinkvg::nn::cpu
