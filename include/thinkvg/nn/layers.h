#pragma once

// Shape letters: N rows (any leading shape), D width, E width going out, V vocabulary.

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "thinkvg/nn/adapter.h"
#include "thinkvg/nn/linear.h"

namespace thinkvg::nn {

// The layers below hold their parameters under the names that published checkpoints use ("weight", "bias"); their
// values are uninitialised until a checkpoint or models::create fills them.

// While one of these lives, new parameters on this thread have their shape but no memory of their own: a model of any
// size is built at once. Each must be given its values, on the device, by set_data() before it is used.
class WithoutParameterMemory {
 public:
  explicit WithoutParameterMemory(at::Device device = at::kCPU);
  ~WithoutParameterMemory();
  WithoutParameterMemory(const WithoutParameterMemory&) = delete;
  WithoutParameterMemory& operator=(const WithoutParameterMemory&) = delete;

 private:
  std::optional<at::Device> before_;
};
// What a layer registers as a parameter: fp32, on the CPU.
at::Tensor new_parameter(at::IntArrayRef shape);

enum class Activation { silu, gelu, gelu_tanh, quick_gelu, identity };
// By the names of config.json: silu, gelu, gelu_pytorch_tanh, quick_gelu (x sigmoid(1.702 x)), linear.
std::optional<Activation> find_activation(std::string_view name);
at::Tensor activate(const at::Tensor& input, Activation activation);

// y = x W^T + b, plus what the adapter adds. weight [E, D], bias [E].
class Linear final : public torch::nn::Module {
 public:
  Linear(std::int64_t in, std::int64_t out, bool with_bias);
  // [N, D] -> [N, E], in the weight's dtype.
  at::Tensor forward(const at::Tensor& input) const;
  // residual + forward(input), where that saves a pass over memory in one go. residual [N, E].
  at::Tensor forward_onto(const at::Tensor& input, const at::Tensor& residual) const;

  // Weight and bias for nn/linear.h.
  LinearWeights weights() const { return {weight, bias, quantized.get()}; }

  at::Tensor weight;
  at::Tensor bias;  // undefined without one
  // What passes without gradient take for `weight`: models::QuantizedLanguage owns it. Null where there is none.
  std::shared_ptr<const QuantizedWeight> quantized;
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

// x / sqrt(mean(x^2) + eps) * weight over the last axis (Zhang and Sennrich, 2019), computed in fp32 or better. A
// centred one multiplies by 1 + weight instead (Gemma).
class RmsNorm final : public torch::nn::Module {
 public:
  RmsNorm(std::int64_t width, double eps, bool centred = false);
  at::Tensor forward(const at::Tensor& input) const;
  bool centred() const { return centred_; }

  at::Tensor weight;  // [D]

 private:
  double eps_;
  bool centred_;
};

// (x - mean(x)) / sqrt(var(x) + eps) * weight + bias over the last axis (Ba et al., 2016).
class LayerNorm final : public torch::nn::Module {
 public:
  LayerNorm(std::int64_t width, double eps);
  at::Tensor forward(const at::Tensor& input) const;

  at::Tensor weight;  // [D]
  at::Tensor bias;    // [D]

 private:
  double eps_;
};

// down(activation(gate(x)) * up(x)).
class GatedMlp final : public torch::nn::Module {
 public:
  GatedMlp(std::int64_t width, std::int64_t inner_width, bool with_bias, Activation activation = Activation::silu);
  // [N, D] -> [N, D].
  at::Tensor forward(const at::Tensor& input) const;
  // residual + forward(input), where that saves a pass over memory in one go. residual [N, D].
  at::Tensor forward_onto(const at::Tensor& input, const at::Tensor& residual) const;

 private:
  at::Tensor inner(const at::Tensor& input) const;

  Activation activation_;
  std::shared_ptr<Linear> gate_proj_;
  std::shared_ptr<Linear> up_proj_;
  std::shared_ptr<Linear> down_proj_;
};

// A module that only names its children: "0", "1", ... or as given.
class Children final : public torch::nn::Module {
 public:
  template <class Child>
  std::shared_ptr<Child> add(const std::string& name, std::shared_ptr<Child> child) {
    return register_module(name, std::move(child));
  }
  template <class Child>
  std::shared_ptr<Child> add(std::int64_t index, std::shared_ptr<Child> child) {
    return register_module(std::to_string(index), std::move(child));
  }
};

}  // namespace thinkvg::nn
