#pragma once

// Shape letters: N rows (any leading shape), D width, E width going out, V vocabulary.

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "thinkvg/nn/adapter.h"

namespace thinkvg::nn {

// The layers below hold their parameters under the names that published checkpoints use ("weight", "bias"); their
// values are uninitialised until a checkpoint or models::create fills them.

// y = x W^T + b, plus what the adapter adds. weight [E, D], bias [E].
class Linear final : public torch::nn::Module {
 public:
  Linear(std::int64_t in, std::int64_t out, bool with_bias);
  // [N, D] -> [N, E], in the weight's dtype.
  at::Tensor forward(const at::Tensor& input) const;
  // residual + forward(input), where that saves a pass over memory in one go. residual [N, E].
  at::Tensor forward_onto(const at::Tensor& input, const at::Tensor& residual) const;

  at::Tensor weight;
  at::Tensor bias;  // undefined without one
  // Not a parameter of this layer: models::Adapters owns it. Null where there is none.
  std::shared_ptr<const LowRankAdapter> adapter;
};

// forward() of several layers with the same input, in their order; decoding steps compute them in one go.
std::vector<at::Tensor> forward_together(const at::Tensor& input, std::initializer_list<const Linear*> layers);

// weight [V, D].
class Embedding final : public torch::nn::Module {
 public:
  Embedding(std::int64_t num_rows, std::int64_t width);
  // ids [N] int64 -> [N, D].
  at::Tensor forward(const at::Tensor& ids) const;

  at::Tensor weight;
};

// x / sqrt(mean(x^2) + eps) * weight over the last axis (Zhang and Sennrich, 2019), computed in fp32 or better.
class RmsNorm final : public torch::nn::Module {
 public:
  RmsNorm(std::int64_t width, double eps);
  at::Tensor forward(const at::Tensor& input) const;

  at::Tensor weight;  // [D]

 private:
  double eps_;
};

// down(silu(gate(x)) * up(x)).
class GatedMlp final : public torch::nn::Module {
 public:
  GatedMlp(std::int64_t width, std::int64_t inner_width, bool with_bias);
  // [N, D] -> [N, D].
  at::Tensor forward(const at::Tensor& input) const;
  // residual + forward(input), where that saves a pass over memory in one go. residual [N, D].
  at::Tensor forward_onto(const at::Tensor& input, const at::Tensor& residual) const;

 private:
  at::Tensor inner(const at::Tensor& input) const;

  std::shared_ptr<Linear> gate_proj_;
  std::shared_ptr<Linear> up_proj_;
  std::shared_ptr<Linear> down_proj_;
};

// A module that only names its children "0", "1", ...
class Children final : public torch::nn::Module {
 public:
  template <class Child>
  std::shared_ptr<Child> add(std::int64_t index, std::shared_ptr<Child> child) {
    return register_module(std::to_string(index), std::move(child));
  }
};

}  // namespace thinkvg::nn
