#pragma once

#include <cstdint>
#include <filesystem>
#include <future>
#include <memory>
#include <string>

#include "thinkvg/core/files.h"
#include "thinkvg/core/json.h"
#include "thinkvg/models/safetensors.h"
#include "thinkvg/train/distributed.h"
#include "thinkvg/train/event_file.h"
#include "thinkvg/train/options.h"

namespace thinkvg::train {

// The folder of one training run: config.yaml, manifest.json, metrics.jsonl, TensorBoard events, samples/,
// checkpoints/step-N/ (a model folder with trainer/ inside: optimizer, state, and checksums of every file). Not
// thread-safe.
class RunFolder {
 public:
  // Makes the folder. An existing run in it is an error that says what to do, unless `resume`. Without `writes` nothing
  // is ever written: a process whose rank 0 does.
  RunFolder(std::filesystem::path folder, bool resume, const RunOptions& options, bool writes = true);
  // Waits for a checkpoint that is being written.
  ~RunFolder();
  RunFolder(const RunFolder&) = delete;
  RunFolder& operator=(const RunFolder&) = delete;

  void write_config(const Json& config);
  void write_manifest(const Json& manifest);

  // The newest checkpoint whose files fit their checksums, or an empty path; damaged ones are named in a warning.
  std::filesystem::path latest_checkpoint() const;
  struct TrainerState {
    std::int64_t step = 0;  // steps done
    Json extra = Json::object();
    std::int64_t best_step = -1;  // whose checkpoint is kept beyond keep_last; -1: none. Not read back.
  };
  // Reads the optimizer's state of a checkpoint.
  static TrainerState load_checkpoint(const std::filesystem::path& checkpoint, DistributedAdamW& optimizer);

  // Opens the logs behind `step`: lines of later steps, which a killed run left, are cut. Call it once, before log().
  void open_logs(std::int64_t step);
  // One line of metrics.jsonl, and its numbers as scalars for TensorBoard. Needs "step".
  void log(const Json& metrics);
  // One line of samples/<file>.
  void log_sample(const Json& sample, const std::string& file = "completions.jsonl");

  // Writes checkpoints/step-N atomically, then removes all but the last `keep_last` and the best, which the link
  // checkpoints/best points to. With RunOptions::async_save the
  // tensors are copied and the call returns; an error then surfaces at the next call, or at finish().
  // `group`: every process calls it. Where states are sharded each writes its own; then rank 0 the rest, and the
  // checkpoint counts from then on.
  void save_checkpoint(const models::FolderContent& model, const DistributedAdamW& optimizer, const TrainerState& state,
                       dist::ProcessGroup& group);
  void finish();

  const std::filesystem::path& path() const { return folder_; }

 private:
  std::filesystem::path folder_;
  RunOptions options_;
  bool writes_ = true;
  std::unique_ptr<AppendFile> metrics_;
  std::map<std::string, std::unique_ptr<AppendFile>> samples_;
  std::unique_ptr<EventFile> events_;
  std::future<void> saving_;
};

// Whether every file that a checkpoint's trainer/checksums.json names is there with its content; an empty text if so,
// else what is wrong.
std::string checkpoint_damage(const std::filesystem::path& checkpoint);

}  // namespace thinkvg::train
