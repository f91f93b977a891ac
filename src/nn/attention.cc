#include "thinkvg/nn/attention.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/ranges.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <algorithm>
#include <numeric>

#include "nn/attention_plan.h"
#include "thinkvg/core/error.h"

namespace thinkvg::nn {
namespace {

// Pieces of about this many tokens: large enough to hide the cost of a call, small enough to share among threads.
constexpr std::int64_t kTokensPerRun = 512;

std::vector<AttentionRun> runs_of(const std::vector<std::int64_t>& lengths) {
  std::vector<AttentionRun> runs;
  std::int64_t start = 0;
  for (const std::int64_t length : lengths) {
    if (length > 0 && !runs.empty() && runs.back().length == length &&
        runs.back().num_tokens() + length <= kTokensPerRun) {
      ++runs.back().count;
    } else if (length > 0) {
      runs.push_back({start, length, 1});
    }
    start += length;
  }
  return runs;
}

std::vector<PrefixGroup> groups_of(const SequenceLayout& layout) {
  std::vector<PrefixGroup> groups;
  if (layout.prefix.empty()) return groups;
  std::vector<std::int64_t> starts(layout.lengths.size());
  std::exclusive_scan(layout.lengths.begin(), layout.lengths.end(), starts.begin(), std::int64_t{0});
  std::vector<std::int64_t> group_of(layout.lengths.size(), -1);
  for (std::size_t i = 0; i < layout.prefix.size(); ++i) {
    const std::int64_t prefix = layout.prefix[i];
    if (prefix < 0 || layout.lengths[i] == 0 || layout.lengths[prefix] == 0) continue;
    if (group_of[prefix] < 0) {
      group_of[prefix] = static_cast<std::int64_t>(groups.size());
      groups.push_back({starts[prefix], layout.lengths[prefix], {}});
    }
    std::vector<AttentionRun>& queries = groups[group_of[prefix]].queries;
    if (!queries.empty() && queries.back().start + queries.back().length == starts[i]) {
      queries.back().length += layout.lengths[i];
    } else {
      queries.push_back({starts[i], layout.lengths[i], 1});
    }
  }
  return groups;
}

void check_shapes(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, std::int64_t num_tokens) {
  if (query.dim() != 3 || key.dim() != 3 || value.sizes() != key.sizes() || query.size(0) != num_tokens ||
      key.size(0) != num_tokens || query.size(2) != key.size(2) || key.size(1) == 0 ||
      query.size(1) % key.size(1) != 0) {
    throw_invalid(
        "attention: expected query [{}, H, K], key and value [{}, J, K] with H a multiple of J; got query [{}], key "
        "[{}], value [{}]",
        num_tokens, num_tokens, fmt::join(query.sizes(), ", "), fmt::join(key.sizes(), ", "),
        fmt::join(value.sizes(), ", "));
  }
}

std::int64_t prefix_of(const SequenceLayout& layout, std::size_t sequence) {
  return layout.prefix.empty() ? -1 : layout.prefix[sequence];
}

void check_images(const SequenceLayout& layout) {
  std::int64_t start = 0;
  std::size_t image = 0;
  for (std::size_t i = 0; i < layout.lengths.size(); ++i) {
    const std::int64_t end = start + layout.lengths[i];
    for (; image < layout.images.size() && layout.images[image].start < end; ++image) {
      const SequenceLayout::Block& block = layout.images[image];
      if (block.start < start || block.length < 1 || block.start + block.length > end) break;
      start = block.start + block.length;
    }
    start = end;
  }
  if (image < layout.images.size()) {
    throw_invalid("sequence layout: picture {} of {} tokens from {} on does not lie in one sequence behind the others",
                  image, layout.images[image].length, layout.images[image].start);
  }
}

// Whether the rule makes a difference for a sequence.
bool changes(const SequenceLayout& layout, const MaskRule& rule, std::size_t sequence) {
  const std::int64_t prefix = prefix_of(layout, sequence);
  const std::int64_t before = prefix < 0 ? 0 : layout.lengths[static_cast<std::size_t>(prefix)];
  if (rule.window > 0 && before + layout.lengths[sequence] > rule.window) return true;
  if (!rule.image_blocks || layout.images.empty()) return false;
  const std::int64_t start = std::accumulate(
      layout.lengths.begin(), layout.lengths.begin() + static_cast<std::ptrdiff_t>(sequence), std::int64_t{0});
  return std::any_of(layout.images.begin(), layout.images.end(), [&](const SequenceLayout::Block& block) {
    return block.start >= start && block.start < start + layout.lengths[sequence];
  });
}

bool changes(const SequenceLayout& layout, const MaskRule& rule) {
  for (std::size_t i = 0; i < layout.lengths.size(); ++i)
    if (changes(layout, rule, i)) return true;
  return false;
}

// [length, prefix + length]: what each token of a sequence sees.
at::Tensor mask_of(const SequenceLayout& layout, const MaskRule& rule, std::size_t sequence,
                   const std::vector<std::int64_t>& starts) {
  const std::int64_t prefix = prefix_of(layout, sequence);
  const std::int64_t before = prefix < 0 ? 0 : layout.lengths[static_cast<std::size_t>(prefix)];
  const std::int64_t length = layout.lengths[sequence];
  at::Tensor mask = at::ones({length, before + length}, at::kBool).tril(before);
  if (rule.image_blocks) {
    for (const SequenceLayout::Block& block : layout.images) {
      const std::int64_t first = block.start - starts[sequence];
      if (first < 0 || first >= length) continue;
      mask.narrow(0, first, block.length).narrow(1, before + first, block.length).fill_(true);
    }
  }
  // Token i is number before + i: it sees numbers above before + i - window.
  return rule.window > 0 ? mask.triu(before - rule.window + 1) : mask;
}

at::Tensor attend_plan(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                       const std::shared_ptr<const AttentionPlan>& plan) {
  check_shapes(query, key, value, plan->num_tokens);
  if (query.is_cpu()) return cpu_attention(query, key, value, plan);
  if (has_varlen_attention(query))
    return varlen_attention(query, key, value, plan->varlen_on(query.device()), {plan->causal, 0});
  return plain_attention(query, key, value, *plan);
}

}  // namespace

std::shared_ptr<AttentionContext> AttentionContext::repeatable() const {
  throw_invalid("attention: this pass cannot be repeated; compute without gradients, or without checkpointing");
}

at::Tensor AttentionContext::attend_masked(std::int64_t layer, const at::Tensor& query, const at::Tensor& key,
                                           const at::Tensor& value, const MaskRule& rule) {
  if (rule.window > 0 || rule.image_blocks) {
    throw_invalid("attention: sliding windows and blocks of image tokens are not offered here");
  }
  return attend(layer, query, key, value);
}

std::int64_t SequenceLayout::num_tokens() const {
  return std::accumulate(lengths.begin(), lengths.end(), std::int64_t{0});
}

void SequenceLayout::check() const {
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    if (lengths[i] < 0) throw_invalid("sequence layout: sequence {} has length {}, expected 0 or more", i, lengths[i]);
  }
  check_images(*this);
  if (prefix.empty()) return;
  if (prefix.size() != lengths.size()) {
    throw_invalid("sequence layout: {} prefixes for {} sequences, expected one each or none", prefix.size(),
                  lengths.size());
  }
  for (std::size_t i = 0; i < prefix.size(); ++i) {
    if (prefix[i] < -1 || prefix[i] >= static_cast<std::int64_t>(i)) {
      throw_invalid("sequence layout: sequence {} has prefix {}, expected -1 or an earlier sequence", i, prefix[i]);
    }
    if (prefix[i] >= 0 && prefix[prefix[i]] >= 0) {
      throw_invalid(
          "sequence layout: sequence {} continues {}, which itself continues {}; a prefix must start by itself", i,
          prefix[i], prefix[prefix[i]]);
    }
  }
}

AttentionPlan::AttentionPlan(SequenceLayout sequences, bool is_causal)
    : layout(std::move(sequences)), causal(is_causal) {
  layout.check();
  num_tokens = layout.num_tokens();
  runs = runs_of(layout.lengths);
  groups = groups_of(layout);
}

const VarlenTensors& AttentionPlan::varlen_on(const at::Device& device) const {
  std::call_once(varlen_made_, [&] { varlen_ = varlen_tensors(varlen_segments(layout), device); });
  return varlen_;
}

at::Tensor plain_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                           const AttentionPlan& plan) {
  return masked_attention(query, key, value, plan, {});
}

at::Tensor masked_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                            const AttentionPlan& plan, const MaskRule& rule) {
  const SequenceLayout& layout = plan.layout;
  const bool grouped = query.size(1) != key.size(1);
  std::vector<std::int64_t> starts(layout.lengths.size());
  std::exclusive_scan(layout.lengths.begin(), layout.lengths.end(), starts.begin(), std::int64_t{0});
  const auto rows = [&](const at::Tensor& tensor, std::size_t i) {
    return tensor.narrow(0, starts[i], layout.lengths[i]);
  };
  const auto heads_first = [](const at::Tensor& tensor) { return tensor.transpose(0, 1).unsqueeze(0); };
  std::vector<at::Tensor> outputs;
  for (std::size_t i = 0; i < layout.lengths.size(); ++i) {
    const std::int64_t length = layout.lengths[i];
    if (length == 0) continue;
    const std::int64_t prefix = prefix_of(layout, i);
    at::Tensor keys = rows(key, i);
    at::Tensor values = rows(value, i);
    if (prefix >= 0) {
      keys = at::cat({rows(key, prefix), keys});
      values = at::cat({rows(value, prefix), values});
    }
    std::optional<at::Tensor> mask;
    const bool masked = changes(layout, rule, i);
    if (masked) mask = mask_of(layout, rule, i, starts).to(query.device());
    if (!masked && prefix >= 0) {
      mask = at::ones({length, keys.size(0)}, query.options().dtype(at::kBool)).tril(layout.lengths[prefix]);
    }
    const at::Tensor output =
        at::scaled_dot_product_attention(heads_first(rows(query, i)), heads_first(keys), heads_first(values), mask, 0.0,
                                         plan.causal && prefix < 0 && !masked, std::nullopt, grouped);
    outputs.push_back(output.squeeze(0).transpose(0, 1));
  }
  if (outputs.empty()) return query.clone();
  return at::cat(outputs);
}

PackedAttention::PackedAttention(SequenceLayout layout)
    : plan_(std::make_shared<const AttentionPlan>(std::move(layout), true)) {}

PackedAttention::PackedAttention(std::shared_ptr<const AttentionPlan> plan) : plan_(std::move(plan)) {}

PackedAttention::~PackedAttention() = default;

std::shared_ptr<AttentionContext> PackedAttention::repeatable() const {
  return std::shared_ptr<PackedAttention>(new PackedAttention(plan_));
}

void PackedAttention::record_layer(std::int64_t layer, const at::Tensor& key, const at::Tensor& value) {
  if (!record_) return;
  if (layer < 0) throw_invalid("attention: layer {} is negative", layer);
  if (static_cast<std::int64_t>(recorded_.size()) <= layer) recorded_.resize(layer + 1);
  recorded_[layer] = {key.detach(), value.detach()};
}

at::Tensor PackedAttention::attend(std::int64_t layer, const at::Tensor& query, const at::Tensor& key,
                                   const at::Tensor& value) {
  record_layer(layer, key, value);
  return attend_plan(query, key, value, plan_);
}

at::Tensor PackedAttention::attend_masked(std::int64_t layer, const at::Tensor& query, const at::Tensor& key,
                                          const at::Tensor& value, const MaskRule& rule) {
  record_layer(layer, key, value);
  if (!changes(plan_->layout, rule)) return attend_plan(query, key, value, plan_);
  check_shapes(query, key, value, plan_->num_tokens);
  if (has_varlen_attention(query) && query.scalar_type() != at::kFloat &&
      !changes(plan_->layout, {0, rule.image_blocks}))
    return varlen_attention(query, key, value, plan_->varlen_on(query.device()), {true, rule.window});
  return masked_attention(query, key, value, *plan_, rule);
}

at::Tensor block_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                           const std::vector<std::int64_t>& lengths) {
  return attend_plan(query, key, value, std::make_shared<const AttentionPlan>(SequenceLayout{lengths, {}}, false));
}

}  // namespace thinkvg::nn
