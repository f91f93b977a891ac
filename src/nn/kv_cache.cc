#include "thinkvg/nn/kv_cache.h"

#include <ATen/Parallel.h>

#include <algorithm>

#include "nn/cpu/decode_attention.h"
#include "thinkvg/core/error.h"

namespace thinkvg::nn {
namespace {

// Any device and dtype: one masked call over the longest row.
at::Tensor attend_padded(const at::Tensor& query, const at::Tensor& keys, const at::Tensor& values,
                         const std::vector<std::int64_t>& lengths, std::int64_t window) {
  const std::int64_t longest = *std::max_element(lengths.begin(), lengths.end());
  const at::Tensor limit = at::tensor(lengths, at::kLong).to(query.device()).view({-1, 1, 1, 1});
  const at::Tensor places = at::arange(longest, query.options().dtype(at::kLong)).view({1, 1, 1, -1});
  at::Tensor mask = places.lt(limit);
  if (window > 0) mask = mask.logical_and(places.ge(limit - window));
  const std::int64_t repeats = query.size(1) / keys.size(1);
  const at::Tensor k = keys.narrow(2, 0, longest).repeat_interleave(repeats, 1);
  const at::Tensor v = values.narrow(2, 0, longest).repeat_interleave(repeats, 1);
  return at::scaled_dot_product_attention(query.unsqueeze(2), k, v, mask).squeeze(2);
}

}  // namespace

KvCache::KvCache(const Shape& shape, const at::TensorOptions& options) : capacity_(shape.capacity) {
  lengths_.assign(static_cast<std::size_t>(shape.num_rows), 0);
  for (std::int64_t layer = 0; layer < shape.num_layers; ++layer) {
    keys_.push_back(at::empty({shape.num_rows, shape.num_kv_heads, shape.capacity, shape.head_dim}, options));
    values_.push_back(at::empty_like(keys_.back()));
  }
}

std::int64_t KvCache::bytes(const Shape& shape, std::int64_t bytes_per_number) {
  return 2 * shape.num_layers * shape.num_rows * shape.num_kv_heads * shape.capacity * shape.head_dim *
         bytes_per_number;
}

void KvCache::fill(std::int64_t row, const std::vector<PackedAttention::KeyValue>& recorded, std::int64_t begin,
                   std::int64_t length) {
  if (length > capacity_) throw_invalid("a prompt of {} tokens does not fit a cache of {}", length, capacity_);
  for (std::size_t layer = 0; layer < keys_.size(); ++layer) {
    keys_[layer][row].narrow(1, 0, length).copy_(recorded[layer].key.narrow(0, begin, length).transpose(0, 1));
    values_[layer][row].narrow(1, 0, length).copy_(recorded[layer].value.narrow(0, begin, length).transpose(0, 1));
  }
  lengths_[static_cast<std::size_t>(row)] = length;
}

void KvCache::advance(const std::vector<std::int64_t>& rows) {
  for (const std::int64_t row : rows) ++lengths_[static_cast<std::size_t>(row)];
}

CachedAttention::CachedAttention(KvCache& cache, const std::vector<std::int64_t>& rows) : cache_(cache), rows_(rows) {
  for (const std::int64_t row : rows)
    if (cache.lengths().at(static_cast<std::size_t>(row)) >= cache.capacity())
      throw_invalid("a sequence outgrew its cache of {} tokens", cache.capacity());
}

at::Tensor CachedAttention::attend(std::int64_t layer, const at::Tensor& query, const at::Tensor& key,
                                   const at::Tensor& value) {
  return attend_masked(layer, query, key, value, {});
}

at::Tensor CachedAttention::attend_masked(std::int64_t layer, const at::Tensor& query, const at::Tensor& key,
                                          const at::Tensor& value, const MaskRule& rule) {
  const auto rows = static_cast<std::int64_t>(rows_.size());
  if (query.size(0) != rows)
    throw_invalid("a decoding step takes one token a row: {} tokens came for {} rows", query.size(0), rows);
  std::vector<std::int64_t> lengths;
  for (const std::int64_t row : rows_) lengths.push_back(cache_.lengths()[static_cast<std::size_t>(row)]);
  const at::Tensor keys = cache_.key(layer);
  const at::Tensor values = cache_.value(layer);

  if (query.device().is_cpu() && query.scalar_type() == at::kFloat) {
    const at::Tensor q = query.contiguous(), new_keys = key.contiguous(), new_values = value.contiguous();
    at::Tensor output = at::empty_like(q);
    const std::int64_t kv_heads = keys.size(1), capacity = keys.size(2), width = keys.size(3);
    const std::int64_t group = q.size(1) / kv_heads;
    const float* q_data = q.const_data_ptr<float>();
    const float* new_k = new_keys.const_data_ptr<float>();
    const float* new_v = new_values.const_data_ptr<float>();
    float* k_data = keys.data_ptr<float>();
    float* v_data = values.data_ptr<float>();
    float* out = output.data_ptr<float>();
    at::parallel_for(0, rows * kv_heads, 8, [&](std::int64_t begin, std::int64_t end) {
      std::vector<float> scores(static_cast<std::size_t>(capacity));
      for (std::int64_t i = begin; i < end; ++i) {
        const auto token = static_cast<std::size_t>(i / kv_heads);
        const std::int64_t length = lengths[token];
        const std::int64_t place = (rows_[token] * kv_heads + i % kv_heads) * capacity * width;
        float* row_keys = k_data + place;
        float* row_values = v_data + place;
        std::copy_n(new_k + i * width, width, row_keys + length * width);
        std::copy_n(new_v + i * width, width, row_values + length * width);
        const std::int64_t first = rule.window > 0 ? std::max<std::int64_t>(0, length + 1 - rule.window) : 0;
        for (std::int64_t h = 0; h < group; ++h) {
          const std::int64_t at = (i * group + h) * width;
          cpu::decode_attention_row({q_data + at, row_keys + first * width, row_values + first * width,
                                     length + 1 - first, width, scores.data(), out + at});
        }
      }
    });
    return output;
  }

  const at::Tensor row_index = at::tensor(rows_, at::kLong).to(query.device());
  const at::Tensor at_index = at::tensor(lengths, at::kLong).to(query.device());
  keys.transpose(1, 2).index_put_({row_index, at_index}, key);
  values.transpose(1, 2).index_put_({row_index, at_index}, value);
  for (std::int64_t& length : lengths) ++length;
  return attend_padded(query, keys.index_select(0, row_index), values.index_select(0, row_index), lengths, rule.window);
}

}  // namespace thinkvg::nn
