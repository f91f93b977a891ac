#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "thinkvg/core/settings.h"
#include "thinkvg/models/adapters.h"
#include "thinkvg/models/bundle.h"
#include "thinkvg/nn/device.h"
#include "thinkvg/train/optimizer.h"
#include "thinkvg/train/options.h"

namespace thinkvg::train {

// What of a model is trained, and how it is held.
struct TuningOptions {
  bool freeze_vision = false;
  bool freeze_projector = false;
  bool freeze_language = false;
  std::string dtype = "float32";
  std::string device = "auto";
  bool gradient_checkpointing = false;
  models::LoraOptions lora;

  void visit(SettingsVisitor& v) {
    v.setting("freeze_vision", freeze_vision, "Leave the vision tower as it is.");
    v.setting("freeze_projector", freeze_projector,
              "Leave the projector (merger) as it is; with freeze_vision each picture is computed once.");
    v.setting("freeze_language", freeze_language, "Leave the language model as it is.");
    v.setting("dtype", dtype,
              "Of the weights: float32, or bfloat16 (fp32 masters and optimizer state are kept beside them).");
    v.setting("device", device, nn::kDeviceHelp);
    v.setting("gradient_checkpointing", gradient_checkpointing,
              "Keep each layer's input alone and compute the layer again in the backward pass: less memory, slower.");
    v.section("lora", lora,
              "Low-rank adapters in place of full fine-tuning; freeze_* then only adds to what is frozen.");
  }
  // Throws std::invalid_argument naming the setting.
  void check() const;
};

// A model with what of it is trained: all weights but the frozen parts', or adapters.
class TrainedModel {
 public:
  // Opens `folder` (a model folder, an adapter folder with the model below it, or a run folder: its newest checkpoint)
  // on `device`, which options.device named (nn::device_setting). New adapters are deterministic by `seed`. Throws
  // std::invalid_argument where nothing is left to train.
  TrainedModel(const std::filesystem::path& folder, const TuningOptions& options, std::int64_t seed,
               at::Device device = at::kCPU);
  // The same out of a checkpoint that save() wrote; `folder` is what the run started from.
  TrainedModel(const std::filesystem::path& folder, const TuningOptions& options,
               const std::filesystem::path& checkpoint, at::Device device = at::kCPU);
  // Around a model at hand, in its own dtype, where it is.
  TrainedModel(models::ModelBundle bundle, const TuningOptions& options, std::int64_t seed);

  models::VisionLanguageModel& model() const { return *bundle_.model; }
  const models::ModelBundle& bundle() const { return bundle_; }
  at::Device device() const { return bundle_.model->output_weight().device(); }
  // Null without LoRA.
  const models::Adapters* adapters() const { return adapters_.get(); }
  // What is trained; every one needs a gradient, nothing else of the model does.
  const models::NamedTensors& parameters() const { return parameters_; }
  models::ModelPart part_of_parameter(const std::string& name) const;
  std::vector<ParameterGroup> groups(const OptimizerOptions& options) const;
  // Whether image features never change: tower and projector are frozen and have no adapters.
  bool fixed_features() const;
  std::int64_t num_trained() const;
  std::int64_t num_parameters() const;

  // What a checkpoint holds: a whole model folder, or the adapter's with tokenizer and processor. The tensors are the
  // model's own, not copies.
  models::FolderContent content() const;

 private:
  void choose_parameters(const TuningOptions& options);

  std::string base_;  // the model below the adapters
  models::ModelBundle bundle_;
  std::unique_ptr<models::Adapters> adapters_;
  models::NamedTensors parameters_;
};

}  // namespace thinkvg::train
