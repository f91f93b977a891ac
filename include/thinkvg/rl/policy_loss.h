#pragma once

// Shape letters: B completions, N tokens of all completions end to end, G completions of one prompt.
//
// Definitions as published in TRL's GRPO trainer; papers are named at each type.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace thinkvg::rl {

enum class LossType {
  grpo,     // mean over completions of the mean over tokens (DeepSeekMath, arXiv 2402.03300)
  bnpo,     // mean over the tokens of the micro-batch
  dr_grpo,  // sum over tokens / (completions * max_completion_length) (arXiv 2503.20783)
  dapo,     // mean over the tokens of the whole step (arXiv 2503.14476)
  luspo,    // mean over completions of the sum over tokens; meant for RatioLevel::sequence (arXiv 2602.05261)
  cispo,    // the ratio bounded, not the gradient; aggregated as dapo (arXiv 2506.13585)
  sapo,     // a sigmoid of the ratio in place of clipping; aggregated as grpo (arXiv 2511.20347)
};
LossType parse_loss_type(std::string_view name);  // throws std::invalid_argument that lists the names
std::string loss_type_name(LossType type);

// Whose probabilities the importance ratio rho compares: the token's, or the completion's per token, which is the
// geometric mean of its tokens' ratios (GSPO, arXiv 2507.18071; its paper aggregates as grpo).
enum class RatioLevel { token, sequence };
RatioLevel parse_ratio_level(std::string_view name);  // throws std::invalid_argument that lists the names

// Estimates of KL(policy || reference) from one sample, with d = log pi - log ref (Schulman 2020): k1 = d, unbiased;
// k2 = d^2 / 2; k3 = exp(-d) + d - 1, never negative, TRL's.
enum class KlEstimator { k1, k2, k3 };
KlEstimator parse_kl_estimator(std::string_view name);  // throws std::invalid_argument that lists the names
at::Tensor kl_estimate(const at::Tensor& log_probs, const at::Tensor& ref_log_probs, KlEstimator estimator);

// What is done about the gap between the probabilities that a completion was sampled with and the trainer's own before
// the update: its tokens' losses are weighted by pi_old / pi_rollout, of the token or of the whole completion,
// truncated to [min, max], or set to 0 outside of it (TRL's vllm_importance_sampling_mode).
enum class RolloutCorrection { none, token_truncate, token_mask, sequence_truncate, sequence_mask };
RolloutCorrection parse_rollout_correction(std::string_view name);  // throws std::invalid_argument that lists the names
struct RolloutCorrectionOptions {
  RolloutCorrection mode = RolloutCorrection::none;
  double min = 0;
  double max = 3;
};
// Weights [N] of the tokens; `sequence` [N] and `lengths` [B] as in PolicyLossInput.
at::Tensor rollout_correction(const at::Tensor& old_log_probs, const at::Tensor& rollout_log_probs,
                              const at::Tensor& sequence, const at::Tensor& lengths,
                              const RolloutCorrectionOptions& options);

// Tokens of a whole step whose entropy lies in the top `share` (arXiv 2506.01939): [N] bool. Ties at the bound count.
at::Tensor top_entropy_tokens(const at::Tensor& entropies, double share);

struct PolicyLossOptions {
  LossType type = LossType::dapo;
  RatioLevel ratio_level = RatioLevel::token;
  double epsilon_low = 0.2;
  double epsilon_high = 0.28;  // cispo: the bound of the ratio itself, such as 5
  double delta = 0;            // upper bound of the ratio before the minimum (dual clip); 0: none
  double beta = 0.04;          // weight of the estimate of KL(policy || reference)
  KlEstimator kl = KlEstimator::k3;
  bool bias_corrected_kl = false;      // the estimate is weighted by rho (DeepSeek-V3.2)
  double entropy_coef = 0;             // the loss gets - entropy_coef * mean entropy of the tokens
  double off_policy_threshold = 0;     // completions with A < 0 whose mean log(pi_rollout / pi) is above it carry no
                                       // policy loss (DeepSeek-V3.2); 0: off
  double sapo_temperature_pos = 1.0;   // sapo only: tau where A > 0
  double sapo_temperature_neg = 1.05;  // sapo only: tau elsewhere
  std::int64_t max_completion_length = 0;  // dr_grpo only
};

// One micro-batch of whole completions, their tokens end to end in the order of `lengths`. One device.
struct PolicyLossInput {
  at::Tensor log_probs;          // [N] of the policy, with gradient
  at::Tensor old_log_probs;      // [N] of the policy that the completions came from; undefined: the same (ratio 1)
  at::Tensor ref_log_probs;      // [N] of the reference; undefined: beta must be 0
  at::Tensor rollout_log_probs;  // [N] as sampled; needed for off_policy_threshold only; undefined: old_log_probs
  at::Tensor entropy;            // [N] with gradient; needed where entropy_coef is not 0
  at::Tensor token_weights;      // [N] of the policy loss, such as rollout_correction's; undefined: 1
  at::Tensor token_mask;         // [N] bool: tokens that carry policy loss and entropy bonus; undefined: all
  at::Tensor advantages;         // [B]
  at::Tensor sequence;           // [N] int64: which completion a token belongs to
  at::Tensor lengths;            // [B] int64: number of tokens of each completion, may be 0
  // Of the whole optimizer step, over all micro-batches and ranks: with them the gradient does not depend on the split.
  std::int64_t total_completions = 0;
  std::int64_t total_tokens = 0;
  std::int64_t num_micro_batches = 1;    // bnpo only: its mean is divided by it
  std::int64_t total_masked_tokens = 0;  // tokens of token_mask, for the entropy bonus; unused without a mask
};

struct PolicyLoss {
  at::Tensor loss;  // scalar; the micro-batches' losses add up to the step's
  // Sums over the micro-batch's tokens, for metrics.
  double kl_sum = 0;
  double clipped_low = 0;   // tokens with ratio < 1 - epsilon_low and A < 0; cispo, sapo: 0
  double clipped_high = 0;  // tokens with ratio > 1 + epsilon_high (cispo: > epsilon_high) and A > 0; sapo: 0
};

// Token loss by type, times token_weights and token_mask, plus beta * KL, aggregated by type:
//   -min(min(rho, delta) A, clip(rho, 1 - epsilon_low, 1 + epsilon_high) A)   all but
//   -min(rho, epsilon_high) A lp, no gradient through rho                     cispo
//   -(4 / tau) sigmoid(tau (rho - 1)) A                                       sapo
// Throws std::invalid_argument where an option or input that the type needs is missing or out of range.
PolicyLoss policy_loss(const PolicyLossInput& input, const PolicyLossOptions& options);

}  // namespace thinkvg::rl
