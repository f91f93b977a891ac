#include "thinkvg/rl/policy_loss.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "thinkvg/core/error.h"

namespace thinkvg::rl {
namespace {

// rho of each token, [N].
at::Tensor importance_ratio(const PolicyLossInput& input, RatioLevel level) {
  const at::Tensor& lp = input.log_probs;
  const at::Tensor old = input.old_log_probs.defined() ? input.old_log_probs : lp.detach();
  if (level == RatioLevel::token) return (lp - old).exp();
  // A completion's tokens share ratio, advantage and weight, so the gradient through their mean, summed over them, is
  // the one that each token gets from its own log-probability alone (GSPO-token of the paper).
  const at::Tensor sums = at::segment_reduce((lp - old).detach(), "sum", input.lengths);
  const at::Tensor means = sums / input.lengths.clamp_min(1);
  return (means.index_select(0, input.sequence) + (lp - lp.detach())).exp();
}

// rho of each token's completion, with its gradient, [N].
at::Tensor sequence_ratio(const PolicyLossInput& input) {
  const at::Tensor& lp = input.log_probs;
  const at::Tensor old = input.old_log_probs.defined() ? input.old_log_probs : lp.detach();
  const at::Tensor sums =
      at::zeros({input.lengths.size(0)}, lp.options().requires_grad(false)).index_add(0, input.sequence, lp - old);
  return (sums / input.lengths.clamp_min(1)).index_select(0, input.sequence).exp();
}

// The loss of each token without the KL term, [N].
at::Tensor policy_token_loss(const at::Tensor& ratio, const at::Tensor& advantage, const at::Tensor& lp,
                             const PolicyLossOptions& options) {
  if (options.type == LossType::cispo) return -ratio.detach().clamp_max(options.epsilon_high) * advantage * lp;
  if (options.type == LossType::sapo) {
    if (options.sapo_temperature_pos <= 0 || options.sapo_temperature_neg <= 0)
      throw_invalid("sapo temperatures must be above 0, but are {} and {}", options.sapo_temperature_pos,
                    options.sapo_temperature_neg);
    const at::Tensor tau = at::full_like(advantage, options.sapo_temperature_neg)
                               .masked_fill_(advantage.gt(0), options.sapo_temperature_pos);
    return -4 / tau * (tau * (ratio - 1)).sigmoid() * advantage;
  }
  const at::Tensor bounded = options.delta > 0 ? ratio.clamp_max(options.delta) : ratio;
  const at::Tensor clipped = ratio.clamp(1 - options.epsilon_low, 1 + options.epsilon_high);
  return -at::min(bounded * advantage, clipped * advantage);
}

// 1 for the tokens of completions that stay, [N].
at::Tensor off_policy_mask(const PolicyLossInput& input, const at::Tensor& advantage,
                           const PolicyLossOptions& options) {
  const at::Tensor lp = input.log_probs.detach();
  const at::Tensor old = input.old_log_probs.defined() ? input.old_log_probs : lp;
  const at::Tensor rollout = input.rollout_log_probs.defined() ? input.rollout_log_probs : old;
  const at::Tensor sums = at::segment_reduce((rollout - lp).to(lp.scalar_type()), "sum", input.lengths);
  const at::Tensor drift = (sums / input.lengths.clamp_min(1)).index_select(0, input.sequence);
  return advantage.ge(0).logical_or(drift.le(options.off_policy_threshold)).to(lp.scalar_type());
}

at::Tensor aggregate(const at::Tensor& token_loss, const PolicyLossInput& input, const PolicyLossOptions& options) {
  const auto total_completions = static_cast<double>(input.total_completions);
  switch (options.type) {
    case LossType::grpo:
    case LossType::sapo: {
      const at::Tensor weights = input.lengths.clamp_min(1).to(token_loss.scalar_type()).reciprocal();
      return (token_loss * weights.index_select(0, input.sequence)).sum() / total_completions;
    }
    case LossType::bnpo:
      return token_loss.sum() / static_cast<double>(std::max<std::int64_t>(1, token_loss.numel())) /
             static_cast<double>(input.num_micro_batches);
    case LossType::dr_grpo:
      if (options.max_completion_length < 1)
        throw_invalid("dr_grpo needs max_completion_length, but it is {}", options.max_completion_length);
      return token_loss.sum() / (total_completions * static_cast<double>(options.max_completion_length));
    case LossType::dapo:
    case LossType::cispo:
      return token_loss.sum() / static_cast<double>(std::max<std::int64_t>(1, input.total_tokens));
    case LossType::luspo:
      return token_loss.sum() / total_completions;
  }
  return {};
}

}  // namespace

LossType parse_loss_type(std::string_view name) {
  for (const LossType type : {LossType::grpo, LossType::bnpo, LossType::dr_grpo, LossType::dapo, LossType::luspo,
                              LossType::cispo, LossType::sapo})
    if (loss_type_name(type) == name) return type;
  throw_invalid("loss type must be grpo, bnpo, dr_grpo, dapo, luspo, cispo or sapo, but is '{}'", name);
}

std::string loss_type_name(LossType type) {
  switch (type) {
    case LossType::grpo:
      return "grpo";
    case LossType::bnpo:
      return "bnpo";
    case LossType::dr_grpo:
      return "dr_grpo";
    case LossType::dapo:
      return "dapo";
    case LossType::luspo:
      return "luspo";
    case LossType::cispo:
      return "cispo";
    case LossType::sapo:
      return "sapo";
  }
  return {};
}

RatioLevel parse_ratio_level(std::string_view name) {
  if (name == "token") return RatioLevel::token;
  if (name == "sequence") return RatioLevel::sequence;
  throw_invalid("importance sampling level must be token or sequence, but is '{}'", name);
}

KlEstimator parse_kl_estimator(std::string_view name) {
  if (name == "k1") return KlEstimator::k1;
  if (name == "k2") return KlEstimator::k2;
  if (name == "k3") return KlEstimator::k3;
  throw_invalid("kl estimator must be k1, k2 or k3, but is '{}'", name);
}

at::Tensor kl_estimate(const at::Tensor& log_probs, const at::Tensor& ref_log_probs, KlEstimator estimator) {
  const at::Tensor difference = log_probs - ref_log_probs;
  if (estimator == KlEstimator::k1) return difference;
  if (estimator == KlEstimator::k2) return difference.square() / 2;
  return difference.neg().exp() + difference - 1;
}

RolloutCorrection parse_rollout_correction(std::string_view name) {
  if (name == "none") return RolloutCorrection::none;
  if (name == "token_truncate") return RolloutCorrection::token_truncate;
  if (name == "token_mask") return RolloutCorrection::token_mask;
  if (name == "sequence_truncate") return RolloutCorrection::sequence_truncate;
  if (name == "sequence_mask") return RolloutCorrection::sequence_mask;
  throw_invalid(
      "rollout correction must be none, token_truncate, token_mask, sequence_truncate or sequence_mask, but is '{}'",
      name);
}

at::Tensor rollout_correction(const at::Tensor& old_log_probs, const at::Tensor& rollout_log_probs,
                              const at::Tensor& sequence, const at::Tensor& lengths,
                              const RolloutCorrectionOptions& options) {
  if (!(options.min >= 0 && options.min <= options.max))
    throw_invalid("rollout correction needs 0 <= min <= max, but they are {} and {}", options.min, options.max);
  at::Tensor difference = old_log_probs - rollout_log_probs;
  if (options.mode == RolloutCorrection::none) return at::ones_like(difference);
  const bool whole =
      options.mode == RolloutCorrection::sequence_truncate || options.mode == RolloutCorrection::sequence_mask;
  if (whole) difference = at::segment_reduce(difference, "sum", lengths).index_select(0, sequence);
  const at::Tensor ratio = difference.exp();
  if (options.mode == RolloutCorrection::token_truncate || options.mode == RolloutCorrection::sequence_truncate)
    return ratio.clamp(options.min, options.max);
  return ratio.masked_fill(ratio.lt(options.min).logical_or(ratio.gt(options.max)), 0.0);
}

at::Tensor top_entropy_tokens(const at::Tensor& entropies, double share) {
  if (!(share >= 0 && share <= 1)) throw_invalid("the share of tokens must be in [0, 1], but is {}", share);
  if (entropies.numel() == 0) return at::ones_like(entropies, entropies.options().dtype(at::kBool));
  // By hand in place of at::quantile, which refuses more than 16 million numbers.
  const at::Tensor sorted = std::get<0>(entropies.to(at::kDouble).sort());
  const double place = (1 - share) * static_cast<double>(sorted.numel() - 1);
  const auto below = static_cast<std::int64_t>(std::floor(place));
  const std::int64_t above = std::min<std::int64_t>(below + 1, sorted.numel() - 1);
  const double low = sorted[below].item<double>(), high = sorted[above].item<double>();
  const double bound = low + (high - low) * (place - static_cast<double>(below));
  return entropies.to(at::kDouble).ge(bound);
}

PolicyLoss policy_loss(const PolicyLossInput& input, const PolicyLossOptions& options) {
  if (options.beta != 0 && !input.ref_log_probs.defined())
    throw_invalid("beta is {}, but no reference log-probabilities were given", options.beta);
  const at::Tensor& lp = input.log_probs;
  const at::Tensor advantage = input.advantages.to(lp.scalar_type()).index_select(0, input.sequence);
  const at::Tensor ratio = importance_ratio(input, options.ratio_level);
  at::Tensor token_loss = policy_token_loss(ratio, advantage, lp, options);
  if (options.off_policy_threshold > 0) token_loss = token_loss * off_policy_mask(input, advantage, options);
  if (input.token_mask.defined()) token_loss = token_loss * input.token_mask;
  if (input.token_weights.defined()) token_loss = token_loss * input.token_weights.to(token_loss.scalar_type());

  PolicyLoss result;
  if (options.beta != 0) {
    at::Tensor kl = kl_estimate(lp, input.ref_log_probs, options.kl);
    // The KL of a completion's tokens differ: here the gradient must go through the whole completion's ratio.
    if (options.bias_corrected_kl) kl = kl * (options.ratio_level == RatioLevel::token ? ratio : sequence_ratio(input));
    token_loss = token_loss + options.beta * kl;
    result.kl_sum = kl.detach().sum().item<double>();
  }
  if (options.type != LossType::sapo) {
    const at::Tensor r = ratio.detach();
    const bool cispo = options.type == LossType::cispo;
    const double upper = cispo ? options.epsilon_high : 1 + options.epsilon_high;
    result.clipped_high = r.gt(upper).logical_and(advantage.gt(0)).sum().item<double>();
    if (!cispo) result.clipped_low = r.lt(1 - options.epsilon_low).logical_and(advantage.lt(0)).sum().item<double>();
  }
  result.loss = aggregate(token_loss, input, options);
  if (options.entropy_coef != 0) {
    if (!input.entropy.defined())
      throw_invalid("entropy_coef is {}, but no entropies were given", options.entropy_coef);
    const bool masked = input.token_mask.defined();
    const at::Tensor entropy = masked ? input.entropy * input.token_mask : input.entropy;
    const std::int64_t total = masked ? input.total_masked_tokens : input.total_tokens;
    result.loss =
        result.loss - options.entropy_coef * entropy.sum() / static_cast<double>(std::max<std::int64_t>(1, total));
  }
  return result;
}

}  // namespace thinkvg::rl
