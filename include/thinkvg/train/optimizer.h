#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <string>
#include <vector>

#include "thinkvg/models/safetensors.h"
#include "thinkvg/train/options.h"

namespace thinkvg::train {

// Learning rate of step `step` (counted from 0) out of `num_steps`: linear warm-up to lr, then the schedule.
double learning_rate(const OptimizerOptions& options, std::int64_t step, std::int64_t num_steps);

// AdamW (Loshchilov, Hutter 2019) with bias correction as torch.optim.AdamW, over fp32 parameters, in one fused kernel.
class AdamW {
 public:
  // Weight decay applies to tensors of two or more dimensions.
  AdamW(const models::NamedTensors& parameters, const OptimizerOptions& options);

  // Clips the gradients to options.grad_clip and updates. Returns the global norm before clipping; when it is not
  // finite nothing is changed. Gradients are dropped afterwards.
  double step(double lr);
  void zero_grad();

  models::NamedTensors state() const;
  // Throws std::runtime_error when a tensor is missing or has another shape.
  void load_state(const std::map<std::string, at::Tensor>& state);

 private:
  struct Group {
    std::vector<std::string> names;
    std::vector<at::Tensor> parameters, first, second, steps;
    double weight_decay = 0;
  };
  std::vector<Group> groups_;
  OptimizerOptions options_;
};

}  // namespace thinkvg::train
