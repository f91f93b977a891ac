#pragma once

// Shape letters: N rows, D width, V vocabulary.

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "thinkvg/nn/token_stats.h"

namespace thinkvg::nn {

struct HeadOptions {
  double temperature = 1.0;
  at::Tensor banned;            // int64 ids without probability; may be undefined
  std::int64_t chunk_rows = 0;  // rows whose logits exist at one time; 0: as many as make 64 M logits, at most 2,048
};

// token_stats of the logits hidden W^T, for an output head W [V, D] and hidden states [N, D], targets [N] int64: the
// logits exist for a chunk of rows at a time and are computed again in the backward pass, so memory does not grow with
// N * V. Differentiable in `hidden` and `weight` through all three results. Thread-safe.
// Throws std::invalid_argument for shapes that do not fit.
TokenStats head_token_stats(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& targets,
                            const HeadOptions& options);

}  // namespace thinkvg::nn
