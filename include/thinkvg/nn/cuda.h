#pragma once

#include <string>

namespace thinkvg::nn {

// Loads LibTorch's CUDA part and this library's CUDA kernels (libthinkvg_cuda.so) on the first call, and returns an
// empty text where both are there and a GPU is too; otherwise the reason why not and what to do. Programs link neither
// of them, so that they start, quickly, on machines without CUDA. Call it before the first CUDA tensor. Thread-safe.
//
// The kernels are looked for in THINKVG_CUDA_LIBRARY (a file), in the folders lib beside and above the program's own,
// then where the dynamic loader looks.
std::string cuda_unavailable_reason();

}  // namespace thinkvg::nn
