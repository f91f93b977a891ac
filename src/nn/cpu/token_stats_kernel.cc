#include "nn/cpu/token_stats_kernel.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "nn/online_softmax.h"

namespace thinkvg::nn::cpu {
namespace {

// GCC's and Clang's portable vectors: the compiler splits them into what the instruction set has.
constexpr std::int64_t kLanes = 16;
using Floats = float __attribute__((vector_size(64)));
using Ints = std::int32_t __attribute__((vector_size(64)));
using Halves = std::uint16_t __attribute__((vector_size(32)));

constexpr std::int64_t kBlock = 2048;        // elements whose largest is found before their exponentials are summed
constexpr float kSmallestExponent = -87.0f;  // exp of less counts as 0, before fp32's slow subnormal numbers

[[gnu::always_inline]] inline Floats splat(float value) { return value - Floats{}; }

[[gnu::always_inline]] inline Floats load(const float* at) {
  Floats values;
  std::memcpy(&values, at, sizeof values);
  return values;
}

[[gnu::always_inline]] inline Floats load(const std::uint16_t* at) {
  Halves bits;
  std::memcpy(&bits, at, sizeof bits);
  return reinterpret_cast<Floats>(__builtin_convertvector(bits, Ints) << 16);
}

[[gnu::always_inline]] inline void store(float* at, Floats values) { std::memcpy(at, &values, sizeof values); }

[[gnu::always_inline]] inline void store(std::uint16_t* at, Floats values) {
  const Ints bits = reinterpret_cast<Ints>(values);
  // Round to nearest even; NaN stays NaN.
  const Ints rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  const Ints is_nan = values != values;
  const Halves halves = __builtin_convertvector((rounded & ~is_nan) | (is_nan & 0x7FC0), Halves);
  std::memcpy(at, &halves, sizeof halves);
}

// The last, short vector of a row.
template <class T>
[[gnu::always_inline]] inline Floats load_part(const T* at, std::int64_t count, float fill) {
  alignas(64) T part[kLanes] = {};
  std::memcpy(part, at, static_cast<std::size_t>(count) * sizeof(T));
  Floats values = load(part);
  for (std::int64_t i = count; i < kLanes; ++i) values[i] = fill;
  return values;
}

[[gnu::always_inline]] inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }

// exp(x) for x up to about 88, within 2 ulp; 0 below kSmallestExponent; NaN stays. Range reduction by ln 2 in two parts
// and a polynomial of degree 6 (Cephes, expf).
[[gnu::always_inline]] inline Floats exponential(Floats x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const Ints vanishes = x < kSmallestExponent;
  const Floats bounded = vanishes ? splat(kSmallestExponent) : x;
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

// One online softmax a lane.
struct LaneState {
  Floats max = splat(-std::numeric_limits<float>::infinity());
  Floats sum = {};
  Floats weighted = {};
};

// Where a lane has seen only -inf, 0 stands for its largest: its exponentials are then 0, not NaN.
[[gnu::always_inline]] inline Floats finite_or_zero(Floats max) {
  return max == -std::numeric_limits<float>::infinity() ? Floats{} : max;
}

[[gnu::always_inline]] inline void add(Floats values, Floats max, float scale, Floats& sum, Floats& weighted) {
  const Floats d = (values - max) * scale;
  const Floats e = exponential(d);
  sum += e;
  weighted += (d < kSmallestExponent ? splat(kSmallestExponent) : d) * e;
}

template <class T>
[[gnu::always_inline]] inline void add_block(const T* row, std::int64_t count, float scale, LaneState& state) {
  constexpr float kMasked = -std::numeric_limits<float>::infinity();
  const std::int64_t whole = count / kLanes * kLanes;
  Floats max = state.max;
  for (std::int64_t j = 0; j < whole; j += kLanes) max = larger(load(row + j), max);
  const Floats rest = whole < count ? load_part(row + whole, count - whole, kMasked) : splat(kMasked);
  max = larger(rest, max);

  const Floats safe = finite_or_zero(max);
  Floats sum = {}, weighted = {};
  for (std::int64_t j = 0; j < whole; j += kLanes) add(load(row + j), safe, scale, sum, weighted);
  if (whole < count) add(rest, safe, scale, sum, weighted);

  const Floats shift = (state.max - safe) * scale;
  const Floats factor = exponential(shift);
  const Floats bounded = shift < kSmallestExponent ? splat(kSmallestExponent) : shift;
  state.weighted = weighted + factor * (state.weighted + bounded * state.sum);
  state.sum = sum + factor * state.sum;
  state.max = max;
}

template <class T>
[[gnu::always_inline]] inline void stats_of_rows(const LogitRows& logits, std::int64_t begin, std::int64_t end,
                                                 const StatRows& stats) {
  const float scale = logits.inverse_temperature;
  for (std::int64_t i = begin; i < end; ++i) {
    const T* row = static_cast<const T*>(logits.data) + i * logits.row_stride;
    LaneState state;
    for (std::int64_t j = 0; j < logits.num_classes; j += kBlock)
      add_block(row + j, std::min(kBlock, logits.num_classes - j), scale, state);
    OnlineSoftmax total;
    for (std::int64_t lane = 0; lane < kLanes; ++lane)
      total.merge({state.max[lane] * scale, state.sum[lane], state.weighted[lane]});
    const float target = load_part(row + logits.targets[i], 1, 0.0f)[0];
    stats.logsumexp[i] = total.logsumexp();
    stats.logprob[i] = total.log_probability(target * scale);
    stats.entropy[i] = total.entropy();
  }
}

template <class T>
[[gnu::always_inline]] inline void gradient_of_rows(const LogitRows& logits, std::int64_t begin, std::int64_t end,
                                                    const GradientRows& rows) {
  const float scale = logits.inverse_temperature;
  for (std::int64_t i = begin; i < end; ++i) {
    const T* row = static_cast<const T*>(logits.data) + i * logits.row_stride;
    T* out = static_cast<T*>(rows.gradient) + i * logits.num_classes;
    const float offset = -rows.logsumexp[i], base = rows.base[i] * scale, slope = rows.slope[i] * scale;
    const auto gradient = [&](Floats x) __attribute__((always_inline)) {
      const Floats d = x * scale + offset;
      return exponential(d) * (base + slope * (d < kSmallestExponent ? splat(kSmallestExponent) : d));
    };
    const std::int64_t whole = logits.num_classes / kLanes * kLanes;
    for (std::int64_t j = 0; j < whole; j += kLanes) store(out + j, gradient(load(row + j)));
    const std::int64_t rest = logits.num_classes - whole;
    if (rest > 0) {
      alignas(64) T part[kLanes];
      store(part, gradient(load_part(row + whole, rest, 0.0f)));
      std::memcpy(out + whole, part, static_cast<std::size_t>(rest) * sizeof(T));
    }
    // The target's entry again, with its own part added before the rounding to the output's type.
    const std::int64_t target = logits.targets[i];
    alignas(64) T part[kLanes];
    store(part, gradient(load_part(row + target, 1, 0.0f)) + rows.target_weight[i] * scale);
    out[target] = part[0];
  }
}

[[gnu::always_inline]] inline void stats_of(const LogitRows& logits, std::int64_t begin, std::int64_t end,
                                            const StatRows& stats) {
  if (logits.is_bf16)
    stats_of_rows<std::uint16_t>(logits, begin, end, stats);
  else
    stats_of_rows<float>(logits, begin, end, stats);
}

[[gnu::always_inline]] inline void gradient_of(const LogitRows& logits, std::int64_t begin, std::int64_t end,
                                               const GradientRows& rows) {
  if (logits.is_bf16)
    gradient_of_rows<std::uint16_t>(logits, begin, end, rows);
  else
    gradient_of_rows<float>(logits, begin, end, rows);
}

struct Kernels {
  void (*stats)(const LogitRows&, std::int64_t, std::int64_t, const StatRows&);
  void (*gradient)(const LogitRows&, std::int64_t, std::int64_t, const GradientRows&);
};

void stats_base(const LogitRows& logits, std::int64_t begin, std::int64_t end, const StatRows& stats) {
  stats_of(logits, begin, end, stats);
}
void gradient_base(const LogitRows& logits, std::int64_t begin, std::int64_t end, const GradientRows& rows) {
  gradient_of(logits, begin, end, rows);
}

#ifdef __x86_64__
[[gnu::target("avx2,fma")]] void stats_avx2(const LogitRows& logits, std::int64_t begin, std::int64_t end,
                                            const StatRows& stats) {
  stats_of(logits, begin, end, stats);
}
[[gnu::target("avx2,fma")]] void gradient_avx2(const LogitRows& logits, std::int64_t begin, std::int64_t end,
                                               const GradientRows& rows) {
  gradient_of(logits, begin, end, rows);
}
[[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,fma")]] void stats_avx512(const LogitRows& logits, std::int64_t begin,
                                                                            std::int64_t end, const StatRows& stats) {
  stats_of(logits, begin, end, stats);
}
[[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,fma")]] void gradient_avx512(const LogitRows& logits,
                                                                               std::int64_t begin, std::int64_t end,
                                                                               const GradientRows& rows) {
  gradient_of(logits, begin, end, rows);
}
#endif

Kernels choose_kernels() {
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    return {stats_avx512, gradient_avx512};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return {stats_avx2, gradient_avx2};
#endif
  return {stats_base, gradient_base};
}

const Kernels& kernels() {
  static const Kernels kChosen = choose_kernels();
  return kChosen;
}

}  // namespace

void token_stats(const LogitRows& logits, std::int64_t begin, std::int64_t end, const StatRows& stats) {
  kernels().stats(logits, begin, end, stats);
}

void token_stats_gradient(const LogitRows& logits, std::int64_t begin, std::int64_t end, const GradientRows& rows) {
  kernels().gradient(logits, begin, end, rows);
}

}  // namespace thinkvg::nn::cpu
