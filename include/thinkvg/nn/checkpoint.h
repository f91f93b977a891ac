#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <functional>
#include <vector>

namespace thinkvg::nn {

// block(input) with activation checkpointing (Chen et al. 2016, arXiv 1604.06174): the forward pass keeps `input`
// alone, the backward pass runs the block again, under the same ForwardMode, and differentiates it. `block` must give
// the same result both times, own or share whatever it uses, and `parameters` must list every tensor besides the input
// that needs a gradient from it. Gradients equal those of a plain call, bit for bit.
at::Tensor checkpoint(const std::function<at::Tensor(const at::Tensor&)>& block, const at::Tensor& input,
                      const std::vector<at::Tensor>& parameters);

// The tensors of a module that need gradients: its parameters and those of its layers' adapters.
std::vector<at::Tensor> trained_tensors(const torch::nn::Module& module);

}  // namespace thinkvg::nn
