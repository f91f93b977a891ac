// Attention on the CPU out of ATen's flash kernels. Where a sequence has a prefix, both parts are computed apart and
// merged: with l_i the log-sum-exp of part i and l that of both, out = sum_i exp(l_i - l) out_i. The backward pass of a
// part is the stock one, given the merged output and log-sum-exp: its row sum grad_out . out and its probabilities
// exp(score - l) are then those of the whole softmax.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <memory>
#include <numeric>
#include <utility>

#include "nn/attention_plan.h"
#include "nn/cpu/paged_attention_kernel.h"
#include "thinkvg/nn/exact.h"
#include "thinkvg/nn/kv_cache.h"

namespace thinkvg::nn {
namespace {

// Calls body(i) for all i, on several threads where there are enough pieces; each call's own ATen code then stays on
// its thread. With fewer pieces than threads the calls run one after the other and share the threads inside.
void for_each_piece(std::int64_t num_pieces, const std::function<void(std::int64_t)>& body) {
  const bool outer = num_pieces >= 2 * at::get_num_threads() && at::get_num_threads() > 1 && !at::in_parallel_region();
  const auto range = [&body](std::int64_t begin, std::int64_t end) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    for (std::int64_t i = begin; i < end; ++i) body(i);
  };
  if (outer) {
    at::parallel_for(0, num_pieces, 1, range);
  } else {
    range(0, num_pieces);
  }
}

// [T, H, K] -> [count, H, length, K], a view.
at::Tensor heads_first(const at::Tensor& tensor, const AttentionRun& run) {
  return tensor.narrow(0, run.start, run.num_tokens())
      .view({run.count, run.length, tensor.size(1), tensor.size(2)})
      .transpose(1, 2);
}

// [T, H] -> [count, H, length], a view.
at::Tensor heads_first_rows(const at::Tensor& tensor, const AttentionRun& run) {
  return tensor.narrow(0, run.start, run.num_tokens()).view({run.count, run.length, tensor.size(1)}).transpose(1, 2);
}

// Merges a part into rows [start, start + n) of out [T, H, K] and lse [T, H]. part [1, H, n, K] and part_lse [1, H, n]
// are laid out as the flash kernel returns them: rows outermost.
template <class Scalar>
void merge_rows(const at::Tensor& part, const at::Tensor& part_lse, const AttentionRun& rows, const at::Tensor& out,
                const at::Tensor& lse) {
  using Accumulate = at::opmath_type<Scalar>;
  const at::Tensor from = part.squeeze(0).transpose(0, 1).contiguous();
  const at::Tensor from_lse = part_lse.squeeze(0).transpose(0, 1).contiguous();
  const std::int64_t num_rows = rows.num_tokens() * out.size(1);
  const std::int64_t width = out.size(2);
  const Scalar* source = from.const_data_ptr<Scalar>();
  const Accumulate* source_lse = from_lse.const_data_ptr<Accumulate>();
  Scalar* target = out.mutable_data_ptr<Scalar>() + rows.start * out.size(1) * width;
  Accumulate* target_lse = lse.mutable_data_ptr<Accumulate>() + rows.start * out.size(1);
  for (std::int64_t row = 0; row < num_rows; ++row) {
    const Accumulate a = target_lse[row];
    const Accumulate b = source_lse[row];
    const Accumulate largest = std::max(a, b);
    const Accumulate total = largest + std::log(std::exp(a - largest) + std::exp(b - largest));
    const Accumulate weight_a = std::exp(a - total);
    const Accumulate weight_b = std::exp(b - total);
    for (std::int64_t k = 0; k < width; ++k) {
      Scalar& value = target[row * width + k];
      value = static_cast<Scalar>(weight_a * static_cast<Accumulate>(value) +
                                  weight_b * static_cast<Accumulate>(source[row * width + k]));
    }
    target_lse[row] = total;
  }
}

// Keys and values of a sequence behind those of its prefix, as pages of 16 tokens.
struct Pages {
  at::Tensor keys;    // [N, J, K, 16]
  at::Tensor values;  // [N, J, 16, K]
  std::vector<std::int64_t> order;
};

Pages paged(const at::Tensor& keys, const at::Tensor& values) {
  constexpr std::int64_t kPage = PagedKvCache::kPageTokens;
  const std::int64_t length = keys.size(0), num_pages = PagedKvCache::pages_for(length);
  const auto split = [&](const at::Tensor& tokens) {
    return at::constant_pad_nd(tokens, {0, 0, 0, 0, 0, num_pages * kPage - length})
        .view({num_pages, kPage, tokens.size(1), tokens.size(2)});
  };
  Pages pages{split(keys).permute({0, 2, 3, 1}).contiguous(), split(values).transpose(1, 2).contiguous(),
              std::vector<std::int64_t>(static_cast<std::size_t>(num_pages))};
  std::iota(pages.order.begin(), pages.order.end(), 0);
  return pages;
}

constexpr std::int64_t kTokensABlock = 8;

// Each token by itself, just as a decoding step computes it.
void attend_exactly(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, const AttentionPlan& plan,
                    const at::Tensor& out, const at::Tensor& lse) {
  const SequenceLayout& layout = plan.layout;
  std::vector<std::int64_t> starts(layout.lengths.size());
  std::exclusive_scan(layout.lengths.begin(), layout.lengths.end(), starts.begin(), std::int64_t{0});
  const std::int64_t num_heads = key.size(1), width = key.size(2), group = query.size(1) / num_heads;
  const at::Tensor dense = query.contiguous();
  const float* queries = dense.const_data_ptr<float>();
  float* outputs = out.mutable_data_ptr<float>();
  float* sums = lse.mutable_data_ptr<float>();
  for (std::size_t i = 0; i < layout.lengths.size(); ++i) {
    const std::int64_t length = layout.lengths[i], start = starts[i];
    if (length == 0) continue;
    const std::int64_t prefix = layout.prefix.empty() ? -1 : layout.prefix[i];
    const std::int64_t before = prefix < 0 ? 0 : layout.lengths[static_cast<std::size_t>(prefix)];
    const auto with_prefix = [&](const at::Tensor& tokens) {
      const at::Tensor own = tokens.narrow(0, start, length);
      return before == 0 ? own : at::cat({tokens.narrow(0, starts[static_cast<std::size_t>(prefix)], before), own});
    };
    const Pages pages = paged(with_prefix(key), with_prefix(value));
    const std::int64_t num_blocks = (length + kTokensABlock - 1) / kTokensABlock;
    at::parallel_for(0, num_blocks * num_heads, 1, [&](std::int64_t begin, std::int64_t end) {
      std::vector<float> scratch(
          static_cast<std::size_t>(cpu::paged_scratch(kTokensABlock * group, width, before + length)));
      for (std::int64_t item = begin; item < end; ++item) {
        const std::int64_t head = item % num_heads, first = item / num_heads * kTokensABlock;
        std::array<cpu::PagedRow, kTokensABlock> rows;
        const std::int64_t count = std::min(kTokensABlock, length - first);
        for (std::int64_t t = 0; t < count; ++t) {
          const std::int64_t row = ((start + first + t) * num_heads + head) * group;
          rows[static_cast<std::size_t>(t)] = {.query = queries + row * width,
                                               .pages = pages.order.data(),
                                               .first = 0,
                                               .length = before + first + t + 1,
                                               .output = outputs + row * width,
                                               .lse = sums + row};
        }
        cpu::paged_attention_rows({.keys = pages.keys.const_data_ptr(),
                                   .values = pages.values.const_data_ptr(),
                                   .is_bf16 = false,
                                   .head = head,
                                   .num_heads = num_heads,
                                   .group = group,
                                   .width = width,
                                   .rows = rows.data(),
                                   .num_rows = count,
                                   .num_shared = (before + first + 1) / PagedKvCache::kPageTokens,
                                   .scratch = scratch.data()});
      }
    });
  }
}

struct PlanHolder final : torch::CustomClassHolder {
  explicit PlanHolder(std::shared_ptr<const AttentionPlan> held) : plan(std::move(held)) {}
  std::shared_ptr<const AttentionPlan> plan;
};

struct CpuAttention final : torch::autograd::Function<CpuAttention> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& query, const at::Tensor& key,
                            const at::Tensor& value, const std::shared_ptr<const AttentionPlan>& plan) {
    const at::Tensor out = at::empty(query.sizes(), query.options());
    const at::Tensor lse =
        at::empty({query.size(0), query.size(1)}, query.options().dtype(at::toOpMathType(query.scalar_type())));
    if (exact_forward() && plan->causal && query.scalar_type() == at::kFloat) {
      const at::AutoDispatchBelowADInplaceOrView below_autograd;
      attend_exactly(query, key, value, *plan, out, lse);
    } else {
      attend_by_parts(query, key, value, *plan, out, lse);
    }
    context->save_for_backward({query, key, value, out, lse});
    context->saved_data["plan"] =
        c10::IValue::make_capsule(c10::intrusive_ptr<torch::CustomClassHolder>(c10::make_intrusive<PlanHolder>(plan)));
    return out;
  }

  static void attend_by_parts(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                              const AttentionPlan& plan, const at::Tensor& out, const at::Tensor& lse) {
    for_each_piece(static_cast<std::int64_t>(plan.runs.size()), [&](std::int64_t i) {
      const AttentionRun& run = plan.runs[i];
      const auto [part, part_lse] = at::_scaled_dot_product_flash_attention_for_cpu(
          heads_first(query, run), heads_first(key, run), heads_first(value, run), 0.0, plan.causal);
      heads_first(out, run).copy_(part);
      heads_first_rows(lse, run).copy_(part_lse);
    });
    for_each_piece(static_cast<std::int64_t>(plan.groups.size()), [&](std::int64_t i) {
      const PrefixGroup& group = plan.groups[i];
      const AttentionRun prefix{group.start, group.length, 1};
      for (const AttentionRun& rows : group.queries) {
        const auto [part, part_lse] = at::_scaled_dot_product_flash_attention_for_cpu(
            heads_first(query, rows), heads_first(key, prefix), heads_first(value, prefix));
        AT_DISPATCH_FLOATING_TYPES_AND2(
            at::kHalf, at::kBFloat16, query.scalar_type(), "merge_attention",
            [&, &rest = part, &rest_lse = part_lse] { merge_rows<scalar_t>(rest, rest_lse, rows, out, lse); });
      }
    });
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grads) {
    const torch::autograd::variable_list saved = context->get_saved_variables();
    const at::Tensor &query = saved[0], &key = saved[1], &value = saved[2], &out = saved[3], &lse = saved[4];
    const auto capsule = context->saved_data["plan"].toCapsule();
    const AttentionPlan& plan = *static_cast<const PlanHolder&>(*capsule).plan;
    const at::Tensor grad = grads[0].contiguous();
    const at::Tensor grad_query = at::empty(query.sizes(), query.options());
    const at::Tensor grad_key = at::empty(key.sizes(), key.options());
    const at::Tensor grad_value = at::empty(value.sizes(), value.options());
    for_each_piece(static_cast<std::int64_t>(plan.runs.size()), [&](std::int64_t i) {
      const AttentionRun& run = plan.runs[i];
      const auto [part_query, part_key, part_value] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
          heads_first(grad, run), heads_first(query, run), heads_first(key, run), heads_first(value, run),
          heads_first(out, run), heads_first_rows(lse, run), 0.0, plan.causal);
      heads_first(grad_query, run).copy_(part_query);
      heads_first(grad_key, run).copy_(part_key);
      heads_first(grad_value, run).copy_(part_value);
    });
    for_each_piece(static_cast<std::int64_t>(plan.groups.size()), [&](std::int64_t i) {
      const PrefixGroup& group = plan.groups[i];
      const AttentionRun prefix{group.start, group.length, 1};
      for (const AttentionRun& rows : group.queries) {
        const auto [part_query, part_key, part_value] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
            heads_first(grad, rows), heads_first(query, rows), heads_first(key, prefix), heads_first(value, prefix),
            heads_first(out, rows), heads_first_rows(lse, rows), 0.0, false);
        heads_first(grad_query, rows).add_(part_query);
        heads_first(grad_key, prefix).add_(part_key);
        heads_first(grad_value, prefix).add_(part_value);
      }
    });
    return {grad_query, grad_key, grad_value, at::Tensor()};
  }
};

}  // namespace

at::Tensor cpu_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                         const std::shared_ptr<const AttentionPlan>& plan) {
  if (plan->num_tokens == 0) return query.clone();
  return CpuAttention::apply(query, key, value, plan);
}

}  // namespace thinkvg::nn
