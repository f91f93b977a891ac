#pragma once

// Shape letters: R rank.

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "thinkvg/core/settings.h"
#include "thinkvg/models/safetensors.h"
#include "thinkvg/models/vision_language_model.h"
#include "thinkvg/nn/adapter.h"

namespace thinkvg::models {

struct LoraOptions {
  std::int64_t rank = 0;
  double alpha = 16;
  double dropout = 0;
  bool rslora = false;
  std::vector<std::string> target_modules = {"all-linear"};
  std::vector<std::string> parts = {"language"};

  void visit(SettingsVisitor& v) {
    v.setting("rank", rank, "Rank of the adapters; 0: full fine-tuning, no adapters.");
    v.setting("alpha", alpha, "Adapters are scaled by alpha / rank.");
    v.setting("dropout", dropout, "Share of an adapter's inputs that is dropped in training.");
    v.setting("rslora", rslora, "Scale by alpha / sqrt(rank) instead (rank-stabilised LoRA).");
    v.setting("target_modules", target_modules,
              "Linear layers that get one: all-linear, or ends of module names such as q_proj,v_proj,mlp.down_proj.");
    v.setting("parts", parts, "Where: language, projector, vision.");
  }
  // Throws std::invalid_argument naming the setting.
  void check() const;
};

// The low-rank adapters (LoRA) of one model. The model's own weights are not touched and their names stay; the layers
// refer to the adapters until this object goes. Folders are those of PEFT: adapter_config.json with
// adapter_model.safetensors.
class Adapters {
 public:
  // New adapters, which change nothing yet: `down` uniform within 1 / sqrt(its columns) as PEFT does, deterministic by
  // seed, `up` zero. In the dtype and on the device of the layers. Throws std::invalid_argument where options are out
  // of range, or no layer matches (with the names there are).
  Adapters(std::shared_ptr<VisionLanguageModel> model, const LoraOptions& options, std::uint64_t seed);
  // Reads a folder of PEFT's. Throws std::runtime_error listing every tensor that is missing, unexpected or of another
  // shape, or naming the feature of its configuration that is not supported.
  Adapters(std::shared_ptr<VisionLanguageModel> model, const std::filesystem::path& folder);
  ~Adapters();
  Adapters(const Adapters&) = delete;
  Adapters& operator=(const Adapters&) = delete;

  // PEFT's folder. base_model: what adapter_config.json names as the model they belong to.
  FolderContent content(const std::string& base_model) const;
  // Adds every adapter to its layer's weight and detaches it; this object is empty afterwards. Computed in fp32.
  void merge();

  // "<registered module>.lora_A.weight" and ".lora_B.weight", in the order of the model's modules.
  NamedTensors tensors() const;
  std::size_t size() const { return adapters_.size(); }
  const LoraOptions& options() const { return options_; }

 private:
  struct Entry {
    std::string module;  // as registered
    double alpha;
    std::shared_ptr<nn::LowRankAdapter> adapter;
  };
  void attach(const std::string& module, std::int64_t rank, double alpha);

  std::shared_ptr<VisionLanguageModel> model_;
  LoraOptions options_;
  std::vector<Entry> adapters_;
};

// Whether a folder holds an adapter rather than a whole model.
bool is_adapter_folder(const std::filesystem::path& folder);
// The model folder that an adapter's folder names; a relative one counts from the working directory, then from the
// adapter. Throws std::runtime_error where it is not there.
std::filesystem::path adapter_base(const std::filesystem::path& folder);

}  // namespace thinkvg::models
