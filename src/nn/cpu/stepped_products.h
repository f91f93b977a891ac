#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace thinkvg::nn {

// Products of bf16 matrices on the CPU whose number of rows M changes from pass to pass. oneDNN, which computes them
// for LibTorch, makes a program for every shape and keeps a thousand: half a millisecond and a megabyte each. Here M
// comes apart into a multiple of 256 and a rest that is filled up with zeros, so that shapes come again.

// What of so many rows fills whole steps.
std::int64_t whole_steps(std::int64_t num_rows);
// rows [M, K] times weight [K, N] of any strides -> [M, N].
at::Tensor stepped_product(const at::Tensor& rows, const at::Tensor& weight);
// The transpose of left [M, E] times right [M, D] -> [E, D]; the two parts are rounded apart, then their sum.
at::Tensor stepped_sum(const at::Tensor& left, const at::Tensor& right);

}  // namespace thinkvg::nn
