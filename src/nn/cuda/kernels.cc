#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <stdexcept>

#include "nn/cuda/token_stats_kernel.h"
#include "nn/cuda_kernels.h"

namespace thinkvg::nn {
namespace {

void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": CUDA says " + cudaGetErrorString(status));
}

cuda::TokenStatsLaunch make_launch(const at::Tensor& logits, const at::Tensor& targets, double temperature) {
  return {logits.const_data_ptr(),
          logits.scalar_type() == at::kBFloat16,
          logits.size(0),
          logits.size(1),
          logits.stride(0),
          targets.const_data_ptr<std::int64_t>(),
          static_cast<float>(1.0 / temperature),
          c10::cuda::getCurrentCUDAStream(logits.device().index()).stream()};
}

void token_stats(const CudaKernels::TokenStatsCall& call) {
  const c10::cuda::CUDAGuard guard(call.logits.device());
  const cuda::TokenStatsResults results{call.logprob.mutable_data_ptr<float>(),
                                        call.logsumexp.mutable_data_ptr<float>(),
                                        call.entropy.mutable_data_ptr<float>()};
  check(cuda::launch_token_stats(make_launch(call.logits, call.targets, call.temperature), results), "token_stats");
}

void token_stats_gradient(const CudaKernels::TokenStatsGradientCall& call) {
  const c10::cuda::CUDAGuard guard(call.logits.device());
  const cuda::TokenStatsGradients gradients{
      call.logsumexp.const_data_ptr<float>(), call.base.const_data_ptr<float>(), call.slope.const_data_ptr<float>(),
      call.target_weight.const_data_ptr<float>(), call.gradient.mutable_data_ptr()};
  check(cuda::launch_token_stats_gradient(make_launch(call.logits, call.targets, call.temperature), gradients),
        "token_stats_gradient");
}

DeviceMemory memory(const at::Device& device) {
  const c10::cuda::CUDAGuard guard(device);
  std::size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  const c10::CachingDeviceAllocator::DeviceStats stats =
      c10::cuda::CUDACachingAllocator::getDeviceStats(guard.current_device().index());
  constexpr auto kAll = static_cast<std::size_t>(c10::CachingAllocator::StatType::AGGREGATE);
  const std::int64_t kept = stats.reserved_bytes[kAll].current - stats.allocated_bytes[kAll].current;
  return {static_cast<std::int64_t>(free) + kept, static_cast<std::int64_t>(total), stats.allocated_bytes[kAll].peak};
}

}  // namespace
}  // namespace thinkvg::nn

extern "C" __attribute__((visibility("default"))) const thinkvg::nn::CudaKernels* thinkvg_cuda_kernels_2() {
  static const thinkvg::nn::CudaKernels kKernels = {thinkvg::nn::token_stats, thinkvg::nn::token_stats_gradient,
                                                    thinkvg::nn::memory};
  return &kKernels;
}
