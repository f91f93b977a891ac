#include "thinkvg/train/optimizer.h"

#include <cmath>
#include <numbers>

#include "thinkvg/core/error.h"

namespace thinkvg::train {

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

AdamW::AdamW(const std::vector<ParameterGroup>& groups, const OptimizerOptions& options) : options_(options) {
  options.check();
  for (const ParameterGroup& group : groups) {
    Bucket decayed{{}, group.lr_scale, group.weight_decay}, plain{{}, group.lr_scale, 0.0};
    for (const auto& parameter : group.parameters) {
      const at::Tensor& tensor = parameter.second;
      (tensor.dim() >= 2 || group.decay_vectors ? decayed : plain).places.push_back(parameters_.size());
      const at::Tensor master = tensor.scalar_type() == at::kFloat ? tensor.detach() : tensor.detach().to(at::kFloat);
      slots_.push_back({master, at::zeros_like(master), at::zeros_like(master), at::zeros({}, master.options())});
      parameters_.push_back(parameter);
    }
    for (Bucket& bucket : {std::ref(decayed), std::ref(plain)})
      if (!bucket.places.empty()) buckets_.push_back(std::move(bucket));
  }
}

double AdamW::step(const std::vector<at::Tensor>& gradients, double lr, std::optional<double> global_norm) {
  if (gradients.size() != parameters_.size())
    throw_invalid("AdamW: {} gradients for {} parameters", gradients.size(), parameters_.size());
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> full(gradients.size()), all;  // fp32
  for (std::size_t i = 0; i < gradients.size(); ++i) {
    if (!gradients[i].defined()) continue;
    full[i] = gradients[i].to(at::kFloat);
    all.push_back(full[i]);
  }
  if (all.empty()) return global_norm.value_or(0);
  const double norm = global_norm ? *global_norm : at::stack(at::_foreach_norm(all)).norm().item<double>();
  if (!std::isfinite(norm)) return norm;
  if (options_.grad_clip > 0 && norm > options_.grad_clip) at::_foreach_mul_(all, options_.grad_clip / (norm + 1e-6));
  for (const Bucket& bucket : buckets_) {
    std::vector<at::Tensor> masters, grads, first, second, steps;
    for (const std::size_t i : bucket.places) {
      if (!full[i].defined()) continue;
      masters.push_back(slots_[i].master);
      grads.push_back(full[i]);
      first.push_back(slots_[i].first);
      second.push_back(slots_[i].second);
      steps.push_back(slots_[i].steps);
    }
    if (masters.empty()) continue;
    at::_foreach_add_(steps, 1);
    at::_fused_adamw_(masters, grads, first, second, {}, steps, lr * bucket.lr_scale, options_.beta1, options_.beta2,
                      bucket.weight_decay, options_.eps, false, false);
    for (const std::size_t i : bucket.places)
      if (full[i].defined() && parameters_[i].second.scalar_type() != at::kFloat)
        parameters_[i].second.detach().copy_(slots_[i].master);
  }
  return norm;
}

models::NamedTensors AdamW::state() const {
  models::NamedTensors state;
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    const std::string& name = parameters_[i].first;
    state.emplace_back(name + ".first", slots_[i].first);
    state.emplace_back(name + ".second", slots_[i].second);
    state.emplace_back(name + ".step", slots_[i].steps);
    if (parameters_[i].second.scalar_type() != at::kFloat) state.emplace_back(name + ".master", slots_[i].master);
  }
  return state;
}

void AdamW::load_state(const std::map<std::string, at::Tensor>& state) {
  const at::NoGradGuard no_grad;
  for (const auto& [name, into] : this->state()) {
    const auto found = state.find(name);
    if (found == state.end()) throw_failure("the optimizer state has no tensor '{}'", name);
    if (found->second.sizes() != into.sizes())
      throw_failure("the optimizer state's '{}' has {} numbers, but {} are expected", name, found->second.numel(),
                    into.numel());
    at::Tensor(into).copy_(found->second);
  }
}

}  // namespace thinkvg::train
