#pragma once

// Plain CUDA, without LibTorch's headers: nvcc takes a second for the kernel instead of a minute.

#include <cuda_runtime_api.h>

#include <cstdint>

namespace thinkvg::nn::cuda {

// All pointers are device memory; the meaning is that of cpu/token_stats_kernel.h.
struct TokenStatsLaunch {
  const void* logits = nullptr;
  bool is_bf16 = false;
  std::int64_t num_rows = 0;
  std::int64_t num_classes = 0;
  std::int64_t row_stride = 0;
  const std::int64_t* targets = nullptr;
  float inverse_temperature = 1;
  cudaStream_t stream = nullptr;
};

struct TokenStatsResults {
  float* logprob = nullptr;
  float* logsumexp = nullptr;
  float* entropy = nullptr;
};

struct TokenStatsGradients {
  const float* logsumexp = nullptr;
  const float* base = nullptr;
  const float* slope = nullptr;
  const float* target_weight = nullptr;
  void* gradient = nullptr;
};

cudaError_t launch_token_stats(const TokenStatsLaunch& launch, const TokenStatsResults& results);
cudaError_t launch_token_stats_gradient(const TokenStatsLaunch& launch, const TokenStatsGradients& gradients);

}  // namespace thinkvg::nn::cuda
