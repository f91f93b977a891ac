#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <functional>
#include <memory>

namespace thinkvg::nn {

using BlockForward = std::function<at::Tensor(const at::Tensor&)>;

// What is put around a block's forward pass from outside of the model, such as fetching its weights first.
class BlockWrapper {
 public:
  virtual ~BlockWrapper() = default;
  // forward(input), and whatever is to happen before and behind it. Also called where a checkpointed block runs again,
  // on the thread of the backward pass then.
  virtual at::Tensor run(const BlockForward& forward, const at::Tensor& input) = 0;
};

// A part of a model that its forward pass runs as one, such as a layer: nothing else uses the weights in it.
class Block : public torch::nn::Module {
 public:
  // Not part of the model: whoever sets it takes it away again. Null: none.
  std::shared_ptr<BlockWrapper> wrapper;
};

// How a model runs a block: forward(input) inside of the block's wrapper, with `checkpointing` as nn::checkpoint, for
// which `forward` must own or share what it uses.
at::Tensor run_block(const Block& block, const BlockForward& forward, const at::Tensor& input, bool checkpointing);

}  // namespace thinkvg::nn
