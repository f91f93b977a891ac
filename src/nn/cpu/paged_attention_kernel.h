#pragma once

// Plain C++, so that the kernel's source needs no LibTorch headers and can be compiled for several instruction sets.

#include <cstdint>
#include <span>

namespace thinkvg::nn::cpu {

// A token's queries [group, width] that share one key/value head, against tokens [first, length) of its sequence.
struct PagedRow {
  const void* query;
  const std::int64_t* pages;  // of the sequence
  std::int64_t first;         // tokens before it are not seen: sliding windows
  std::int64_t length;
  void* output;          // [group, width]
  float* lse = nullptr;  // [group], log sum exp of the scores, where it is wanted
};

// Tokens against the same key/value head. They lie in pages of 16: keys [pages, heads, width, 16], values
// [pages, heads, 16, width]. Writes softmax(q k / sqrt(width)) v. Queries, pages and output are fp32, or all bf16; sums
// are fp32. A token's result depends on nothing but its own query and the tokens it sees, to the bit: rows stand
// together only so that pages which all of them begin with are read once.
struct PagedRows {
  const void* keys;
  const void* values;
  bool is_bf16;
  std::int64_t head;
  std::int64_t num_heads;
  std::int64_t group;
  std::int64_t width;
  const PagedRow* rows;
  std::int64_t num_rows;
  // The first entries of `pages` that are the same in all rows, each full in all of them; 0 where a row's `first` is
  // not.
  std::int64_t num_shared;
  float* scratch;  // paged_scratch(num_rows * group, width, longest length) numbers
};
void paged_attention_rows(const PagedRows& rows);  // by the fastest kernel
std::int64_t paged_scratch(std::int64_t num_queries, std::int64_t width, std::int64_t longest);

struct PagedKernel {
  const char* instruction_set;
  void (*attend)(const PagedRows&);
};
// Those that this processor can run, the fastest first, the portable one last.
std::span<const PagedKernel> paged_kernels();

}  // namespace thinkvg::nn::cpu
