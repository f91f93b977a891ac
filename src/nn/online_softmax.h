#pragma once

// The running state of an online softmax, shared by the CPU and the CUDA kernel.

#include <cmath>

#ifdef __CUDACC__
#define THINKVG_HOST_DEVICE __host__ __device__
#else
#define THINKVG_HOST_DEVICE
#endif

namespace thinkvg::nn {

// Of numbers d_j: the largest, sum_j exp(d_j - max), and sum_j (d_j - max) exp(d_j - max).
struct OnlineSoftmax {
  float max = -INFINITY;
  float sum = 0;
  float weighted = 0;

  // Joins the numbers of `other`. A side that saw only -inf changes nothing; NaN on either side stays.
  THINKVG_HOST_DEVICE void merge(const OnlineSoftmax& other) {
    if (other.max == -INFINITY && other.sum == 0) return;
    if (max == -INFINITY && sum == 0) {
      *this = other;
      return;
    }
    const OnlineSoftmax low = other.max > max ? *this : other;
    if (other.max > max) *this = other;
    const float shift = low.max - max;  // at most 0
    const float factor = expf(shift);
    // Where the factor is 0, a shift near -inf would make it NaN again.
    const float bounded = shift < -200.0f ? -200.0f : shift;
    sum += factor * low.sum;
    weighted += factor * (low.weighted + bounded * low.sum);
  }

  THINKVG_HOST_DEVICE float logsumexp() const { return sum > 0 || sum != sum ? max + logf(sum) : -INFINITY; }
  // log of the softmax of one of the numbers: more exact than number - logsumexp() where both are large.
  THINKVG_HOST_DEVICE float log_probability(float number) const { return number - max - logf(sum); }
  THINKVG_HOST_DEVICE float entropy() const { return logf(sum) - weighted / sum; }
};

}  // namespace thinkvg::nn

#undef THINKVG_HOST_DEVICE
