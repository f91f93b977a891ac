#include "dist/nccl.h"

#if __has_include(<nccl.h>)
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#endif

// Returns null where this library was built without NCCL's header.
extern "C" __attribute__((visibility("default"))) c10::intrusive_ptr<c10d::Backend> thinkvg_make_nccl_group(
    const thinkvg::dist::NcclRequest& request) {
#if __has_include(<nccl.h>)
  auto options = c10d::ProcessGroupNCCL::Options::create();
  options->timeout = request.timeout;
  return c10::make_intrusive<c10d::ProcessGroupNCCL>(request.store, request.rank, request.size, options);
#else
  static_cast<void>(request);
  return {};
#endif
}
