#pragma once

#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <cstddef>
#include <functional>
#include <memory>
#include <utility>

#include "thinkvg/models/safetensors.h"

namespace thinkvg::train {

// While one lives, each parameter's gradient is handed on as soon as a backward pass has it, and not kept.
class GradientHooks {
 public:
  using Ready = std::function<void(std::size_t place, at::Tensor gradient)>;
  // `parameters` must outlive it.
  GradientHooks(const models::NamedTensors& parameters, Ready ready)
      : parameters_(parameters), ready_(std::move(ready)) {
    for (std::size_t place = 0; place < parameters_.size(); ++place)
      torch::autograd::impl::set_post_acc_grad_hooks(parameters_[place].second, std::make_unique<Hook>(*this, place));
  }
  ~GradientHooks() {
    for (const auto& [name, parameter] : parameters_)
      torch::autograd::impl::set_post_acc_grad_hooks(parameter, nullptr);
  }
  GradientHooks(const GradientHooks&) = delete;
  GradientHooks& operator=(const GradientHooks&) = delete;

 private:
  struct Hook final : torch::autograd::PostAccumulateGradHook {
    Hook(GradientHooks& owner, std::size_t of) : hooks(owner), place(of) {}
    void operator()(const torch::autograd::Variable& parameter) override {
      at::Tensor gradient = parameter.grad();
      parameter.mutable_grad() = at::Tensor();
      hooks.ready_(place, std::move(gradient));
    }
    GradientHooks& hooks;
    std::size_t place;
  };
  const models::NamedTensors& parameters_;
  Ready ready_;
};

}  // namespace thinkvg::train
