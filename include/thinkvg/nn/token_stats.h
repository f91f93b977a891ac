#pragma once

// Shape letters: N tokens, V vocabulary.

#include <ATen/core/Tensor.h>

namespace thinkvg::nn {

// What losses and rollouts need of a row of logits x, scaled by 1 / temperature, without its softmax p ever being
// stored. All fp32 [N], on the device of the logits.
struct TokenStats {
  at::Tensor logprob;    // log p[target]
  at::Tensor logsumexp;  // log sum_j exp(x_j / temperature)
  at::Tensor entropy;    // -sum_j p_j log p_j, in nats
  double temperature = 1.0;
};

// The statistics of `logits` [N, V] (fp32 or bf16) for `targets` [N] (int64), read on CPU and CUDA in one pass over V
// with an online softmax (Milakov and Gimelshein 2018) that accumulates in fp32, on other devices by ATen's operators.
// Entries of -inf (masked tokens) have probability 0. Differentiable in the logits through all three results; what is
// kept for that is the logits themselves and [N] numbers. Thread-safe.
//
// Throws std::invalid_argument for other shapes or types, a temperature that is not above 0, or (on the CPU) a target
// outside [0, V); on CUDA such a target gives NaN, because looking would wait for the device; elsewhere ATen decides.
// Throws std::runtime_error for CUDA logits where the CUDA kernels cannot be loaded, saying why.
TokenStats token_stats(const at::Tensor& logits, const at::Tensor& targets, double temperature = 1.0);

// Factors of a weighted sum of statistics, fp32 [N] each; an undefined tensor stands for zeros.
struct TokenStatsWeights {
  at::Tensor logprob;
  at::Tensor logsumexp;
  at::Tensor entropy;
};

// The gradient of sum_i (weights.logprob_i logprob_i + weights.logsumexp_i logsumexp_i + weights.entropy_i entropy_i)
// with respect to the logits, [N, V] in their type: what autograd calls, for heads that compute their logits in chunks
// and never keep them. `stats` must come from token_stats of the same logits and targets.
at::Tensor token_stats_gradient(const at::Tensor& logits, const at::Tensor& targets, const TokenStats& stats,
                                const TokenStatsWeights& weights);

}  // namespace thinkvg::nn
