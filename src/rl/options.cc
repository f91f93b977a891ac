// No tensors here: `thinkvg check` reads settings without loading LibTorch.
#include "thinkvg/core/error.h"
#include "thinkvg/rl/grpo.h"

namespace thinkvg::rl {

void GrpoOptions::check() const {
  if (prompts_per_step < 1 || group_size < 2)
    throw_invalid("prompts_per_step must be at least 1 and group_size at least 2, but they are {} and {}",
                  prompts_per_step, group_size);
  if (updates_per_rollout < 1) throw_invalid("updates_per_rollout must be at least 1");
  if (multi_objective_aggregation != "sum_then_normalize" && multi_objective_aggregation != "normalize_then_sum")
    throw_invalid("multi_objective_aggregation must be sum_then_normalize or normalize_then_sum, but is '{}'",
                  multi_objective_aggregation);
  if (kl_in_reward && multi_objective_aggregation == "normalize_then_sum")
    throw_invalid("kl_in_reward needs multi_objective_aggregation=sum_then_normalize: it is taken off the sum");
  if (!(top_entropy_quantile >= 0 && top_entropy_quantile <= 1))
    throw_invalid("top_entropy_quantile must be in [0, 1], but is {}", top_entropy_quantile);
  if (watched_questions < 0 || watch_every < 0)
    throw_invalid("watched_questions and watch_every must be 0 or more, but are {} and {}", watched_questions,
                  watch_every);
  if (overlap_rollout && (dynamic_sampling || updates_per_rollout > 1))
    throw_invalid(
        "overlap_rollout goes neither with dynamic_sampling, whose rounds depend on each other, nor with "
        "updates_per_rollout above 1, which change the weights that it draws from");
  if (overlap_rollout && dist.sharding == "parameters")
    throw_invalid(
        "overlap_rollout needs the whole weights while their gradient is computed; dist.sharding parameters "
        "keeps them split then");
  if (overlap_rollout && (sampling.top_k != 0 || sampling.top_p != 1 || sampling.min_p != 0 ||
                          sampling.repetition_penalty != 1 || sampling.min_new_tokens != 0))
    throw_invalid(
        "overlap_rollout takes the rollout's log-probabilities as the old policy's: leave sampling.top_k, "
        "top_p, min_p, repetition_penalty and min_new_tokens as they are, which draw from another distribution");
  if (max_refill < 0) throw_invalid("max_refill must be 0 or more, but is {}", max_refill);
  if (sync_ref_model && ref_model_sync_steps < 1)
    throw_invalid("ref_model_sync_steps must be at least 1, but is {}", ref_model_sync_steps);
  if (run.steps < 1) throw_invalid("nothing to do: give run.steps");
  sampling.check();
  engine.check();
  if (engine.weights() != nn::Quantization::none)
    throw_invalid(
        "engine.quantization is {}, but completions to learn from must come from the weights that are trained; leave "
        "it "
        "at none",
        engine.quantization);
  run.check();
  if (sampling.temperature == 0)
    throw_invalid("sampling.temperature must be above 0: equal completions have no advantage");
  tuning.check();
  optimizer.check();
  eval.check();
  dist.check();
  train::check_keep_best(run.keep_best, eval);
}

train::MemoryLevers memory_levers(const GrpoOptions& options) {
  train::MemoryLevers levers;
  levers.adapters = options.tuning.lora.rank > 0;
  levers.bfloat16 = options.tuning.dtype == "bfloat16";
  levers.checkpointing = options.tuning.gradient_checkpointing;
  levers.async_save = options.run.async_save;
  levers.micro_batch_tokens = options.run.micro_batch_tokens;
  levers.reinforcement = true;
  levers.max_rows = options.engine.max_rows;
  levers.cache_mb = options.engine.cache_mb;
  levers.reference = options.beta != 0 && options.tuning.lora.rank == 0;
  return levers;
}

}  // namespace thinkvg::rl
