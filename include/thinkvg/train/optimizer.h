#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "thinkvg/models/safetensors.h"
#include "thinkvg/train/options.h"

namespace thinkvg::train {

// Learning rate of step `step` (counted from 0) out of `num_steps`: linear warm-up to lr, then the schedule.
double learning_rate(const OptimizerOptions& options, std::int64_t step, std::int64_t num_steps);

// Parameters that share a learning rate and a weight decay.
struct ParameterGroup {
  models::NamedTensors parameters;
  double lr_scale = 1.0;
  double weight_decay = 0.0;
  bool decay_vectors = false;  // weight decay holds for all of them: they are pieces of matrices
};

// AdamW (Loshchilov, Hutter 2019) with bias correction as torch.optim.AdamW, in one fused kernel. Parameters of less
// than fp32 have fp32 masters here: they are what is updated, and the parameters are rounded copies of them.
class AdamW {
 public:
  // Weight decay applies to tensors of two or more dimensions, unless a group says otherwise.
  AdamW(const std::vector<ParameterGroup>& groups, const OptimizerOptions& options);

  // gradients[i]: of the i-th parameter of the groups, counted through, in fp32 or the parameter's type; undefined
  // where there is none. Clips them, in place, to the global norm options.grad_clip and updates. Returns the global
  // norm before clipping; when it is not finite nothing is changed. `norm`: the global one, where these gradients are
  // only a part of it.
  double step(const std::vector<at::Tensor>& gradients, double lr, std::optional<double> norm = std::nullopt);

  // All parameters of the groups, in order.
  const models::NamedTensors& parameters() const { return parameters_; }
  // Moments, step counts and masters by name.
  models::NamedTensors state() const;
  // Throws std::runtime_error when a tensor is missing or has another shape.
  void load_state(const std::map<std::string, at::Tensor>& state);

 private:
  struct Slot {
    at::Tensor master;  // the parameter itself where it is fp32
    at::Tensor first, second, steps;
  };
  // Parameters that one fused call updates.
  struct Bucket {
    std::vector<std::size_t> places;  // in parameters_
    double lr_scale = 1.0;
    double weight_decay = 0.0;
  };
  models::NamedTensors parameters_;
  std::vector<Slot> slots_;
  std::vector<Bucket> buckets_;
  OptimizerOptions options_;
};

}  // namespace thinkvg::train
