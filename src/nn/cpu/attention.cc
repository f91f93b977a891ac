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
#include <cmath>
#include <functional>
#include <memory>
#include <utility>

#include "nn/attention_plan.h"

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
    for_each_piece(static_cast<std::int64_t>(plan->runs.size()), [&](std::int64_t i) {
      const AttentionRun& run = plan->runs[i];
      const auto [part, part_lse] = at::_scaled_dot_product_flash_attention_for_cpu(
          heads_first(query, run), heads_first(key, run), heads_first(value, run), 0.0, plan->causal);
      heads_first(out, run).copy_(part);
      heads_first_rows(lse, run).copy_(part_lse);
    });
    for_each_piece(static_cast<std::int64_t>(plan->groups.size()), [&](std::int64_t i) {
      const PrefixGroup& group = plan->groups[i];
      const AttentionRun prefix{group.start, group.length, 1};
      for (const AttentionRun& rows : group.queries) {
        const auto [part, part_lse] = at::_scaled_dot_product_flash_attention_for_cpu(
            heads_first(query, rows), heads_first(key, prefix), heads_first(value, prefix));
        AT_DISPATCH_FLOATING_TYPES_AND2(
            at::kHalf, at::kBFloat16, query.scalar_type(), "merge_attention",
            [&, &rest = part, &rest_lse = part_lse] { merge_rows<scalar_t>(rest, rest_lse, rows, out, lse); });
      }
    });
    context->save_for_backward({query, key, value, out, lse});
    context->saved_data["plan"] =
        c10::IValue::make_capsule(c10::intrusive_ptr<torch::CustomClassHolder>(c10::make_intrusive<PlanHolder>(plan)));
    return out;
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
