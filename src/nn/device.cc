#include "thinkvg/nn/device.h"

#include <c10/core/impl/VirtualGuardImpl.h>
#include <dlfcn.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <charconv>
#include <fstream>
#include <limits>

#include "nn/cuda_kernels.h"
#include "thinkvg/core/error.h"
#include "thinkvg/core/log.h"
#include "thinkvg/nn/cuda.h"

namespace thinkvg::nn {
namespace {

std::int64_t ask_driver() {
  void* driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (driver == nullptr) return 0;
  const auto start = reinterpret_cast<int (*)(unsigned)>(dlsym(driver, "cuInit"));
  const auto count = reinterpret_cast<int (*)(int*)>(dlsym(driver, "cuDeviceGetCount"));
  int gpus = 0;
  if (start == nullptr || count == nullptr || start(0) != 0 || count(&gpus) != 0) return 0;
  return gpus;
}

at::Device gpu(std::int64_t number) {
  if (const std::string reason = cuda_unavailable_reason(); !reason.empty()) throw_failure("{}", reason);
  if (number >= num_gpus())
    throw_failure("there is no GPU {}: this process sees {}, counted from 0 (CUDA_VISIBLE_DEVICES)", number,
                  num_gpus());
  const at::Device device(at::kCUDA, static_cast<c10::DeviceIndex>(number));
  c10::impl::VirtualGuardImpl(at::kCUDA).setDevice(device);  // of this thread: nothing is to lie on another one
  return device;
}

at::Device own_gpu(std::int64_t local_rank) {
  // A launcher that deals the GPUs out shows each process its own alone.
  if (num_gpus() == 1) return gpu(0);
  if (num_gpus() > 0 && local_rank >= num_gpus())
    throw_failure("process {} of this machine has no GPU: there are {}; start at most one process for each",
                  local_rank + 1, num_gpus());
  return gpu(local_rank);
}

at::Device best_device(std::int64_t local_rank) {
  if (num_gpus() == 0) return at::kCPU;
  if (const std::string reason = cuda_unavailable_reason(); !reason.empty()) {
    spdlog::warn("the CPU is used, though there is a GPU: {}", reason);
    return at::kCPU;
  }
  return own_gpu(local_rank);
}

// What tensors may take again without asking the system.
std::int64_t kept_by_malloc() {
#if defined(__GLIBC__) && (__GLIBC__ > 2 || __GLIBC_MINOR__ >= 33)
  return static_cast<std::int64_t>(mallinfo2().fordblks);
#else
  return 0;
#endif
}

[[noreturn]] void refuse(const std::string& name) {
  throw_invalid("device must be cpu, cuda, cuda:N or auto, but is '{}'", name);
}

}  // namespace

std::int64_t num_gpus() {
  static const std::int64_t kCount = ask_driver();
  return kCount;
}

at::Device device_setting(const std::string& name, std::int64_t local_rank) {
  if (name == "cpu") return at::kCPU;
  if (name == "auto") return best_device(local_rank);
  if (name == "cuda") return own_gpu(local_rank);
  if (name.starts_with("cuda:")) {
    std::int64_t number = -1;
    const auto [end, error] = std::from_chars(name.data() + 5, name.data() + name.size(), number);
    if (error != std::errc() || end != name.data() + name.size() || number < 0) refuse(name);
    return gpu(number);
  }
  try {
    const at::Device device(name);
    if (c10::impl::hasDeviceGuardImpl(device.type())) return device.has_index() ? device : at::Device(device.type(), 0);
  } catch (const c10::Error&) {
    // No name of a device type.
  }
  refuse(name);
}

DeviceMemory device_memory(const at::Device& device) {
  if (!device.is_cuda()) throw_invalid("device_memory expects a CUDA device, got {}", device.str());
  return cuda_kernels().memory(device);
}

std::int64_t free_memory(const at::Device& device) {
  if (device.is_cuda()) return device_memory(device).free;
  if (device.is_cpu()) {
    std::ifstream file("/proc/meminfo");
    std::string name, unit;
    std::int64_t kibibytes = 0;
    while (file >> name >> kibibytes) {
      if (name == "MemAvailable:") return kibibytes * 1024 + kept_by_malloc();
      std::getline(file, unit);
    }
  }
  return std::numeric_limits<std::int64_t>::max();
}

void wait_for(const at::Device& device) {
  if (device.is_cpu()) return;
  const c10::impl::VirtualGuardImpl guard(device.type());
  guard.synchronizeDevice(device.index());
}

}  // namespace thinkvg::nn
