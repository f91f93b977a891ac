#include "dist/nccl.h"

#include <dlfcn.h>

#include <stdexcept>
#include <string>

#if __has_include(<nccl.h>)
#include <nccl.h>

#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#endif

// Returns null where this library was built without NCCL's header.
extern "C" __attribute__((visibility("default"))) c10::intrusive_ptr<c10d::Backend> thinkvg_make_nccl_group(
    const thinkvg::dist::NcclRequest& request) {
#if __has_include(<nccl.h>)
  // LibTorch's options hold NCCL's settings, whose size is that of the header which this was built with.
  const auto get_version = reinterpret_cast<ncclResult_t (*)(int*)>(dlsym(RTLD_DEFAULT, "ncclGetVersion"));
  int version = 0;
  if (get_version != nullptr && get_version(&version) == ncclSuccess && version / 100 != NCCL_VERSION_CODE / 100)
    throw std::runtime_error("NCCL " + std::to_string(version) + " is loaded, but libthinkvg_cuda.so was built for " +
                             std::to_string(NCCL_VERSION_CODE) + "; build it with the header of LibTorch's NCCL");
  auto options = c10d::ProcessGroupNCCL::Options::create();
  options->timeout = request.timeout;
  return c10::make_intrusive<c10d::ProcessGroupNCCL>(request.store, request.rank, request.size, options);
#else
  static_cast<void>(request);
  return {};
#endif
}
