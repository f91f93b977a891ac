#include "thinkvg/rl/policy_loss.h"

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

}  // namespace

LossType parse_loss_type(std::string_view name) {
  for (const LossType type : {LossType::grpo, LossType::bnpo, LossType::dr_grpo, LossType::dapo})
    if (loss_type_name(type) == name) return type;
  throw_invalid("loss type must be grpo, bnpo, dr_grpo or dapo, but is '{}'", name);
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
  }
  return {};
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
  const at::Tensor old = input.old_log_probs.defined() ? input.old_log_probs : lp.detach();
  const at::Tensor advantage = input.advantages.to(lp.scalar_type()).index_select(0, input.sequence);
  const at::Tensor ratio = (lp - old).exp();
  const at::Tensor bounded = options.delta > 0 ? ratio.clamp_max(options.delta) : ratio;
  const at::Tensor clipped = ratio.clamp(1 - options.epsilon_low, 1 + options.epsilon_high);
  at::Tensor token_loss = -at::min(bounded * advantage, clipped * advantage);

  PolicyLoss result;
  if (options.beta != 0) {
    const at::Tensor difference = input.ref_log_probs - lp;
    const at::Tensor kl = difference.exp() - difference - 1;
    token_loss = token_loss + options.beta * kl;
    result.kl_sum = kl.detach().sum().item<double>();
  }
  {
    const at::Tensor r = ratio.detach();
    result.clipped_low = r.lt(1 - options.epsilon_low).logical_and(advantage.lt(0)).sum().item<double>();
    result.clipped_high = r.gt(1 + options.epsilon_high).logical_and(advantage.gt(0)).sum().item<double>();
  }
  const auto total_completions = static_cast<double>(input.total_completions);
  switch (options.type) {
    case LossType::grpo: {
      const at::Tensor weights = input.lengths.clamp_min(1).to(lp.scalar_type()).reciprocal();
      result.loss = (token_loss * weights.index_select(0, input.sequence)).sum() / total_completions;
      break;
    }
    case LossType::bnpo:
      result.loss = token_loss.sum() / static_cast<double>(std::max<std::int64_t>(1, token_loss.numel())) /
                    static_cast<double>(input.num_micro_batches);
      break;
    case LossType::dr_grpo:
      if (options.max_completion_length < 1)
        throw_invalid("dr_grpo needs max_completion_length, but it is {}", options.max_completion_length);
      result.loss = token_loss.sum() / (total_completions * static_cast<double>(options.max_completion_length));
      break;
    case LossType::dapo:
      result.loss = token_loss.sum() / static_cast<double>(std::max<std::int64_t>(1, input.total_tokens));
      break;
  }
  return result;
}

}  // namespace thinkvg::rl
