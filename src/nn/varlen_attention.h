#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "thinkvg/nn/attention.h"

namespace thinkvg::nn {

// A pack as kernels for sequences of several lengths take it: queries [cumulative_queries[i], [i + 1]) see keys
// [cumulative_keys[i], [i + 1]). Under a causal mask the last query of each sees all of its keys, the one before it all
// but the last, and so on ("bottom right"): a sequence that continues a prefix has the prefix's keys before its own.
struct VarlenSegments {
  std::vector<std::int32_t> cumulative_queries, cumulative_keys;
  std::vector<std::int64_t> key_rows;  // of the pack, in the order of the segments; empty: all as they stand
  std::int64_t longest_queries = 0, longest_keys = 0;
};
// Throws std::invalid_argument where the keys are more than 2^31 - 1.
VarlenSegments varlen_segments(const SequenceLayout& layout);

// The same as tensors of a device: int32, and int64 for the rows (undefined where there are none).
struct VarlenTensors {
  at::Tensor cumulative_queries, cumulative_keys, key_rows;
  std::int64_t longest_queries = 0, longest_keys = 0;
};
VarlenTensors varlen_tensors(const VarlenSegments& segments, const at::Device& device);

// Whether LibTorch has such a kernel: CUDA, head widths that 8 divides up to 256.
bool has_varlen_attention(const at::Tensor& query);

struct VarlenMask {
  bool causal = true;
  std::int64_t window = 0;  // keys that a query sees at most, its own among them; 0: all. Causal and in 16 bit alone
};
// query [T, H, K], key and value [T, J, K] of a pack, which has_varlen_attention(). Returns [T, H, K]. Flash attention
// in 16 bit, memory-efficient attention in fp32. Differentiable.
at::Tensor varlen_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                            const VarlenTensors& segments, const VarlenMask& mask);

}  // namespace thinkvg::nn
