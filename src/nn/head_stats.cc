#include "thinkvg/nn/head_stats.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <spdlog/fmt/ranges.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <limits>

#include "nn/cpu/stepped_products.h"
#include "thinkvg/core/error.h"
#include "thinkvg/nn/linear.h"

namespace thinkvg::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

constexpr std::int64_t kLogitsAtATime = std::int64_t{1} << 26;
constexpr std::int64_t kRowsAtATime = 2048;

at::Tensor chunk_logits(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& banned) {
  at::Tensor logits = nn::linear(hidden, weight);
  if (banned.defined()) logits.index_fill_(1, banned, -std::numeric_limits<float>::infinity());
  return logits;
}

class HeadStatsFunction : public torch::autograd::Function<HeadStatsFunction> {
 public:
  static tensor_list forward(AutogradContext* context, const at::Tensor& hidden, const at::Tensor& weight,
                             const at::Tensor& targets, const std::optional<at::Tensor>& banned_ids, double temperature,
                             std::int64_t chunk_rows) {
    const at::Tensor banned = banned_ids.value_or(at::Tensor());
    const auto options = hidden.options().dtype(at::kFloat).requires_grad(false);
    const std::int64_t num_rows = hidden.size(0);
    const at::Tensor logprob = at::empty({num_rows}, options), logsumexp = at::empty({num_rows}, options),
                     entropy = at::empty({num_rows}, options);
    for (std::int64_t begin = 0; begin < num_rows; begin += chunk_rows) {
      const std::int64_t rows = std::min(chunk_rows, num_rows - begin);
      const at::Tensor logits = chunk_logits(hidden.narrow(0, begin, rows), weight, banned);
      const TokenStats stats = token_stats(logits, targets.narrow(0, begin, rows), temperature);
      logprob.narrow(0, begin, rows).copy_(stats.logprob);
      logsumexp.narrow(0, begin, rows).copy_(stats.logsumexp);
      entropy.narrow(0, begin, rows).copy_(stats.entropy);
    }
    context->save_for_backward({hidden, weight, targets, banned, logprob, logsumexp, entropy});
    context->saved_data["temperature"] = temperature;
    context->saved_data["chunk_rows"] = chunk_rows;
    context->set_materialize_grads(false);
    return {logprob, logsumexp, entropy};
  }

  static tensor_list backward(AutogradContext* context, const tensor_list& gradients) {
    const tensor_list saved = context->get_saved_variables();
    const at::Tensor &hidden = saved[0], &weight = saved[1], &targets = saved[2], &banned = saved[3];
    const std::int64_t chunk_rows = context->saved_data["chunk_rows"].toInt();
    const bool of_weight = context->needs_input_grad(1);
    const at::NoGradGuard no_gradient;
    const at::Tensor hidden_gradient = at::empty_like(hidden);
    at::Tensor weight_gradient;
    // A bf16 head is summed over the chunks in fp32.
    if (of_weight) weight_gradient = at::zeros(weight.sizes(), weight.options().dtype(at::kFloat));
    for (std::int64_t begin = 0; begin < hidden.size(0); begin += chunk_rows) {
      const std::int64_t rows = std::min(chunk_rows, hidden.size(0) - begin);
      const auto part = [&](const at::Tensor& tensor) {
        return tensor.defined() ? tensor.narrow(0, begin, rows) : tensor;
      };
      const TokenStats stats{part(saved[4]), part(saved[5]), part(saved[6]),
                             context->saved_data["temperature"].toDouble()};
      const at::Tensor some = part(hidden);
      const at::Tensor gradient = token_stats_gradient(chunk_logits(some, weight, banned), part(targets), stats,
                                                       {part(gradients[0]), part(gradients[1]), part(gradients[2])});
      const bool stepped = weight.is_cpu() && weight.scalar_type() == at::kBFloat16;
      hidden_gradient.narrow(0, begin, rows)
          .copy_(stepped ? stepped_product(gradient, weight) : gradient.matmul(weight));
      if (!of_weight) continue;
      if (weight.scalar_type() == at::kFloat)
        weight_gradient.addmm_(gradient.t(), some);
      else
        weight_gradient.add_(stepped ? stepped_sum(gradient, some) : gradient.t().matmul(some));
    }
    if (of_weight) weight_gradient = weight_gradient.to(weight.scalar_type());
    return {hidden_gradient, weight_gradient, at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

TokenStats head_token_stats(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& targets,
                            const HeadOptions& options) {
  if (hidden.dim() != 2 || weight.dim() != 2 || hidden.size(1) != weight.size(1) ||
      hidden.scalar_type() != weight.scalar_type())
    throw_invalid("head_token_stats expects hidden [N, D] and weight [V, D] of one type, got {} [{}] and {} [{}]",
                  c10::toString(hidden.scalar_type()), fmt::join(hidden.sizes(), ", "),
                  c10::toString(weight.scalar_type()), fmt::join(weight.sizes(), ", "));
  std::int64_t chunk_rows = options.chunk_rows;
  if (chunk_rows <= 0)
    chunk_rows = std::clamp<std::int64_t>(kLogitsAtATime / std::max<std::int64_t>(1, weight.size(0)), 64, kRowsAtATime);
  const tensor_list results = HeadStatsFunction::apply(
      hidden, weight, targets, options.banned.defined() ? std::optional<at::Tensor>(options.banned) : std::nullopt,
      options.temperature, chunk_rows);
  return {results[0], results[1], results[2], options.temperature};
}

}  // namespace thinkvg::nn
