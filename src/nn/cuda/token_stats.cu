#include <cuda_bf16.h>

#include "nn/cuda/token_stats_kernel.h"
#include "nn/online_softmax.h"

namespace thinkvg::nn::cuda {
namespace {

// One block a row. A row of a large vocabulary is hundreds of kilobytes, so that N rows fill the device; the logits are
// read once, 16 bytes a load, which is what bounds the time.
constexpr int kThreads = 512;
constexpr int kWarp = 32;

template <class T>
struct Pack;

template <>
struct Pack<float> {
  static constexpr int kSize = 4;
  static __device__ void load(const float* at, float (&values)[kSize]) {
    const float4 pack = __ldg(reinterpret_cast<const float4*>(at));
    values[0] = pack.x;
    values[1] = pack.y;
    values[2] = pack.z;
    values[3] = pack.w;
  }
  static __device__ void store(float* at, const float (&values)[kSize]) {
    *reinterpret_cast<float4*>(at) = make_float4(values[0], values[1], values[2], values[3]);
  }
};

template <>
struct Pack<__nv_bfloat16> {
  static constexpr int kSize = 8;
  static __device__ void load(const __nv_bfloat16* at, float (&values)[kSize]) {
    const uint4 pack = __ldg(reinterpret_cast<const uint4*>(at));
    const unsigned words[4] = {pack.x, pack.y, pack.z, pack.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      values[2 * i] = __uint_as_float(words[i] << 16);
      values[2 * i + 1] = __uint_as_float(words[i] & 0xFFFF0000u);
    }
  }
  static __device__ void store(__nv_bfloat16* at, const float (&values)[kSize]) {
    unsigned words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const unsigned low = __bfloat16_as_ushort(__float2bfloat16_rn(values[2 * i]));
      const unsigned high = __bfloat16_as_ushort(__float2bfloat16_rn(values[2 * i + 1]));
      words[i] = low | (high << 16);
    }
    *reinterpret_cast<uint4*>(at) = make_uint4(words[0], words[1], words[2], words[3]);
  }
};

__device__ float to_float(float value) { return value; }
__device__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ void put(float* at, float value) { *at = value; }
__device__ void put(__nv_bfloat16* at, float value) { *at = __float2bfloat16_rn(value); }

// Elements before the first 16-byte boundary, at most `limit`.
template <class T>
__device__ std::int64_t unaligned_head(const T* row, std::int64_t limit) {
  const std::int64_t past = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(row) % 16 / sizeof(T));
  const std::int64_t head = past == 0 ? 0 : Pack<T>::kSize - past;
  return head < limit ? head : limit;
}

template <int kCount>
__device__ void add(const float (&values)[kCount], OnlineSoftmax& state) {
  float max = values[0];
#pragma unroll
  for (int i = 1; i < kCount; ++i) max = fmaxf(max, values[i]);
  if (max > state.max) {
    const float shift = state.max - max;
    const float factor = __expf(shift);
    if (factor > 0) {
      state.weighted = factor * (state.weighted + shift * state.sum);
      state.sum *= factor;
    } else {
      state.weighted = 0 * state.weighted;  // keeps NaN
      state.sum = 0 * state.sum;
    }
    state.max = max;
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (values[i] == -INFINITY) continue;  // (-inf) * 0 would be NaN
    const float d = values[i] - state.max;
    const float e = __expf(d);
    state.sum += e;
    state.weighted += e > 0 || e != e ? d * e : 0.0f;
  }
}

__device__ OnlineSoftmax merge_warp(OnlineSoftmax state) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    OnlineSoftmax other;
    other.max = __shfl_xor_sync(0xFFFFFFFFu, state.max, offset);
    other.sum = __shfl_xor_sync(0xFFFFFFFFu, state.sum, offset);
    other.weighted = __shfl_xor_sync(0xFFFFFFFFu, state.weighted, offset);
    state.merge(other);
  }
  return state;
}

template <class T>
__global__ void __launch_bounds__(kThreads) token_stats_kernel(TokenStatsLaunch launch, TokenStatsResults results) {
  const std::int64_t row_index = blockIdx.x;
  const T* row = static_cast<const T*>(launch.logits) + row_index * launch.row_stride;
  const std::int64_t num_classes = launch.num_classes;
  const float scale = launch.inverse_temperature;
  constexpr int kSize = Pack<T>::kSize;

  OnlineSoftmax state;
  const std::int64_t head = unaligned_head(row, num_classes);
  const std::int64_t packs = (num_classes - head) / kSize;
  const std::int64_t tail = head + packs * kSize;
  for (std::int64_t j = threadIdx.x; j < packs; j += kThreads) {
    float values[kSize];
    Pack<T>::load(row + head + j * kSize, values);
#pragma unroll
    for (int i = 0; i < kSize; ++i) values[i] *= scale;
    add(values, state);
  }
  for (std::int64_t j = threadIdx.x; j < head + num_classes - tail; j += kThreads) {
    const float value[1] = {to_float(row[j < head ? j : tail + j - head]) * scale};
    add(value, state);
  }

  __shared__ OnlineSoftmax of_warps[kThreads / kWarp];
  state = merge_warp(state);
  if (threadIdx.x % kWarp == 0) of_warps[threadIdx.x / kWarp] = state;
  __syncthreads();
  if (threadIdx.x >= kWarp) return;
  state = threadIdx.x < kThreads / kWarp ? of_warps[threadIdx.x] : OnlineSoftmax{};
  state = merge_warp(state);
  if (threadIdx.x != 0) return;
  const std::int64_t target = launch.targets[row_index];
  results.logsumexp[row_index] = state.logsumexp();
  results.entropy[row_index] = state.entropy();
  results.logprob[row_index] =
      target >= 0 && target < num_classes ? state.log_probability(to_float(row[target]) * scale) : nanf("");
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    token_stats_gradient_kernel(TokenStatsLaunch launch, TokenStatsGradients rows) {
  const std::int64_t row_index = blockIdx.x;
  const std::int64_t num_classes = launch.num_classes;
  const T* row = static_cast<const T*>(launch.logits) + row_index * launch.row_stride;
  T* out = static_cast<T*>(rows.gradient) + row_index * num_classes;
  const float scale = launch.inverse_temperature;
  const float logsumexp = rows.logsumexp[row_index];
  const float base = rows.base[row_index] * scale, slope = rows.slope[row_index] * scale;
  const float target_part = rows.target_weight[row_index] * scale;
  const std::int64_t target = launch.targets[row_index];
  constexpr int kSize = Pack<T>::kSize;

  const auto gradient = [&](float logit, std::int64_t j) {
    const float log_p = logit * scale - logsumexp;
    const float p = __expf(log_p);
    const float smooth = p > 0 || p != p ? p * (base + slope * log_p) : 0.0f;
    return j == target ? smooth + target_part : smooth;
  };
  const std::int64_t head = unaligned_head(row, num_classes);
  // Packs need both sides on a 16-byte boundary at once.
  const bool same_phase = unaligned_head(out, num_classes) == head;
  const std::int64_t packs = same_phase ? (num_classes - head) / kSize : 0;
  const std::int64_t tail = head + packs * kSize;
  for (std::int64_t j = threadIdx.x; j < packs; j += kThreads) {
    float values[kSize];
    const std::int64_t first = head + j * kSize;
    Pack<T>::load(row + first, values);
#pragma unroll
    for (int i = 0; i < kSize; ++i) values[i] = gradient(values[i], first + i);
    Pack<T>::store(out + first, values);
  }
  for (std::int64_t k = threadIdx.x; k < head + num_classes - tail; k += kThreads) {
    const std::int64_t j = k < head ? k : tail + k - head;
    put(out + j, gradient(to_float(row[j]), j));
  }
}

}  // namespace

cudaError_t launch_token_stats(const TokenStatsLaunch& launch, const TokenStatsResults& results) {
  if (launch.num_rows == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(launch.num_rows));
  if (launch.is_bf16)
    token_stats_kernel<__nv_bfloat16><<<grid, kThreads, 0, launch.stream>>>(launch, results);
  else
    token_stats_kernel<float><<<grid, kThreads, 0, launch.stream>>>(launch, results);
  return cudaGetLastError();
}

cudaError_t launch_token_stats_gradient(const TokenStatsLaunch& launch, const TokenStatsGradients& gradients) {
  if (launch.num_rows == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(launch.num_rows));
  if (launch.is_bf16)
    token_stats_gradient_kernel<__nv_bfloat16><<<grid, kThreads, 0, launch.stream>>>(launch, gradients);
  else
    token_stats_gradient_kernel<float><<<grid, kThreads, 0, launch.stream>>>(launch, gradients);
  return cudaGetLastError();
}

}  // namespace thinkvg::nn::cuda
