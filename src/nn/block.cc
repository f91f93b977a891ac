#include "thinkvg/nn/block.h"

#include "thinkvg/nn/checkpoint.h"

namespace thinkvg::nn {

at::Tensor run_block(const Block& block, const BlockForward& forward, const at::Tensor& input, bool checkpointing) {
  if (!block.wrapper) return checkpointing ? checkpoint(forward, input, trained_tensors(block)) : forward(input);
  if (!checkpointing) return block.wrapper->run(forward, input);
  const BlockForward wrapped = [forward, wrapper = block.wrapper](const at::Tensor& x) {
    return wrapper->run(forward, x);
  };
  return checkpoint(wrapped, input, trained_tensors(block));
}

}  // namespace thinkvg::nn
