#include "nn/cuda_kernels.h"

#include <ATen/core/Tensor.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <dlfcn.h>

#include <cstdlib>
#include <filesystem>

#include "thinkvg/core/error.h"
#include "thinkvg/nn/cuda.h"

namespace thinkvg::nn {
namespace {

namespace fs = std::filesystem;

struct LoadedCuda {
  const CudaKernels* kernels = nullptr;
  std::string reason;  // why there are none
};

std::string loader_error() {
  const char* text = dlerror();
  return text == nullptr ? "unknown reason" : text;
}

// LibTorch registers its CUDA part when libtorch_cuda.so, which lies beside libtorch_cpu.so, is loaded.
std::string load_torch_cuda() {
  Dl_info info{};
  if (dladdr(reinterpret_cast<const void*>(&c10::impl::device_guard_impl_registry), &info) == 0) return loader_error();
  const fs::path library = fs::path(info.dli_fname).parent_path() / "libtorch_cuda.so";
  if (!fs::exists(library)) return library.string() + " does not exist: this LibTorch was built without CUDA";
  if (dlopen(library.c_str(), RTLD_NOW | RTLD_GLOBAL) == nullptr)
    return loader_error() + "; install the CUDA libraries that this LibTorch needs";
  return "";
}

std::string first_line_of(const std::string& text) { return text.substr(0, text.find('\n')); }

// The number of GPUs, or why the driver gives none.
std::string find_gpu() {
  try {
    if (!c10::impl::hasDeviceGuardImpl(c10::DeviceType::CUDA)) return "LibTorch has no CUDA device type";
    if (c10::impl::getDeviceGuardImpl(c10::DeviceType::CUDA)->deviceCount() == 0)
      return "no GPU was found; is its driver installed?";
  } catch (const std::exception& error) {
    return first_line_of(error.what());
  }
  return "";
}

std::vector<fs::path> kernel_library_places() {
  constexpr const char* kName = "libthinkvg_cuda.so";
  if (const char* given = std::getenv("THINKVG_CUDA_LIBRARY")) return {given};
  std::vector<fs::path> places;
  std::error_code ignored;
  const fs::path program = fs::read_symlink("/proc/self/exe", ignored).parent_path();
  for (const fs::path& folder : {program, program.parent_path() / "lib", program.parent_path().parent_path() / "lib"})
    if (fs::exists(folder / kName, ignored)) places.push_back(folder / kName);
  places.emplace_back(kName);
  return places;
}

LoadedCuda load() {
  std::string reason = load_torch_cuda();
  if (reason.empty()) reason = find_gpu();
  if (!reason.empty()) return {nullptr, "CUDA cannot be used: " + reason};
  std::string last_error;
  for (const fs::path& place : kernel_library_places()) {
    void* library = dlopen(place.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      last_error = loader_error();
      continue;
    }
    const auto table = reinterpret_cast<const CudaKernels* (*)()>(dlsym(library, kCudaKernelsSymbol));
    if (table == nullptr) {
      last_error = place.string() + " is of another version of thinkvg";
      continue;
    }
    return {table(), ""};
  }
  return {nullptr, fmt::format("the CUDA kernels cannot be loaded: {}; build with -DTHINKVG_CUDA=ON, or name the file "
                               "libthinkvg_cuda.so in THINKVG_CUDA_LIBRARY",
                               last_error)};
}

const LoadedCuda& loaded() {
  static const LoadedCuda kLoaded = load();
  return kLoaded;
}

}  // namespace

std::string cuda_unavailable_reason() { return loaded().reason; }

const CudaKernels& cuda_kernels() {
  if (loaded().kernels == nullptr) throw_failure("{}", loaded().reason);
  return *loaded().kernels;
}

}  // namespace thinkvg::nn
