#pragma once

// Plain C++, so that the kernel's source needs no LibTorch headers and can be compiled for several instruction sets.

#include <cstdint>

namespace thinkvg::nn::cpu {

// The queries [group, width] that share one key/value head against tokens [first, length) of a sequence, which lie in
// pages of 16 tokens: keys [pages, heads, width, 16], values [pages, heads, 16, width]. Writes softmax(q k /
// sqrt(width)) v [group, width]. Queries, pages and output are fp32, or all bf16; sums are fp32. A token's result
// depends on nothing but its own query and the tokens it sees, to the bit.
struct PagedRow {
  const void* query;
  const void* keys;
  const void* values;
  const std::int64_t* pages;  // of the sequence
  bool is_bf16;
  std::int64_t head;
  std::int64_t num_heads;
  std::int64_t group;
  std::int64_t width;
  std::int64_t first;  // tokens before it are not seen: sliding windows
  std::int64_t length;
  float* scratch;  // paged_scratch(group, width, length) numbers
  void* output;
  float* lse = nullptr;  // [group], log sum exp of the scores, where it is wanted
};
void paged_attention_row(const PagedRow& row);
std::int64_t paged_scratch(std::int64_t group, std::int64_t width, std::int64_t length);

}  // namespace thinkvg::nn::cpu
