#pragma once

#include <ATen/core/Tensor.h>

#include "thinkvg/nn/device.h"

namespace thinkvg::nn {

// What libthinkvg_cuda.so offers. Arguments are checked by the caller: logits [N, V] with stride 1 in V, the rest
// contiguous [N]; all on one CUDA device. Work is queued on PyTorch's current stream.
struct CudaKernels {
  struct TokenStatsCall {
    at::Tensor logits, targets;
    double temperature = 1;
    at::Tensor logprob, logsumexp, entropy;  // written
  };
  struct TokenStatsGradientCall {
    at::Tensor logits, targets;
    double temperature = 1;
    at::Tensor logsumexp, base, slope, target_weight;  // see cpu/token_stats_kernel.h
    at::Tensor gradient;                               // written
  };
  void (*token_stats)(const TokenStatsCall& call) = nullptr;
  void (*token_stats_gradient)(const TokenStatsGradientCall& call) = nullptr;
  DeviceMemory (*memory)(const at::Device& device) = nullptr;
};

// The one C symbol of the library: `extern "C" const thinkvg::nn::CudaKernels* thinkvg_cuda_kernels_2()`. The number
// changes with the table.
inline constexpr const char* kCudaKernelsSymbol = "thinkvg_cuda_kernels_2";

// Throws std::runtime_error with cuda_unavailable_reason() where the kernels cannot be had.
const CudaKernels& cuda_kernels();

}  // namespace thinkvg::nn
