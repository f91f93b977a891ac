#include "thinkvg/nn/layers.h"

#include <ATen/ATen.h>

#include "nn/cpu/layers.h"
#include "thinkvg/core/error.h"

namespace thinkvg::nn {

Linear::Linear(std::int64_t in, std::int64_t out, bool with_bias)
    : weight(register_parameter("weight", at::empty({out, in}))) {
  if (with_bias) bias = register_parameter("bias", at::empty({out}));
}

at::Tensor Linear::forward(const at::Tensor& input) const {
  const at::Tensor output = at::linear(input, weight, bias.defined() ? std::optional<at::Tensor>(bias) : std::nullopt);
  return adapter && adapters_on() ? output + adapter->forward(input) : output;
}

Embedding::Embedding(std::int64_t num_rows, std::int64_t width)
    : weight(register_parameter("weight", at::empty({num_rows, width}))) {}

at::Tensor Embedding::forward(const at::Tensor& ids) const { return at::embedding(weight, ids); }

RmsNorm::RmsNorm(std::int64_t width, double eps)
    : weight(register_parameter("weight", at::empty({width}))), eps_(eps) {}

at::Tensor RmsNorm::forward(const at::Tensor& input) const {
  if (input.size(-1) != weight.size(0)) {
    throw_invalid("norm: expected rows of width {}, got {}", weight.size(0), input.size(-1));
  }
  if (has_cpu_layers(input) && has_cpu_layers(weight)) return cpu_rms_norm(input, weight, eps_);
  return at::rms_norm(input, weight.sizes(), weight, eps_);
}

GatedMlp::GatedMlp(std::int64_t width, std::int64_t inner_width, bool with_bias)
    : gate_proj_(register_module("gate_proj", std::make_shared<Linear>(width, inner_width, with_bias))),
      up_proj_(register_module("up_proj", std::make_shared<Linear>(width, inner_width, with_bias))),
      down_proj_(register_module("down_proj", std::make_shared<Linear>(inner_width, width, with_bias))) {}

at::Tensor GatedMlp::forward(const at::Tensor& input) const {
  const at::Tensor gate = gate_proj_->forward(input);
  const at::Tensor up = up_proj_->forward(input);
  return down_proj_->forward(has_cpu_layers(gate) ? cpu_gated_product(gate, up) : at::silu(gate) * up);
}

}  // namespace thinkvg::nn
