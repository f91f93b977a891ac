#include "thinkvg/rl/policy_loss.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "thinkvg/core/error.h"

namespace thinkvg::rl {
namespace {

constexpr double kEpsilon = 1e-4;

double mean(const double* values, std::int64_t count) {
  double sum = 0;
  for (std::int64_t i = 0; i < count; ++i) sum += values[i];
  return sum / static_cast<double>(count);
}

double sample_deviation(const double* values, std::int64_t count) {
  if (count < 2) return 0;
  const double center = mean(values, count);
  double sum = 0;
  for (std::int64_t i = 0; i < count; ++i) sum += (values[i] - center) * (values[i] - center);
  return std::sqrt(sum / static_cast<double>(count - 1));
}

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

AdvantageScaling parse_advantage_scaling(std::string_view name) {
  if (name == "group") return AdvantageScaling::group;
  if (name == "batch") return AdvantageScaling::batch;
  if (name == "none") return AdvantageScaling::none;
  throw_invalid("advantage scaling must be group, batch or none, but is '{}'", name);
}

Advantages group_advantages(const std::vector<double>& rewards, std::int64_t group_size, AdvantageScaling scaling) {
  const auto count = static_cast<std::int64_t>(rewards.size());
  if (group_size < 1 || count % group_size != 0)
    throw_invalid("{} rewards cannot be split into groups of {}", count, group_size);
  const double batch_deviation = sample_deviation(rewards.data(), count);
  Advantages result;
  for (std::int64_t begin = 0; begin < count; begin += group_size) {
    const double* group = rewards.data() + begin;
    const auto [low, high] = std::minmax_element(group, group + group_size);
    const bool zero = *high - *low == 0;
    result.zero_signal.push_back(zero);
    const double center = mean(group, group_size);
    double scale = 1;
    if (scaling == AdvantageScaling::group) scale = 1 / (sample_deviation(group, group_size) + kEpsilon);
    if (scaling == AdvantageScaling::batch) scale = 1 / (batch_deviation + kEpsilon);
    for (std::int64_t i = 0; i < group_size; ++i) result.values.push_back(zero ? 0 : (group[i] - center) * scale);
  }
  return result;
}

PolicyLoss policy_loss(const PolicyLossInput& input, const PolicyLossOptions& options) {
  if (options.beta != 0 && !input.ref_log_probs.defined())
    throw_invalid("beta is {}, but no reference log-probabilities were given", options.beta);
  const at::Tensor& lp = input.log_probs;
  const at::Tensor advantage = input.advantages.to(lp.scalar_type()).index_select(0, input.sequence);
  const at::Tensor ratio = importance_ratio(input, options.ratio_level);
  at::Tensor token_loss = policy_token_loss(ratio, advantage, lp, options);

  PolicyLoss result;
  if (options.beta != 0) {
    const at::Tensor difference = input.ref_log_probs - lp;
    const at::Tensor kl = difference.exp() - difference - 1;
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
  return result;
}

}  // namespace thinkvg::rl
