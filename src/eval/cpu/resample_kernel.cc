#include "eval/cpu/resample_kernel.h"

namespace thinkvg::eval {

void add_weighted(double* __restrict out, const double* __restrict weights, double value) {
  for (std::size_t r = 0; r < kResampleBlock; ++r) out[r] += weights[r] * value;
}

}  // namespace thinkvg::eval
