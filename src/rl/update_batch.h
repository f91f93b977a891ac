#pragma once

// Shape letters: B completions, N tokens of all completions end to end.

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>
#include <vector>

#include "thinkvg/generation/question.h"
#include "thinkvg/generation/rollout_engine.h"
#include "thinkvg/models/pack.h"
#include "thinkvg/models/vision_language_model.h"
#include "thinkvg/nn/head_stats.h"
#include "thinkvg/rewards/reward.h"

// Completions on their way through the passes of an update.
namespace thinkvg::rl {

// One completion with what it was worth.
struct ScoredCompletion {
  const generation::Completion* completion = nullptr;
  std::string text;
  grounding::ParsedResponse parsed;
  rewards::CompletionReward reward;
  double advantage = 0;
  bool in_loss = true;
  // Of the weights before the update, one number a token, on the CPU; undefined until they are needed.
  at::Tensor old_log_probs, ref_log_probs, entropies, token_mask;
};

// A question with all of its completions: what an update pass shares the prompt of.
struct Group {
  std::int64_t place = 0;  // in the order of the run's questions, over all processes
  std::int64_t index = 0;  // row of the data set
  std::shared_ptr<const generation::Question> question;
  std::vector<generation::Completion> drawn;
  std::vector<ScoredCompletion> completions;

  std::int64_t num_tokens() const {
    auto count = static_cast<std::int64_t>(question->prompt.ids.size());
    for (const ScoredCompletion& scored : completions)
      count += static_cast<std::int64_t>(scored.completion->ids.size());
    return count;
  }
};

// The tokens of some groups' completions, laid out for log-probabilities: each prompt once, its completions behind it.
struct UpdateBatch {
  models::Pack pack;
  at::Tensor rows;                             // [N] rows of the pack whose hidden state predicts a completion token
  at::Tensor targets;                          // [N]
  at::Tensor rollout_log_probs;                // [N]
  at::Tensor sequence;                         // [N] completion of the batch
  at::Tensor lengths;                          // [B]
  at::Tensor advantages;                       // [B]
  std::vector<ScoredCompletion*> completions;  // B
};

// `features`: of each group's pictures [I, D]. Completions that are not in the loss are left out, unless `all`.
UpdateBatch make_update_batch(const std::vector<Group*>& groups, const std::vector<at::Tensor>& features,
                              at::Device device, bool all);

// Log-probabilities and entropies [N] of the completions' tokens, with gradient.
nn::TokenStats completion_stats(models::VisionLanguageModel& model, const UpdateBatch& batch,
                                const nn::HeadOptions& options);

// One of the completions' own numbers, end to end [N].
at::Tensor joined(const UpdateBatch& batch, at::Tensor ScoredCompletion::*numbers);
// The reverse: numbers [N] become the completions' own, on the CPU and without gradient.
void share_out(const UpdateBatch& batch, const at::Tensor& all, at::Tensor ScoredCompletion::*numbers);

}  // namespace thinkvg::rl
