#include "image/cpu/patch_kernel.h"

namespace thinkvg::image::cpu {
namespace {

// A division, not a multiplication with the inverse, which rounds otherwise.
[[gnu::always_inline]] inline void normalize_all(const std::uint8_t* __restrict values, std::int64_t count,
                                                 const Normalization& by, float* __restrict out) {
  const float mean = by.mean, deviation = by.deviation;
  for (std::int64_t i = 0; i < count; ++i) out[i] = (static_cast<float>(values[i]) - mean) / deviation;
}

[[gnu::target("avx512f,avx512bw,avx512vl")]] void normalize_avx512(const std::uint8_t* values, std::int64_t count,
                                                                   const Normalization& by, float* out) {
  normalize_all(values, count, by, out);
}
[[gnu::target("avx2")]] void normalize_avx2(const std::uint8_t* values, std::int64_t count, const Normalization& by,
                                            float* out) {
  normalize_all(values, count, by, out);
}
void normalize_portable(const std::uint8_t* values, std::int64_t count, const Normalization& by, float* out) {
  normalize_all(values, count, by, out);
}

}  // namespace

void normalize(const std::uint8_t* values, std::int64_t count, const Normalization& by, float* out) {
  static const auto chosen = [] {
    const bool wide =
        __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    return wide ? normalize_avx512 : __builtin_cpu_supports("avx2") ? normalize_avx2 : normalize_portable;
  }();
  chosen(values, count, by, out);
}

}  // namespace thinkvg::image::cpu
