#include "thinkvg/train/optimizer.h"

#include <cmath>
#include <numbers>

#include "thinkvg/core/error.h"

namespace thinkvg::train {

void OptimizerOptions::check() const {
  if (!(lr > 0)) throw_invalid("optimizer.lr must be above 0, but is {}", lr);
  if (schedule != "constant" && schedule != "linear" && schedule != "cosine")
    throw_invalid("optimizer.schedule must be constant, linear or cosine, but is '{}'", schedule);
  if (!(warmup_ratio >= 0 && warmup_ratio <= 1))
    throw_invalid("optimizer.warmup_ratio must be in [0, 1], but is {}", warmup_ratio);
  if (!(grad_clip >= 0)) throw_invalid("optimizer.grad_clip must be 0 (off) or more, but is {}", grad_clip);
}

double learning_rate(const OptimizerOptions& options, std::int64_t step, std::int64_t num_steps) {
  const auto warmup = static_cast<std::int64_t>(std::ceil(options.warmup_ratio * static_cast<double>(num_steps)));
  if (step < warmup) return options.lr * static_cast<double>(step + 1) / static_cast<double>(warmup);
  if (options.schedule == "constant") return options.lr;
  const double progress =
      static_cast<double>(step - warmup) / static_cast<double>(std::max<std::int64_t>(1, num_steps - warmup));
  const double shape =
      options.schedule == "linear" ? 1.0 - progress : 0.5 * (1.0 + std::cos(std::numbers::pi * progress));
  return options.lr * (options.min_lr_ratio + (1.0 - options.min_lr_ratio) * shape);
}

AdamW::AdamW(const models::NamedTensors& parameters, const OptimizerOptions& options) : options_(options) {
  options.check();
  groups_.resize(2);
  groups_[0].weight_decay = options.weight_decay;
  for (const auto& [name, parameter] : parameters) {
    Group& group = groups_[parameter.dim() >= 2 ? 0 : 1];
    group.names.push_back(name);
    group.parameters.push_back(parameter);
    group.first.push_back(at::zeros_like(parameter));
    group.second.push_back(at::zeros_like(parameter));
    group.steps.push_back(at::zeros({}, parameter.options().dtype(at::kFloat)));
  }
}

double AdamW::step(double lr) {
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> all;
  for (const Group& group : groups_)
    for (const at::Tensor& parameter : group.parameters)
      if (parameter.grad().defined()) all.push_back(parameter.grad());
  if (all.empty()) return 0;
  const double norm = at::stack(at::_foreach_norm(all)).norm().item<double>();
  if (!std::isfinite(norm)) {
    zero_grad();
    return norm;
  }
  if (options_.grad_clip > 0 && norm > options_.grad_clip) at::_foreach_mul_(all, options_.grad_clip / (norm + 1e-6));
  for (Group& group : groups_) {
    std::vector<at::Tensor> parameters, grads, first, second, steps;
    for (std::size_t i = 0; i < group.parameters.size(); ++i) {
      const at::Tensor grad = group.parameters[i].grad();
      if (!grad.defined()) continue;
      parameters.push_back(group.parameters[i].detach());
      grads.push_back(grad);
      first.push_back(group.first[i]);
      second.push_back(group.second[i]);
      steps.push_back(group.steps[i]);
    }
    if (parameters.empty()) continue;
    at::_foreach_add_(steps, 1);
    at::_fused_adamw_(parameters, grads, first, second, {}, steps, lr, options_.beta1, options_.beta2,
                      group.weight_decay, options_.eps, false, false);
  }
  zero_grad();
  return norm;
}

void AdamW::zero_grad() {
  for (Group& group : groups_)
    for (at::Tensor& parameter : group.parameters) parameter.mutable_grad() = at::Tensor();
}

models::NamedTensors AdamW::state() const {
  models::NamedTensors state;
  for (const Group& group : groups_) {
    for (std::size_t i = 0; i < group.names.size(); ++i) {
      state.emplace_back(group.names[i] + ".first", group.first[i]);
      state.emplace_back(group.names[i] + ".second", group.second[i]);
      state.emplace_back(group.names[i] + ".step", group.steps[i]);
    }
  }
  return state;
}

void AdamW::load_state(const std::map<std::string, at::Tensor>& state) {
  const at::NoGradGuard no_grad;
  const auto take = [&](const std::string& name, at::Tensor& into) {
    const auto found = state.find(name);
    if (found == state.end()) throw_failure("the optimizer state has no tensor '{}'", name);
    if (found->second.sizes() != into.sizes())
      throw_failure("the optimizer state's '{}' has {} numbers, but {} are expected", name, found->second.numel(),
                    into.numel());
    into.copy_(found->second);
  };
  for (Group& group : groups_) {
    for (std::size_t i = 0; i < group.names.size(); ++i) {
      take(group.names[i] + ".first", group.first[i]);
      take(group.names[i] + ".second", group.second[i]);
      take(group.names[i] + ".step", group.steps[i]);
    }
  }
}

}  // namespace thinkvg::train
