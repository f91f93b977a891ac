#pragma once

#include <string>
#include <vector>

#include "thinkvg/core/settings.h"
#include "thinkvg/models/picture_options.h"

namespace thinkvg::train {

// Which questions a run learns from.
struct DataOptions {
  std::string path;
  double fraction = 1.0;
  bool complement = false;
  std::int64_t split_seed = 0;
  std::int64_t limit = 0;
  double min_hit_rate = 1.0;

  void visit(SettingsVisitor& v) {
    v.setting("path", path, "Data set: ThinkVG parquet, GEMeX JSONL. --data FILE is the same.");
    v.setting("fraction", fraction, "Share of the patients that is used; smaller shares lie inside larger ones.");
    v.setting("complement", complement, "Use the patients that `fraction` leaves out instead.");
    v.setting("split_seed", split_seed, "Seed of the choice of patients.");
    v.setting("limit", limit, "Use only the first questions of those; 0: all.");
    v.setting(
        "min_hit_rate", min_hit_rate,
        "Share of the questions whose picture must be there, else the run does not start; where it is below 1 the "
        "questions without are left out.");
  }
};

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
  std::int64_t log_every = 1;
  std::int64_t num_threads = 0;
  std::int64_t picture_cache_mb = 1024;
  models::PictureOptions pictures;

  void visit(SettingsVisitor& v) {
    v.setting("steps", steps, "Number of optimizer steps.");
    v.setting("micro_batch_tokens", micro_batch_tokens, "Tokens of one forward and backward pass; bounds the memory.");
    v.setting("save_every", save_every, "Steps between checkpoints; 0: only at the end.");
    v.setting("keep_last", keep_last, "Checkpoints that are kept.");
    v.setting("log_every", log_every, "Steps between lines of metrics.jsonl.");
    v.setting("num_threads", num_threads, "CPU threads; 0: one a core.");
    v.setting("picture_cache_mb", picture_cache_mb, "Memory for pictures that are kept for the next pass.");
    v.section("pictures", pictures, "How pictures are read and kept.");
  }
};

}  // namespace thinkvg::train
