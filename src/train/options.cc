// No tensors here: `thinkvg check` reads settings without loading LibTorch.
#include "thinkvg/train/options.h"

#include <spdlog/fmt/ranges.h>

#include <algorithm>

#include "thinkvg/core/error.h"
#include "thinkvg/train/sft.h"
#include "thinkvg/train/validation.h"

namespace thinkvg::train {

void OptimizerOptions::check() const {
  if (!(lr > 0)) throw_invalid("optimizer.lr must be above 0, but is {}", lr);
  if (schedule != "constant" && schedule != "linear" && schedule != "cosine")
    throw_invalid("optimizer.schedule must be constant, linear or cosine, but is '{}'", schedule);
  if (!(warmup_ratio >= 0 && warmup_ratio <= 1))
    throw_invalid("optimizer.warmup_ratio must be in [0, 1], but is {}", warmup_ratio);
  if (!(vision_lr >= 0) || !(projector_lr >= 0))
    throw_invalid("optimizer.vision_lr and projector_lr must be 0 (as lr) or more, but are {} and {}", vision_lr,
                  projector_lr);
  if (!(grad_clip >= 0)) throw_invalid("optimizer.grad_clip must be 0 (off) or more, but is {}", grad_clip);
}

void RunOptions::check() const {
  const auto at_least = [](const char* name, std::int64_t value, std::int64_t bound) {
    if (value < bound) throw_invalid("run.{} must be {} or more, but is {}", name, bound, value);
  };
  at_least("steps", steps, 0);
  at_least("micro_batch_tokens", micro_batch_tokens, 1);
  at_least("save_every", save_every, 0);
  at_least("keep_last", keep_last, 1);
  at_least("log_every", log_every, 1);
  at_least("num_threads", num_threads, 0);
  at_least("picture_cache_mb", picture_cache_mb, 0);
  at_least("max_nonfinite_steps", max_nonfinite_steps, 1);
  at_least("profile_steps", profile_steps, 0);
}

void TuningOptions::check() const {
  if (dtype != "float32" && dtype != "bfloat16") throw_invalid("dtype must be float32 or bfloat16, but is '{}'", dtype);
  lora.check();
  if (freeze_vision && freeze_projector && freeze_language)
    throw_invalid("freeze_vision, freeze_projector and freeze_language leave nothing to train");
}

void ValidationOptions::check() const {
  const auto at_least_0 = [](const char* name, std::int64_t value) {
    if (value < 0) throw_invalid("eval.{} must be 0 or more, but is {}", name, value);
  };
  at_least_0("every", every);
  at_least_0("loss_questions", loss_questions);
  at_least_0("score_questions", score_questions);
  if (max_new_tokens < 1) throw_invalid("eval.max_new_tokens must be 1 or more, but is {}", max_new_tokens);
  if (every > 0 && data.path.empty())
    throw_invalid("eval.every is {}, but there is nothing to evaluate on: give --eval.data FILE", every);
  if (every > 0 && loss_questions == 0 && score_questions == 0)
    throw_invalid("eval.loss_questions and eval.score_questions are both 0: an evaluation would measure nothing");
}

const std::vector<std::string>& validation_metrics() {
  static const std::vector<std::string> kMetrics = {"loss",       "a_score", "v_score", "mean_of_a_and_v",
                                                    "parse_rate", "token_f1"};
  return kMetrics;
}

void check_keep_best(const std::string& metric, const ValidationOptions& options) {
  if (metric.empty()) return;
  const std::vector<std::string>& known = validation_metrics();
  if (std::find(known.begin(), known.end(), metric) == known.end())
    throw_invalid("run.keep_best must be one of {}, but is '{}'", fmt::join(known, ", "), metric);
  if (options.every == 0)
    throw_invalid("run.keep_best is {}, but nothing is evaluated: give eval.every and eval.data", metric);
  if ((metric == "loss" ? options.loss_questions : options.score_questions) == 0)
    throw_invalid("run.keep_best is {}, which needs eval.{} above 0", metric,
                  metric == "loss" ? "loss_questions" : "score_questions");
}

void SftOptions::check() const {
  if (batch_size < 1) throw_invalid("batch_size must be at least 1, but is {}", batch_size);
  if (run.steps < 1 && !(epochs > 0)) throw_invalid("nothing to do: give run.steps or epochs");
  if (max_length < 0) throw_invalid("max_length must be 0 (no limit) or more, but is {}", max_length);
  if (overlong != "refuse" && overlong != "skip")
    throw_invalid("overlong must be refuse or skip, but is '{}'", overlong);
  if (turns != "joined" && turns != "apart") throw_invalid("turns must be joined or apart, but is '{}'", turns);
  if (packing != "by_length" && packing != "in_order")
    throw_invalid("packing must be by_length or in_order, but is '{}'", packing);
  if (!(neftune_noise_alpha >= 0))
    throw_invalid("neftune_noise_alpha must be 0 (none) or more, but is {}", neftune_noise_alpha);
  tuning.check();
  optimizer.check();
  eval.check();
  run.check();
  dist.check();
  check_keep_best(run.keep_best, eval);
}

}  // namespace thinkvg::train
