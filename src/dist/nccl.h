#pragma once

#include <chrono>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

namespace thinkvg::dist {

// Of libthinkvg_cuda.so, which has LibTorch's NCCL: the symbol and the type of the function that makes a group.
inline constexpr const char* kNcclSymbol = "thinkvg_make_nccl_group";
struct NcclRequest {
  c10::intrusive_ptr<c10d::Store> store;
  int rank = 0;
  int size = 1;
  std::chrono::milliseconds timeout{};
};
using MakeNcclGroup = c10::intrusive_ptr<c10d::Backend> (*)(const NcclRequest& request);

}  // namespace thinkvg::dist
