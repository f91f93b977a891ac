#include "eval/cpu/resample_kernel.h"

namespace thinkvg::eval {
namespace {

[[gnu::always_inline]] inline void add_all(double* __restrict out, const double* __restrict weights, double value) {
  for (std::size_t r = 0; r < kResampleBlock; ++r) out[r] += weights[r] * value;
}

// Without fused multiply-add, which rounds otherwise: the intervals are the same on every machine.
[[gnu::target("avx2")]] void add_weighted_avx2(double* out, const double* weights, double value) {
  add_all(out, weights, value);
}
void add_weighted_portable(double* out, const double* weights, double value) { add_all(out, weights, value); }

}  // namespace

void add_weighted(double* out, const double* weights, double value) {
  static const auto chosen = __builtin_cpu_supports("avx2") ? add_weighted_avx2 : add_weighted_portable;
  chosen(out, weights, value);
}

}  // namespace thinkvg::eval
