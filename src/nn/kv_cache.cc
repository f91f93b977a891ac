#include "thinkvg/nn/kv_cache.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "nn/cpu/paged_attention_kernel.h"
#include "thinkvg/core/error.h"
#include "thinkvg/nn/exact.h"
#include "thinkvg/nn/workers.h"

namespace thinkvg::nn {
namespace {

bool has_row_kernel(const at::Tensor& query) {
  return query.is_cpu() && (query.scalar_type() == at::kFloat || query.scalar_type() == at::kBFloat16);
}

// Puts each token's key and value into its place of its page.
template <class Number>
void write_tokens(const at::Tensor& keys, const at::Tensor& values, const at::Tensor& key, const at::Tensor& value,
                  const std::vector<std::int64_t>& slots) {
  constexpr std::int64_t kPage = PagedKvCache::kPageTokens;
  const std::int64_t num_heads = keys.size(1), width = keys.size(2);
  const at::Tensor dense_key = key.contiguous(), dense_value = value.contiguous();
  const auto* from_key = static_cast<const Number*>(dense_key.const_data_ptr());
  const auto* from_value = static_cast<const Number*>(dense_value.const_data_ptr());
  auto* to_keys = static_cast<Number*>(keys.mutable_data_ptr());
  auto* to_values = static_cast<Number*>(values.mutable_data_ptr());
  share_out(std::ssize(slots), 256, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      const std::int64_t page = slots[static_cast<std::size_t>(t)] / kPage,
                         slot = slots[static_cast<std::size_t>(t)] % kPage;
      for (std::int64_t head = 0; head < num_heads; ++head) {
        const std::int64_t place = (page * num_heads + head) * width * kPage;
        const Number* token_key = from_key + (t * num_heads + head) * width;
        for (std::int64_t k = 0; k < width; ++k) to_keys[place + k * kPage + slot] = token_key[k];
        std::copy_n(from_value + (t * num_heads + head) * width, width, to_values + place + slot * width);
      }
    }
  });
}

}  // namespace

PagedKvCache::PagedKvCache(const Shape& shape, const at::TensorOptions& options) : shape_(shape) {
  for (std::int64_t layer = 0; layer < shape.num_layers; ++layer) {
    keys_.push_back(at::empty({shape.num_pages, shape.num_kv_heads, shape.head_dim, kPageTokens}, options));
    values_.push_back(at::empty({shape.num_pages, shape.num_kv_heads, kPageTokens, shape.head_dim}, options));
  }
}

std::int64_t PagedKvCache::page_bytes(const Shape& shape, std::int64_t bytes_per_number) {
  return 2 * shape.num_layers * shape.num_kv_heads * kPageTokens * shape.head_dim * bytes_per_number;
}

void PagedKvCache::copy_page(std::int64_t from, std::int64_t to) {
  for (const std::vector<at::Tensor>* tensors : {&keys_, &values_})
    for (const at::Tensor& tensor : *tensors) tensor.select(0, to).copy_(tensor.select(0, from));
}

PagedAttention::PagedAttention(PagedKvCache& cache, std::vector<PagedSequence> sequences, SequenceLayout layout)
    : cache_(cache), sequences_(std::move(sequences)), layout_(std::move(layout)) {
  if (layout_.lengths.size() != sequences_.size())
    throw_invalid("a pass of {} sequences came with {} page tables", layout_.lengths.size(), sequences_.size());
  bool has_past = false;
  for (std::size_t i = 0; i < sequences_.size(); ++i) {
    const std::int64_t end = sequences_[i].past + layout_.lengths[i];
    if (std::ssize(sequences_[i].pages) < PagedKvCache::pages_for(end))
      throw_invalid("{} tokens need {} pages of the cache, but sequence {} has {}", end, PagedKvCache::pages_for(end),
                    i, sequences_[i].pages.size());
    longest_ = std::max(longest_, end);
    has_past = has_past || sequences_[i].past > 0;
    single_tokens_ = single_tokens_ && layout_.lengths[i] == 1;
    for (std::int64_t place = sequences_[i].past; place < end; ++place) {
      sequence_of_.push_back(static_cast<std::int64_t>(i));
      place_of_.push_back(place);
      slots_.push_back(sequences_[i].pages[static_cast<std::size_t>(place / PagedKvCache::kPageTokens)] *
                           PagedKvCache::kPageTokens +
                       place % PagedKvCache::kPageTokens);
    }
  }
  if (!has_past && !single_tokens_) packed_ = std::make_unique<PackedAttention>(layout_);
}

void PagedAttention::write(std::int64_t layer, const at::Tensor& key, const at::Tensor& value) const {
  const at::Tensor &keys = cache_.keys(layer), &values = cache_.values(layer);
  if (keys.is_cpu() && keys.element_size() == 4 && key.element_size() == 4)
    return write_tokens<std::uint32_t>(keys, values, key, value, slots_);
  if (keys.is_cpu() && keys.element_size() == 2 && key.element_size() == 2)
    return write_tokens<std::uint16_t>(keys, values, key, value, slots_);
  const at::Tensor where = at::tensor(slots_, at::kLong).to(keys.device());
  const at::Tensor page = where.floor_divide(PagedKvCache::kPageTokens);
  const at::Tensor slot = where.remainder(PagedKvCache::kPageTokens);
  keys.permute({0, 3, 1, 2}).index_put_({page, slot}, key.to(keys.scalar_type()));
  values.transpose(1, 2).index_put_({page, slot}, value.to(values.scalar_type()));
}

at::Tensor PagedAttention::attend_rows(std::int64_t layer, const at::Tensor& query) const {
  const at::Tensor &keys = cache_.keys(layer), &values = cache_.values(layer);
  const at::Tensor dense = query.contiguous();
  at::Tensor output = at::empty_like(dense);
  const std::int64_t num_heads = keys.size(1), width = keys.size(2), group = dense.size(1) / num_heads;
  const std::int64_t item = dense.element_size();
  const auto* queries = static_cast<const char*>(dense.const_data_ptr());
  auto* outputs = static_cast<char*>(output.mutable_data_ptr());
  // Enough work for a thread: about 16 thousand multiplications.
  const std::int64_t grain = std::max<std::int64_t>(1, 16384 / (longest_ * group * width + 1));
  share_out(std::ssize(place_of_) * num_heads, grain, [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> scratch(static_cast<std::size_t>(cpu::paged_scratch(group, width, longest_)));
    for (std::int64_t i = begin; i < end; ++i) {
      const auto token = static_cast<std::size_t>(i / num_heads);
      const PagedSequence& sequence = sequences_[static_cast<std::size_t>(sequence_of_[token])];
      cpu::paged_attention_row({.query = queries + i * group * width * item,
                                .keys = keys.const_data_ptr(),
                                .values = values.const_data_ptr(),
                                .pages = sequence.pages.data(),
                                .is_bf16 = dense.scalar_type() == at::kBFloat16,
                                .head = i % num_heads,
                                .num_heads = num_heads,
                                .group = group,
                                .width = width,
                                .first = 0,
                                .length = place_of_[token] + 1,
                                .scratch = scratch.data(),
                                .output = outputs + i * group * width * item});
    }
  });
  return output;
}

// Any device and dtype.
at::Tensor PagedAttention::attend_sequence(std::int64_t layer, const at::Tensor& query, std::size_t index) const {
  const PagedSequence& sequence = sequences_[index];
  const std::int64_t count = layout_.lengths[index], length = sequence.past + count;
  const at::Tensor pages =
      at::tensor(sequence.pages, at::kLong).narrow(0, 0, PagedKvCache::pages_for(length)).to(query.device());
  const std::int64_t num_heads = cache_.shape().num_kv_heads, width = cache_.shape().head_dim;
  const at::Tensor keys = cache_.keys(layer)
                              .index_select(0, pages)
                              .permute({1, 0, 3, 2})
                              .reshape({num_heads, -1, width})
                              .narrow(1, 0, length)
                              .to(query.scalar_type());
  const at::Tensor values = cache_.values(layer)
                                .index_select(0, pages)
                                .permute({1, 0, 2, 3})
                                .reshape({num_heads, -1, width})
                                .narrow(1, 0, length)
                                .to(query.scalar_type());
  std::optional<at::Tensor> mask;
  if (count > 1) mask = at::ones({count, length}, query.options().dtype(at::kBool)).tril(sequence.past);
  return at::scaled_dot_product_attention(query.transpose(0, 1).unsqueeze(0), keys.unsqueeze(0), values.unsqueeze(0),
                                          mask, 0.0, false, std::nullopt, query.size(1) != num_heads)
      .squeeze(0)
      .transpose(0, 1);
}

at::Tensor PagedAttention::attend(std::int64_t layer, const at::Tensor& query, const at::Tensor& key,
                                  const at::Tensor& value) {
  if (query.size(0) != std::ssize(sequence_of_))
    throw_invalid("a pass of {} tokens came to a cache that expects {}", query.size(0), sequence_of_.size());
  write(layer, key, value);
  const bool by_rows = has_row_kernel(query) && cache_.keys(layer).scalar_type() == query.scalar_type();
  if (by_rows && (single_tokens_ || exact_forward())) return attend_rows(layer, query);
  if (packed_) return packed_->attend(layer, query, key, value);
  std::vector<at::Tensor> outputs;
  std::int64_t start = 0;
  for (std::size_t i = 0; i < sequences_.size(); ++i) {
    outputs.push_back(attend_sequence(layer, query.narrow(0, start, layout_.lengths[i]), i));
    start += layout_.lengths[i];
  }
  return at::cat(outputs);
}

}  // namespace thinkvg::nn
