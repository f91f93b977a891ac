#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "thinkvg/models/processor.h"
#include "thinkvg/models/vision_language_model.h"
#include "thinkvg/text/chat.h"
#include "thinkvg/text/tokenizer.h"

namespace thinkvg::models {

// What a model folder holds: weights with config.json, tokenizer, processor.
struct ModelBundle {
  std::shared_ptr<VisionLanguageModel> model;
  std::shared_ptr<const text::Tokenizer> tokenizer;
  std::shared_ptr<const ImageProcessor> processor;
  const text::ChatTemplate* chat = &text::chat_template("thinkvg");  // how conversations are written
  std::map<std::string, std::string> tokenizer_files;  // by name: what the tokenizer was read from, and its templates
  // By name: settings that transformers wants beside preprocessor_config.json and config.json.
  std::map<std::string, std::string> processor_files;
};

// Throws std::runtime_error naming the part that is missing or does not fit; a vocabulary larger than the embedding
// table is an error, too. An adapter's folder (PEFT) gives the model that it names with the adapter merged into it.
// `dtype` and `device`: of the weights, as of load().
ModelBundle load_bundle(const std::filesystem::path& folder, std::optional<at::ScalarType> dtype = {},
                        at::Device device = at::kCPU);

// The tokenizer files of a folder, by name.
std::map<std::string, std::string> read_tokenizer_files(const std::filesystem::path& folder);

// Writes a model folder that transformers opens: config.json, generation_config.json, model.safetensors,
// preprocessor_config.json, the processor's other files and the tokenizer's. `folder` must exist.
void save_bundle(const ModelBundle& bundle, const std::filesystem::path& folder);
FolderContent bundle_content(const ModelBundle& bundle);

// The finished checkpoints of a run folder (checkpoints/step-N), oldest first.
std::vector<std::filesystem::path> checkpoints_of(const std::filesystem::path& run);

// A model folder as it is, or the newest checkpoint of a run folder. Throws std::runtime_error when it is neither.
std::filesystem::path resolve_model_folder(const std::filesystem::path& folder);

}  // namespace thinkvg::models
