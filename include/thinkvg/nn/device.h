#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <string>

namespace thinkvg::nn {

inline constexpr const char* kDeviceHelp =
    "Where the model is: cpu, cuda (of several processes on a machine each takes a GPU), cuda:N, or auto (a GPU where "
    "there is one that can be used, else the CPU).";

// The device that such a setting names; CUDA is loaded for it (nn/cuda.h). `local_rank`: this process's number among
// those of this machine; `cuda` is the GPU of that number, or the only one that the process can see. `auto` warns where
// there is a GPU that cannot be used. Also the name of a device type that the program has registered with LibTorch.
// Throws std::invalid_argument for another name, std::runtime_error with the reason where the GPU cannot be used.
at::Device device_setting(const std::string& name, std::int64_t local_rank = 0);

// The GPUs that the driver shows this process (CUDA_VISIBLE_DEVICES), asked without loading CUDA; 0 without a driver.
std::int64_t num_gpus();

struct DeviceMemory {
  std::int64_t free = 0;   // bytes that tensors may still take: unused, or kept by this process's allocator
  std::int64_t total = 0;  // of the device
  std::int64_t peak = 0;   // the most that this process's tensors took at one time
};
// Of a CUDA device. Throws std::invalid_argument for another one.
DeviceMemory device_memory(const at::Device& device);

// Bytes that may still be taken: of the machine (MemAvailable of /proc/meminfo, and what malloc keeps unused in this
// process) or of a CUDA device; a very large number where nothing is known.
std::int64_t free_memory(const at::Device& device);

// Waits until all work that was queued on the device has ended; nothing to wait for on the CPU.
void wait_for(const at::Device& device);

}  // namespace thinkvg::nn
