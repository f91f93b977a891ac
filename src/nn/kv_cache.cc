#include "thinkvg/nn/kv_cache.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <numeric>

#include "nn/cpu/paged_attention_kernel.h"
#include "thinkvg/core/error.h"
#include "thinkvg/nn/exact.h"
#include "thinkvg/nn/workers.h"

namespace thinkvg::nn {
namespace {

// Tokens that share pages are computed together: blocks a thread, so that the threads end together, and queries of a
// block, so that their scores stay in a core's cache.
constexpr std::int64_t kBlocksAThread = 4, kMostQueries = 32;

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
  // PagedAttention::attend_together gives tokens that were never written a weight of 0, which a NaN would survive.
  const auto pages = [&](at::IntArrayRef sizes) {
    return options.device().is_cpu() ? at::empty(sizes, options) : at::zeros(sizes, options);
  };
  for (std::int64_t layer = 0; layer < shape.num_layers; ++layer) {
    keys_.push_back(pages({shape.num_pages, shape.num_kv_heads, shape.head_dim, kPageTokens}));
    values_.push_back(pages({shape.num_pages, shape.num_kv_heads, kPageTokens, shape.head_dim}));
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
  std::int64_t start = 0;
  for (std::size_t i = 0; i < sequences_.size(); ++i) {
    const std::int64_t end = sequences_[i].past + layout_.lengths[i];
    if (std::ssize(sequences_[i].pages) < PagedKvCache::pages_for(end))
      throw_invalid("{} tokens need {} pages of the cache, but sequence {} has {}", end, PagedKvCache::pages_for(end),
                    i, sequences_[i].pages.size());
    starts_.push_back(start);
    start += layout_.lengths[i];
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

void PagedAttention::write(std::int64_t layer, const at::Tensor& key, const at::Tensor& value) {
  const at::Tensor &keys = cache_.keys(layer), &values = cache_.values(layer);
  if (keys.is_cpu() && keys.element_size() == 4 && key.element_size() == 4)
    return write_tokens<std::uint32_t>(keys, values, key, value, slots_);
  if (keys.is_cpu() && keys.element_size() == 2 && key.element_size() == 2)
    return write_tokens<std::uint16_t>(keys, values, key, value, slots_);
  if (!device_slots_.defined()) {
    const at::Tensor where = at::tensor(slots_, at::kLong).to(keys.device());
    device_pages_ = where.floor_divide(PagedKvCache::kPageTokens);
    device_slots_ = where.remainder(PagedKvCache::kPageTokens);
  }
  keys.permute({0, 3, 1, 2}).index_put_({device_pages_, device_slots_}, key.to(keys.scalar_type()));
  values.transpose(1, 2).index_put_({device_pages_, device_slots_}, value.to(values.scalar_type()));
}

// Puts sequences side by side that begin with the same pages, and cuts their tokens into blocks.
void PagedAttention::group_rows(std::int64_t num_heads, std::int64_t group) {
  std::vector<std::size_t> order(sequences_.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return sequences_[a].pages < sequences_[b].pages; });
  const std::int64_t num_items = std::ssize(place_of_) * num_heads;
  const std::int64_t most = std::clamp<std::int64_t>(num_items / (kBlocksAThread * at::get_num_threads()), 1,
                                                     std::max<std::int64_t>(1, kMostQueries / group));
  std::size_t before = 0;  // the sequence of the last block's last token
  for (const std::size_t sequence : order) {
    const std::vector<std::int64_t>&last_pages = sequences_[before].pages, &pages = sequences_[sequence].pages;
    const std::int64_t in_common =
        std::mismatch(last_pages.begin(), last_pages.end(), pages.begin(), pages.end()).first - last_pages.begin();
    for (std::int64_t i = 0; i < layout_.lengths[sequence]; ++i) {
      const std::int64_t token = starts_[sequence] + i;
      const std::int64_t full = (sequences_[sequence].past + i + 1) / PagedKvCache::kPageTokens;
      std::int64_t shared = 0, size = 0;
      if (!blocks_.empty()) {
        const RowBlock& last = blocks_.back();
        size = std::ssize(last.tokens);
        shared = std::min(last.num_shared, i == 0 ? std::min(in_common, full) : full);
        // Joins where that does not make the reads that are saved fewer.
        if (size == most || shared * size < last.num_shared * (size - 1)) shared = 0;
      }
      if (shared > 0) {
        blocks_.back().tokens.push_back(token);
        blocks_.back().num_shared = shared;
      } else {
        blocks_.push_back({{token}, full});
      }
    }
    before = sequence;
  }
}

at::Tensor PagedAttention::attend_rows(std::int64_t layer, const at::Tensor& query, std::int64_t window) {
  const at::Tensor &keys = cache_.keys(layer), &values = cache_.values(layer);
  const at::Tensor dense = query.contiguous();
  at::Tensor output = at::empty_like(dense);
  const std::int64_t num_heads = keys.size(1), width = keys.size(2), group = dense.size(1) / num_heads;
  const std::int64_t item = dense.element_size() * group * width;
  const auto* queries = static_cast<const char*>(dense.const_data_ptr());
  auto* outputs = static_cast<char*>(output.mutable_data_ptr());
  if (blocks_.empty()) group_rows(num_heads, group);
  // Enough work for a thread: about 16 thousand multiplications.
  const std::int64_t a_block = std::ssize(place_of_) / std::ssize(blocks_) * longest_ * group * width;
  share_out(std::ssize(blocks_) * num_heads, std::max<std::int64_t>(1, 16384 / (a_block + 1)),
            [&](std::int64_t begin, std::int64_t end) {
              static thread_local std::vector<float> scratch;
              static thread_local std::vector<cpu::PagedRow> rows;
              for (std::int64_t i = begin; i < end; ++i) {
                const RowBlock& block = blocks_[static_cast<std::size_t>(i / num_heads)];
                const std::int64_t head = i % num_heads;
                std::int64_t longest = 0, shared = block.num_shared;
                rows.clear();
                for (const std::int64_t token : block.tokens) {
                  const auto place = static_cast<std::size_t>(token);
                  const std::int64_t length = place_of_[place] + 1;
                  const std::int64_t first = window > 0 ? std::max<std::int64_t>(0, length - window) : 0;
                  if (first > 0) shared = 0;
                  longest = std::max(longest, length);
                  rows.push_back({.query = queries + (token * num_heads + head) * item,
                                  .pages = sequences_[static_cast<std::size_t>(sequence_of_[place])].pages.data(),
                                  .first = first,
                                  .length = length,
                                  .output = outputs + (token * num_heads + head) * item});
                }
                const auto needed =
                    static_cast<std::size_t>(cpu::paged_scratch(std::ssize(block.tokens) * group, width, longest));
                if (scratch.size() < needed) scratch.resize(needed);
                cpu::paged_attention_rows({.keys = keys.const_data_ptr(),
                                           .values = values.const_data_ptr(),
                                           .is_bf16 = dense.scalar_type() == at::kBFloat16,
                                           .head = head,
                                           .num_heads = num_heads,
                                           .group = group,
                                           .width = width,
                                           .rows = rows.data(),
                                           .num_rows = std::ssize(rows),
                                           .num_shared = shared,
                                           .scratch = scratch.data()});
              }
            });
  return output;
}

// Any device and dtype.
at::Tensor PagedAttention::attend_sequence(std::int64_t layer, const at::Tensor& query, std::size_t index,
                                           const MaskRule& rule) const {
  const PagedSequence& sequence = sequences_[index];
  const std::int64_t count = layout_.lengths[index], length = sequence.past + count;
  const at::Tensor pages =
      at::tensor(sequence.pages, at::kLong).narrow(0, 0, PagedKvCache::pages_for(length)).to(query.device());
  const std::int64_t num_heads = cache_.shape().num_kv_heads, width = cache_.shape().head_dim;
  at::Tensor keys = cache_.keys(layer)
                        .index_select(0, pages)
                        .permute({1, 0, 3, 2})
                        .reshape({num_heads, -1, width})
                        .narrow(1, 0, length)
                        .to(query.scalar_type());
  at::Tensor values = cache_.values(layer)
                          .index_select(0, pages)
                          .permute({1, 0, 2, 3})
                          .reshape({num_heads, -1, width})
                          .narrow(1, 0, length)
                          .to(query.scalar_type());
  // Kernels of a GPU that take a mask know no groups of query heads.
  if (!query.is_cpu() && query.size(1) != num_heads) {
    keys = keys.repeat_interleave(query.size(1) / num_heads, 0);
    values = values.repeat_interleave(query.size(1) / num_heads, 0);
  }
  std::optional<at::Tensor> mask;
  if (count > 1 || (rule.window > 0 && length > rule.window)) {
    mask = at::ones({count, length}, query.options().dtype(at::kBool)).tril(sequence.past);
    if (rule.image_blocks) {
      const std::int64_t start = starts_[index];
      for (const SequenceLayout::Block& block : layout_.images)
        if (block.start >= start && block.start < start + count)
          mask->narrow(0, block.start - start, block.length)
              .narrow(1, sequence.past + block.start - start, block.length)
              .fill_(true);
    }
    // Token i is number past + i: it sees numbers above past + i - window.
    if (rule.window > 0) mask = mask->triu(sequence.past - rule.window + 1);
  }
  return at::scaled_dot_product_attention(query.transpose(0, 1).unsqueeze(0), keys.unsqueeze(0), values.unsqueeze(0),
                                          mask, 0.0, false, std::nullopt, query.size(1) != keys.size(0))
      .squeeze(0)
      .transpose(0, 1);
}

// One token of each sequence, all in one call: any device but the CPU, any dtype. Pages are copied side by side,
// shorter sequences filled up with any page, which the mask hides.
at::Tensor PagedAttention::attend_together(std::int64_t layer, const at::Tensor& query, std::int64_t window) {
  const std::int64_t num_sequences = std::ssize(sequences_), num_pages = PagedKvCache::pages_for(longest_);
  if (!tables_.defined()) {
    std::vector<std::int64_t> table, last;
    for (const PagedSequence& sequence : sequences_) {
      const std::int64_t used = PagedKvCache::pages_for(sequence.past + 1);
      table.insert(table.end(), sequence.pages.begin(), sequence.pages.begin() + used);
      table.insert(table.end(), static_cast<std::size_t>(num_pages - used), sequence.pages.front());
      last.push_back(sequence.past);
    }
    tables_ = at::tensor(table, at::kLong).to(query.device());
    last_places_ = at::tensor(last, at::kLong).unsqueeze(1).to(query.device());
    places_ = at::arange(num_pages * PagedKvCache::kPageTokens, last_places_.options());
  }
  const std::int64_t num_heads = cache_.shape().num_kv_heads, width = cache_.shape().head_dim;
  const auto side_by_side = [&](const at::Tensor& pages, at::IntArrayRef order) {
    return pages.index_select(0, tables_)
        .view({num_sequences, num_pages, num_heads, pages.size(2), pages.size(3)})
        .permute(order)
        .reshape({num_sequences, num_heads, -1, width})
        .to(query.scalar_type());
  };
  const at::Tensor keys = side_by_side(cache_.keys(layer), {0, 2, 1, 4, 3});
  const at::Tensor values = side_by_side(cache_.values(layer), {0, 2, 1, 3, 4});
  at::Tensor seen = places_ <= last_places_;
  if (window > 0) seen = seen.logical_and(places_ > last_places_ - window);
  // The query heads of a key's head are its rows: kernels that take a mask know no such groups.
  return at::scaled_dot_product_attention(query.reshape({num_sequences, num_heads, -1, width}), keys, values,
                                          seen.view({num_sequences, 1, 1, -1}))
      .reshape(query.sizes());
}

at::Tensor PagedAttention::attend(std::int64_t layer, const at::Tensor& query, const at::Tensor& key,
                                  const at::Tensor& value) {
  return attend_masked(layer, query, key, value, {});
}

at::Tensor PagedAttention::attend_masked(std::int64_t layer, const at::Tensor& query, const at::Tensor& key,
                                         const at::Tensor& value, const MaskRule& rule) {
  if (query.size(0) != std::ssize(sequence_of_))
    throw_invalid("a pass of {} tokens came to a cache that expects {}", query.size(0), sequence_of_.size());
  write(layer, key, value);
  const bool by_rows = has_row_kernel(query) && cache_.keys(layer).scalar_type() == query.scalar_type();
  const bool looks_ahead = rule.image_blocks && !layout_.images.empty();
  // Behind tokens that lie in pages, rows are faster than copies of the pages, too.
  if (by_rows && (single_tokens_ || ((exact_forward() || !packed_) && !looks_ahead)))
    return attend_rows(layer, query, rule.window);
  if (packed_) return packed_->attend_masked(layer, query, key, value, rule);
  if (single_tokens_ && !query.is_cpu()) return attend_together(layer, query, rule.window);
  std::vector<at::Tensor> outputs;
  for (std::size_t i = 0; i < sequences_.size(); ++i)
    outputs.push_back(attend_sequence(layer, query.narrow(0, starts_[i], layout_.lengths[i]), i, rule));
  return at::cat(outputs);
}

}  // namespace thinkvg::nn
