#pragma once

#include <cstddef>

namespace thinkvg::eval {

inline constexpr std::size_t kResampleBlock = 64;

// out[r] += weights[r] * value for the kResampleBlock resamples of a block. The two must not overlap.
void add_weighted(double* out, const double* weights, double value);

}  // namespace thinkvg::eval
