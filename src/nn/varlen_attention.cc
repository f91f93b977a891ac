#include "nn/varlen_attention.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <limits>
#include <numeric>

#include "thinkvg/core/error.h"

namespace thinkvg::nn {
namespace {

constexpr std::int64_t kUnlimited = -1;

// What memory-efficient attention calls its masks.
constexpr std::int64_t kNoMask = 0, kBottomRight = 2;

at::Tensor repeated_heads(const at::Tensor& tensor, std::int64_t num_heads) {
  return tensor.size(1) == num_heads ? tensor : tensor.repeat_interleave(num_heads / tensor.size(1), 1);
}

}  // namespace

VarlenSegments varlen_segments(const SequenceLayout& layout) {
  VarlenSegments segments{{0}, {0}, {}, 0, 0};
  std::vector<std::int64_t> starts(layout.lengths.size());
  std::exclusive_scan(layout.lengths.begin(), layout.lengths.end(), starts.begin(), std::int64_t{0});
  std::vector<std::int64_t> rows;
  const auto add_rows = [&](std::size_t sequence) {
    const std::size_t before = rows.size();
    rows.resize(before + static_cast<std::size_t>(layout.lengths[sequence]));
    std::iota(rows.begin() + static_cast<std::ptrdiff_t>(before), rows.end(), starts[sequence]);
  };
  bool has_prefix = false;
  for (std::size_t i = 0; i < layout.lengths.size(); ++i) {
    const std::int64_t length = layout.lengths[i];
    if (length == 0) continue;
    const std::int64_t prefix = layout.prefix.empty() ? -1 : layout.prefix[i];
    std::int64_t num_keys = length;
    if (prefix >= 0) {
      has_prefix = true;
      num_keys += layout.lengths[static_cast<std::size_t>(prefix)];
      add_rows(static_cast<std::size_t>(prefix));
    }
    add_rows(i);
    if (std::ssize(rows) > std::numeric_limits<std::int32_t>::max())
      throw_invalid("a pack has {} keys, more than attention can count; lower micro_batch_tokens", rows.size());
    segments.cumulative_queries.push_back(segments.cumulative_queries.back() + static_cast<std::int32_t>(length));
    segments.cumulative_keys.push_back(static_cast<std::int32_t>(rows.size()));
    segments.longest_queries = std::max(segments.longest_queries, length);
    segments.longest_keys = std::max(segments.longest_keys, num_keys);
  }
  if (has_prefix) segments.key_rows = std::move(rows);
  return segments;
}

VarlenTensors varlen_tensors(const VarlenSegments& segments, const at::Device& device) {
  return {at::tensor(segments.cumulative_queries, at::kInt).to(device),
          at::tensor(segments.cumulative_keys, at::kInt).to(device),
          segments.key_rows.empty() ? at::Tensor() : at::tensor(segments.key_rows, at::kLong).to(device),
          segments.longest_queries, segments.longest_keys};
}

bool has_varlen_attention(const at::Tensor& query) {
  const at::ScalarType type = query.scalar_type();
  return query.is_cuda() && query.size(-1) % 8 == 0 && query.size(-1) <= 256 &&
         (type == at::kFloat || type == at::kBFloat16 || type == at::kHalf);
}

at::Tensor varlen_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                            const VarlenTensors& segments, const VarlenMask& mask) {
  if (segments.longest_queries == 0) return query.clone();
  const auto chosen = [&](const at::Tensor& tensor) {
    return segments.key_rows.defined() ? tensor.index_select(0, segments.key_rows) : tensor.contiguous();
  };
  const at::Tensor queries = query.contiguous(), keys = chosen(key), values = chosen(value);
  if (query.scalar_type() != at::kFloat) {
    const bool windowed = mask.causal && mask.window > 0;
    return std::get<0>(at::_flash_attention_forward(
        queries, keys, values, segments.cumulative_queries, segments.cumulative_keys, segments.longest_queries,
        segments.longest_keys, /*dropout_p=*/0.0, mask.causal, /*return_debug_mask=*/false, std::nullopt,
        windowed ? mask.window - 1 : kUnlimited, windowed ? 0 : kUnlimited));
  }
  // Its gradient knows no windows.
  if (mask.window > 0) throw_invalid("attention in fp32: windows are not offered here");
  const bool needs_sums = query.requires_grad() || key.requires_grad() || value.requires_grad();
  return std::get<0>(at::_efficient_attention_forward(
                         queries.unsqueeze(0), repeated_heads(keys, query.size(1)).unsqueeze(0),
                         repeated_heads(values, query.size(1)).unsqueeze(0), std::nullopt, segments.cumulative_queries,
                         segments.cumulative_keys, segments.longest_queries, segments.longest_keys, /*dropout_p=*/0.0,
                         mask.causal ? kBottomRight : kNoMask, needs_sums))
      .squeeze(0);
}

}  // namespace thinkvg::nn
