#pragma once

#include <string>
#include <vector>

#include "thinkvg/core/settings.h"
#include "thinkvg/data/options.h"
#include "thinkvg/models/picture_options.h"

namespace thinkvg::train {

using data::DataOptions;

struct OptimizerOptions {
  double lr = 1e-5;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0.0;
  double grad_clip = 1.0;
  std::string schedule = "cosine";
  double warmup_ratio = 0.03;
  double min_lr_ratio = 0.0;
  double vision_lr = 0;
  double projector_lr = 0;
  double vision_weight_decay = -1;
  double projector_weight_decay = -1;

  void visit(SettingsVisitor& v) {
    v.setting("lr", lr, "Peak learning rate.");
    v.setting("beta1", beta1, "AdamW's decay of the first moment.");
    v.setting("beta2", beta2, "AdamW's decay of the second moment.");
    v.setting("eps", eps, "AdamW's epsilon.");
    v.setting("weight_decay", weight_decay, "AdamW's decay of matrices; norms and biases have none.");
    v.setting("grad_clip", grad_clip, "Largest global norm of the gradient; 0: no clipping.");
    v.setting("schedule", schedule, "Learning rate after warm-up: constant, linear or cosine.");
    v.setting("warmup_ratio", warmup_ratio, "Share of the steps over which the learning rate rises from 0.");
    v.setting("min_lr_ratio", min_lr_ratio, "Where linear and cosine end, as a share of lr.");
    v.setting("vision_lr", vision_lr, "Peak learning rate of the vision tower; 0: as lr.");
    v.setting("projector_lr", projector_lr, "Peak learning rate of the projector; 0: as lr.");
    v.setting("vision_weight_decay", vision_weight_decay, "Decay of the vision tower's matrices; -1: as weight_decay.");
    v.setting("projector_weight_decay", projector_weight_decay,
              "Decay of the projector's matrices; -1: as weight_decay.");
  }
  // Throws std::invalid_argument naming the setting.
  void check() const;
};

// What every training command has.
struct RunOptions {
  std::int64_t steps = 0;
  std::int64_t micro_batch_tokens = 4096;
  std::int64_t save_every = 0;
  std::int64_t keep_last = 2;
  std::string keep_best;
  bool async_save = false;
  std::int64_t log_every = 1;
  std::int64_t num_threads = 0;
  std::int64_t picture_cache_mb = 1024;
  std::int64_t max_nonfinite_steps = 10;
  bool tensorboard = true;
  std::int64_t profile_steps = 0;
  models::PictureOptions pictures;

  void visit(SettingsVisitor& v) {
    v.setting("steps", steps, "Number of optimizer steps.");
    v.setting("micro_batch_tokens", micro_batch_tokens, "Tokens of one forward and backward pass; bounds the memory.");
    v.setting("save_every", save_every, "Steps between checkpoints; 0: only at the end.");
    v.setting("keep_last", keep_last, "Checkpoints that are kept.");
    v.setting("keep_best", keep_best,
              "Keep the checkpoint of the best evaluation, too, as checkpoints/best: loss (lowest), a_score, v_score, "
              "mean_of_a_and_v, parse_rate or token_f1 (highest); empty: none.");
    v.setting("async_save", async_save,
              "Write checkpoints while training goes on; needs memory for one more copy of weights and optimizer.");
    v.setting("log_every", log_every, "Steps between lines of metrics.jsonl.");
    v.setting("num_threads", num_threads, "CPU threads; 0: one a core.");
    v.setting("picture_cache_mb", picture_cache_mb, "Memory for pictures that are kept for the next pass.");
    v.section("pictures", pictures, "How pictures are read and kept.");
    v.setting("max_nonfinite_steps", max_nonfinite_steps,
              "The run stops after this many steps whose loss or gradient was not finite; each is skipped.");
    v.setting("tensorboard", tensorboard, "Write TensorBoard event files beside metrics.jsonl.");
    v.setting("profile_steps", profile_steps,
              "Steps, from the third on, that are traced into profile.json (open it in Perfetto); 0: none.");
  }
  // Throws std::invalid_argument naming the setting.
  void check() const;
};

}  // namespace thinkvg::train
