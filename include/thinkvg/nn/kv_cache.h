#pragma once

// Shape letters: B rows, L capacity in tokens, H query heads, J key/value heads, K head width.

#include <ATen/core/Tensor.h>
#include <c10/core/TensorOptions.h>

#include <cstdint>
#include <vector>

#include "thinkvg/nn/attention.h"

namespace thinkvg::nn {

// Keys and values of B sequences that grow by one token a step. Row b holds lengths()[b] tokens. Not thread-safe.
class KvCache {
 public:
  struct Shape {
    std::int64_t num_layers = 0;
    std::int64_t num_rows = 0;  // B
    std::int64_t num_kv_heads = 0;
    std::int64_t capacity = 0;  // L
    std::int64_t head_dim = 0;
  };
  KvCache(const Shape& shape, const at::TensorOptions& options);

  static std::int64_t bytes(const Shape& shape, std::int64_t bytes_per_number);

  // Fills row b from tokens [begin, begin + length) of a recorded pass.
  void fill(std::int64_t row, const std::vector<PackedAttention::KeyValue>& recorded, std::int64_t begin,
            std::int64_t length);
  // After a step: each of these rows has one token more.
  void advance(const std::vector<std::int64_t>& rows);

  std::int64_t num_rows() const { return static_cast<std::int64_t>(lengths_.size()); }
  std::int64_t capacity() const { return capacity_; }
  const std::vector<std::int64_t>& lengths() const { return lengths_; }
  at::Tensor key(std::int64_t layer) const { return keys_[static_cast<std::size_t>(layer)]; }      // [B, J, L, K]
  at::Tensor value(std::int64_t layer) const { return values_[static_cast<std::size_t>(layer)]; }  // [B, J, L, K]

 private:
  std::int64_t capacity_;
  std::vector<std::int64_t> lengths_;
  std::vector<at::Tensor> keys_;
  std::vector<at::Tensor> values_;
};

// One decoding step: token i of the pass belongs to row rows[i] of the cache. attend() writes its key and value behind
// the row's tokens and attends to all of them. Call KvCache::advance() after the pass. Inference only; throws
// std::invalid_argument when a row is full.
class CachedAttention final : public AttentionContext {
 public:
  // `cache` and `rows` must outlive this object.
  CachedAttention(KvCache& cache, const std::vector<std::int64_t>& rows);
  at::Tensor attend(std::int64_t layer, const at::Tensor& query, const at::Tensor& key,
                    const at::Tensor& value) override;
  // Of the rule only the window matters: the token of a step belongs to no picture.
  at::Tensor attend_masked(std::int64_t layer, const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                           const MaskRule& rule) override;

 private:
  KvCache& cache_;
  const std::vector<std::int64_t>& rows_;
};

}  // namespace thinkvg::nn
