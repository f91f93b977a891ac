#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <string>

#include "thinkvg/core/files.h"
#include "thinkvg/core/json.h"
#include "thinkvg/models/bundle.h"
#include "thinkvg/train/optimizer.h"

namespace thinkvg::train {

// The folder of one training run: config.yaml, manifest.json, metrics.jsonl, samples/, checkpoints/step-N/.
class RunFolder {
 public:
  // Makes the folder. An existing run in it is an error that says what to do, unless `resume`.
  RunFolder(std::filesystem::path folder, bool resume);

  void write_config(const Json& config);
  void write_manifest(const Json& manifest);
  // One line of metrics.jsonl.
  void log(const Json& metrics);
  // One line of samples/completions.jsonl.
  void log_sample(const Json& sample);

  struct TrainerState {
    std::int64_t step = 0;  // steps done
    Json extra = Json::object();
  };
  // Writes checkpoints/step-N atomically, then removes all but the last `keep_last`.
  void save_checkpoint(const models::ModelBundle& bundle, const AdamW& optimizer, const TrainerState& state,
                       std::int64_t keep_last);
  // The newest checkpoint, or an empty path.
  std::filesystem::path latest_checkpoint() const;
  // Reads the optimizer's state, and cuts metrics.jsonl and samples behind the checkpoint's step.
  TrainerState load_checkpoint(const std::filesystem::path& checkpoint, AdamW& optimizer);

  const std::filesystem::path& path() const { return folder_; }

 private:
  std::filesystem::path folder_;
  std::unique_ptr<AppendFile> metrics_;
  std::unique_ptr<AppendFile> samples_;
};

}  // namespace thinkvg::train
