#include "thinkvg/nn/layers.h"

#include <ATen/ATen.h>

#include "nn/cpu/layers.h"
#include "thinkvg/core/error.h"

namespace thinkvg::nn {
namespace {

thread_local bool without_memory = false;

}  // namespace

WithoutParameterMemory::WithoutParameterMemory() : before_(without_memory) { without_memory = true; }
WithoutParameterMemory::~WithoutParameterMemory() { without_memory = before_; }

at::Tensor new_parameter(at::IntArrayRef shape) {
  return without_memory ? at::empty({1}).expand(shape) : at::empty(shape);
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
  const at::Tensor output = at::linear(input, weight, bias.defined() ? std::optional<at::Tensor>(bias) : std::nullopt);
  return adapter && adapters_on() ? output + adapter->forward(input) : output;
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
  if (has_cpu_layers(input) && has_cpu_layers(weight)) return cpu_rms_norm(input, centred_ ? weight + 1 : weight, eps_);
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

at::Tensor GatedMlp::forward(const at::Tensor& input) const {
  const at::Tensor gate = gate_proj_->forward(input);
  const at::Tensor up = up_proj_->forward(input);
  if (activation_ == Activation::silu && has_cpu_layers(gate)) return down_proj_->forward(cpu_gated_product(gate, up));
  return down_proj_->forward(activate(gate, activation_) * up);
}

}  // namespace thinkvg::nn
