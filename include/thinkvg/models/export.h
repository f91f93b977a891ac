#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "thinkvg/core/settings.h"

namespace thinkvg::models {

// A model folder for others: adapters merged, in another dtype, in files of a wanted size.
struct ExportOptions {
  std::string model;
  std::string out;
  std::string dtype = "keep";
  std::string shard_size = "5GB";
  bool verify = false;
  std::string image;
  std::string question = "Is there any abnormality in this picture, and where?";

  void visit(SettingsVisitor& v) {
    v.setting("model", model, "Model folder, adapter folder (PEFT), or run folder (its newest checkpoint).");
    v.setting("out", out, "Folder to write; must not exist.");
    v.setting("dtype", dtype, "Of the weights: keep, float32, bfloat16, float16.");
    v.setting("shard_size", shard_size, "Largest file of weights, as 5GB, 300MB or 800KB (powers of ten).");
    v.setting("verify", verify, "Load what was written and compare its logits with those of the model as it came.");
    v.setting("image", image, "Picture of the prompt that --verify compares on; empty: a drawn pattern.");
    v.setting("question", question, "Question of that prompt.");
  }
};

// What an export will take; found out without loading the weights.
struct ExportPlan {
  std::filesystem::path base;     // the model folder
  std::filesystem::path adapter;  // that is merged into it; may be empty
  std::string loaded_dtype;       // of the largest part of the weights
  std::string written_dtype;
  std::int64_t num_parameters = 0;
  std::int64_t written_bytes = 0;
  std::int64_t memory_bytes = 0;      // needed at most
  std::int64_t available_memory = 0;  // of the machine now; -1 where it does not tell
};

struct LogitsComparison {
  std::int64_t num_positions = 0;
  double largest_difference = 0;
  double mean_divergence = 0;  // Kullback-Leibler, nats, of the distributions after from those before
  double same_choice = 0;      // share of positions with the same likeliest token
};

struct ExportReport {
  std::vector<std::pair<std::string, std::int64_t>> files;  // with their sizes in bytes, by name
  std::optional<LogitsComparison> verified;
};

// Both throw std::invalid_argument for wrong settings and where `out` exists, std::runtime_error where the model cannot
// be read or the disk has no room.
ExportPlan plan_export(const ExportOptions& options);
// Adapters are merged in float32, and rounded once. Weights are converted one tensor at a time. All files or none: also
// where verification finds logits that are not finite, differ by more than rounding of the merge explains (1e-4 of the
// largest in float32; 1e-5 where nothing is converted or merged), or, in smaller dtypes, by more than 0.05 nats in the
// mean (std::runtime_error). Tokenizer, processor and generation files are the model's own.
ExportReport export_model(const ExportOptions& options);

}  // namespace thinkvg::models
