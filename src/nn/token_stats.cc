#include "thinkvg/nn/token_stats.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <limits>

#include "nn/cpu/token_stats_kernel.h"
#include "nn/cuda_kernels.h"
#include "thinkvg/core/error.h"

namespace thinkvg::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

std::string describe(const at::Tensor& tensor) {
  if (!tensor.defined()) return "an undefined tensor";
  return fmt::format("{} [{}] on {}", c10::toString(tensor.scalar_type()), fmt::join(tensor.sizes(), ", "),
                     tensor.device().str());
}

void check_arguments(const at::Tensor& logits, const at::Tensor& targets, double temperature) {
  if (!logits.defined() || logits.dim() != 2 || logits.size(1) == 0 ||
      (logits.scalar_type() != at::kFloat && logits.scalar_type() != at::kBFloat16))
    throw_invalid("token_stats expects logits of shape [tokens, vocabulary] in float32 or bfloat16, got {}",
                  describe(logits));
  if (!targets.defined() || targets.dim() != 1 || targets.size(0) != logits.size(0) ||
      targets.scalar_type() != at::kLong || targets.device() != logits.device())
    throw_invalid("token_stats expects int64 targets of shape [{}] on {}, got {}", logits.size(0),
                  logits.device().str(), describe(targets));
  if (!(temperature > 0)) throw_invalid("token_stats expects a temperature above 0, got {}", temperature);
}

void check_targets(const at::Tensor& targets, std::int64_t num_classes) {
  const std::int64_t* values = targets.const_data_ptr<std::int64_t>();
  for (std::int64_t i = 0; i < targets.size(0); ++i)
    if (values[i] < 0 || values[i] >= num_classes)
      throw_invalid("token_stats expects targets from 0 to {}, but number {} is {}", num_classes - 1, i, values[i]);
}

at::Tensor dense_rows(const at::Tensor& logits) { return logits.stride(1) == 1 ? logits : logits.contiguous(); }

// Rows that one thread should take at least.
std::int64_t row_grain(std::int64_t num_classes) {
  return std::max<std::int64_t>(1, at::internal::GRAIN_SIZE / num_classes);
}

cpu::LogitRows logit_rows(const at::Tensor& logits, const at::Tensor& targets, double temperature) {
  return {logits.const_data_ptr(), logits.scalar_type() == at::kBFloat16,  logits.size(1),
          logits.stride(0),        targets.const_data_ptr<std::int64_t>(), static_cast<float>(1.0 / temperature)};
}

TokenStats compute_by_operators(const at::Tensor& logits, const at::Tensor& targets, double temperature) {
  const at::Tensor scaled = logits.to(at::kFloat) / temperature;
  const at::Tensor logsumexp = scaled.logsumexp(1), shifted = scaled - logsumexp.unsqueeze(1);
  // 0 log 0 = 0
  const at::Tensor entropy = -(shifted.exp() * shifted.clamp_min(std::numeric_limits<float>::lowest())).sum(1);
  return {shifted.gather(1, targets.unsqueeze(1)).squeeze(1), logsumexp, entropy, temperature};
}

TokenStats compute(const at::Tensor& given_logits, const at::Tensor& given_targets, double temperature) {
  const at::Tensor logits = dense_rows(given_logits), targets = given_targets.contiguous();
  if (!logits.is_cpu() && !logits.is_cuda()) return compute_by_operators(logits, targets, temperature);
  const std::int64_t num_rows = logits.size(0);
  const auto options = logits.options().dtype(at::kFloat);
  TokenStats stats{at::empty({num_rows}, options), at::empty({num_rows}, options), at::empty({num_rows}, options),
                   temperature};
  if (logits.is_cuda()) {
    cuda_kernels().token_stats({logits, targets, temperature, stats.logprob, stats.logsumexp, stats.entropy});
    return stats;
  }
  check_targets(targets, logits.size(1));
  const cpu::LogitRows rows = logit_rows(logits, targets, temperature);
  const cpu::StatRows out{stats.logprob.mutable_data_ptr<float>(), stats.logsumexp.mutable_data_ptr<float>(),
                          stats.entropy.mutable_data_ptr<float>()};
  at::parallel_for(0, num_rows, row_grain(logits.size(1)),
                   [&](std::int64_t begin, std::int64_t end) { cpu::token_stats(rows, begin, end, out); });
  return stats;
}

at::Tensor weight_or_zeros(const at::Tensor& weight, const at::Tensor& like) {
  if (!weight.defined()) return at::zeros_like(like);
  if (weight.sizes() != like.sizes() || weight.device() != like.device())
    throw_invalid("token_stats_gradient expects weights like {}, got {}", describe(like), describe(weight));
  return weight.to(at::kFloat).contiguous();
}

class TokenStatsFunction : public torch::autograd::Function<TokenStatsFunction> {
 public:
  static tensor_list forward(AutogradContext* context, const at::Tensor& logits, const at::Tensor& targets,
                             double temperature) {
    const TokenStats stats = compute(logits, targets, temperature);
    context->save_for_backward({logits, targets, stats.logprob, stats.logsumexp, stats.entropy});
    context->saved_data["temperature"] = temperature;
    context->set_materialize_grads(false);
    return {stats.logprob, stats.logsumexp, stats.entropy};
  }

  static tensor_list backward(AutogradContext* context, tensor_list gradients) {
    const auto saved = context->get_saved_variables();
    const TokenStats stats{saved[2], saved[3], saved[4], context->saved_data["temperature"].toDouble()};
    return {token_stats_gradient(saved[0], saved[1], stats, {gradients[0], gradients[1], gradients[2]}), at::Tensor(),
            at::Tensor()};
  }
};

}  // namespace

TokenStats token_stats(const at::Tensor& logits, const at::Tensor& targets, double temperature) {
  check_arguments(logits, targets, temperature);
  const tensor_list results = TokenStatsFunction::apply(logits, targets, temperature);
  return {results[0], results[1], results[2], temperature};
}

at::Tensor token_stats_gradient(const at::Tensor& logits, const at::Tensor& targets, const TokenStats& stats,
                                const TokenStatsWeights& weights) {
  check_arguments(logits, targets, stats.temperature);
  const at::NoGradGuard no_gradient;
  const at::Tensor dense = dense_rows(logits.detach()), ids = targets.contiguous();
  const at::Tensor logsumexp = stats.logsumexp.detach().contiguous();
  const at::Tensor of_logprob = weight_or_zeros(weights.logprob, logsumexp);
  const at::Tensor of_entropy = weight_or_zeros(weights.entropy, logsumexp);
  // d logprob / d z_j = [j = target] - p_j,  d logsumexp / d z_j = p_j,  d entropy / d z_j = -p_j (log p_j + entropy),
  // with z = logits / temperature.
  at::Tensor base = weight_or_zeros(weights.logsumexp, logsumexp) - of_logprob;
  if (weights.entropy.defined()) base = base - of_entropy * stats.entropy.detach();
  const at::Tensor slope = -of_entropy;
  if (!dense.is_cpu() && !dense.is_cuda()) {
    const at::Tensor probability = (dense.to(at::kFloat) / stats.temperature - logsumexp.unsqueeze(1)).exp();
    const at::Tensor log_probability = probability.clamp_min(std::numeric_limits<float>::min()).log();
    at::Tensor result = probability * (base.unsqueeze(1) + slope.unsqueeze(1) * log_probability);
    result.scatter_add_(1, ids.unsqueeze(1), of_logprob.unsqueeze(1));
    return (result / stats.temperature).to(dense.scalar_type());
  }
  at::Tensor gradient = at::empty(dense.sizes(), dense.options());
  if (dense.is_cuda()) {
    cuda_kernels().token_stats_gradient({dense, ids, stats.temperature, logsumexp, base, slope, of_logprob, gradient});
    return gradient;
  }
  check_targets(ids, dense.size(1));
  const cpu::LogitRows rows = logit_rows(dense, ids, stats.temperature);
  const cpu::GradientRows out{logsumexp.const_data_ptr<float>(), base.const_data_ptr<float>(),
                              slope.const_data_ptr<float>(), of_logprob.const_data_ptr<float>(),
                              gradient.mutable_data_ptr()};
  at::parallel_for(0, dense.size(0), row_grain(dense.size(1)),
                   [&](std::int64_t begin, std::int64_t end) { cpu::token_stats_gradient(rows, begin, end, out); });
  return gradient;
}

}  // namespace thinkvg::nn
