#include "thinkvg/nn/layers.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/grad_mode.h>

#include "nn/cpu/layers.h"
#include "nn/inference.h"
#include "thinkvg/core/error.h"

namespace thinkvg::nn {
namespace {

thread_local std::optional<at::Device> without_memory;  // the device of what comes instead

}  // namespace

WithoutParameterMemory::WithoutParameterMemory(at::Device device) : before_(without_memory) { without_memory = device; }
WithoutParameterMemory::~WithoutParameterMemory() { without_memory = before_; }

at::Tensor new_parameter(at::IntArrayRef shape) {
  return without_memory ? at::empty({1}, *without_memory).expand(shape) : at::empty(shape);
}

std::optional<Activation> find_activation(std::string_view name) {
  if (name == "silu") return Activation::silu;
  if (name == "gelu") return Activation::gelu;
  if (name == "gelu_pytorch_tanh") return Activation::gelu_tanh;
  if (name == "quick_gelu") return Activation::quick_gelu;
  if (name == "linear") return Activation::identity;
  return std::nullopt;
}

at::Tensor activate(const at::Tensor& input, Activation activation) {
  switch (activation) {
    case Activation::silu:
      return at::silu(input);
    case Activation::gelu:
      return at::gelu(input);
    case Activation::gelu_tanh:
      return at::gelu(input, "tanh");
    case Activation::quick_gelu:
      return input * at::sigmoid(1.702 * input);
    case Activation::identity:
      break;
  }
  return input;
}

Linear::Linear(std::int64_t in, std::int64_t out, bool with_bias)
    : weight(register_parameter("weight", new_parameter({out, in}))) {
  if (with_bias) bias = register_parameter("bias", new_parameter({out}));
}

at::Tensor Linear::forward(const at::Tensor& input) const {
  const at::Tensor output = linear(input, weights());
  return adapter && adapters_on() ? output + adapter->forward(input) : output;
}

at::Tensor Linear::forward_onto(const at::Tensor& input, const at::Tensor& residual) const {
  return adapter && adapters_on() ? residual + forward(input) : linear(input, weights(), residual);
}

std::vector<at::Tensor> forward_together(const at::Tensor& input, std::initializer_list<const Linear*> layers) {
  std::vector<LinearWeights> parts;
  for (const Linear* layer : layers) parts.push_back(layer->weights());
  std::vector<at::Tensor> outputs = linears(input, parts);
  std::size_t i = 0;
  for (const Linear* layer : layers) {
    if (layer->adapter && adapters_on()) outputs[i] = outputs[i] + layer->adapter->forward(input);
    ++i;
  }
  return outputs;
}

Embedding::Embedding(std::int64_t num_rows, std::int64_t width)
    : weight(register_parameter("weight", new_parameter({num_rows, width}))) {}

at::Tensor Embedding::forward(const at::Tensor& ids) const { return at::embedding(weight, ids); }

RmsNorm::RmsNorm(std::int64_t width, double eps, bool centred)
    : weight(register_parameter("weight", new_parameter({width}))), eps_(eps), centred_(centred) {}

at::Tensor RmsNorm::forward(const at::Tensor& input) const {
  if (input.size(-1) != weight.size(0)) {
    throw_invalid("norm: expected rows of width {}, got {}", weight.size(0), input.size(-1));
  }
  if (has_cpu_layers(input) && input.scalar_type() == weight.scalar_type()) {
    if (!centred_) return is_inference() ? cpu_rms_norm_rows(input, weight, eps_) : cpu_rms_norm(input, weight, eps_);
    if (input.scalar_type() == at::kFloat) return cpu_rms_norm(input, weight + 1, eps_);
  }
  if (!centred_) return at::rms_norm(input, weight.sizes(), weight, eps_);
  // 1 + weight is not rounded to the dtype of the weights.
  return at::rms_norm(input.to(at::kFloat), weight.sizes(), weight.to(at::kFloat) + 1, eps_).to(input.scalar_type());
}

LayerNorm::LayerNorm(std::int64_t width, double eps)
    : weight(register_parameter("weight", new_parameter({width}))),
      bias(register_parameter("bias", new_parameter({width}))),
      eps_(eps) {}

at::Tensor LayerNorm::forward(const at::Tensor& input) const {
  if (input.size(-1) != weight.size(0)) {
    throw_invalid("norm: expected rows of width {}, got {}", weight.size(0), input.size(-1));
  }
  return at::layer_norm(input, weight.sizes(), weight, bias, eps_);
}

GatedMlp::GatedMlp(std::int64_t width, std::int64_t inner_width, bool with_bias, Activation activation)
    : activation_(activation),
      gate_proj_(register_module("gate_proj", std::make_shared<Linear>(width, inner_width, with_bias))),
      up_proj_(register_module("up_proj", std::make_shared<Linear>(width, inner_width, with_bias))),
      down_proj_(register_module("down_proj", std::make_shared<Linear>(inner_width, width, with_bias))) {}

at::Tensor GatedMlp::inner(const at::Tensor& input) const {
  const bool plain = !adapters_on() || (!gate_proj_->adapter && !up_proj_->adapter);
  const LinearWeights gate_weights = gate_proj_->weights(), up_weights = up_proj_->weights();
  if (plain && activation_ == Activation::silu && has_gated_linear(input, gate_weights, up_weights))
    return gated_linear(input, gate_weights, up_weights);
  const at::Tensor gate = gate_proj_->forward(input);
  const at::Tensor up = up_proj_->forward(input);
  if (activation_ == Activation::silu && has_cpu_layers(gate) && up.scalar_type() == gate.scalar_type())
    return cpu_gated_product(gate, up);
  return activate(gate, activation_) * up;
}

at::Tensor GatedMlp::forward(const at::Tensor& input) const { return down_proj_->forward(inner(input)); }

at::Tensor GatedMlp::forward_onto(const at::Tensor& input, const at::Tensor& residual) const {
  return down_proj_->forward_onto(inner(input), residual);
}

}  // namespace thinkvg::nn
