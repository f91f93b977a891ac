#pragma once

#include <cstdint>

namespace thinkvg::nn::cpu {

// One query of width `head_dim` against `length` keys and values that lie row after row; writes softmax(q k / sqrt(K))
// v to `output`. `scores` is scratch for `length` numbers. Built for several instruction sets, chosen at run time.
struct DecodeRow {
  const float* query;
  const float* keys;
  const float* values;
  std::int64_t length;
  std::int64_t head_dim;
  float* scores;
  float* output;
};
void decode_attention_row(const DecodeRow& row);

}  // namespace thinkvg::nn::cpu
