#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>

#include "thinkvg/core/json.h"
#include "thinkvg/models/vision_language_model.h"

namespace thinkvg::models {

// LLaVA-1.5 (Liu et al., 2023, arXiv 2310.03744) in the layout of Hugging Face: a CLIP or SigLIP tower, a projector of
// two linear layers, a LLaMA or Mistral decoder. Equal to LlavaForConditionalGeneration of transformers. Pictures are
// patches without merging, all of the tower's size. config: config.json's content. Parameters are uninitialised: use
// models::load or models::create. Throws std::invalid_argument naming the key that is missing, of the wrong kind or out
// of range, or the feature that is not supported.
std::shared_ptr<VisionLanguageModel> make_llava(const Json& config);

// Checkpoints of LLaVA's own code: LLaVA 1 and 1.5, LLaVA-Med v1 (model_type llava) and v1.5 (llava_mistral). Their
// tower lies in the checkpoint or in a CLIP folder that config.json names ("mm_vision_tower").
bool is_released_llava(const Json& config);

// Such a checkpoint in the layout of Hugging Face: what make_llava() and its parameters are called.
struct LlavaImport {
  Json config;
  std::map<std::string, at::Tensor> weights;
};
// weights: those of `folder`, by their names there. The tower's weights come from the checkpoint where it has them,
// else from the CLIP folder: a path (from the working directory, from `folder`, or beside it), or a name in the cache
// of huggingface_hub. Where the vocabulary has no token for images, the embeddings and the head get one more row, zero,
// for it; that id is never generated. A projector of one linear layer (v1) gets an identity behind it. The conversation
// is kept as "conversation" ("llava_med", "llava_v1"). Throws std::runtime_error naming what is missing.
LlavaImport import_released_llava(const Json& config, std::map<std::string, at::Tensor> weights,
                                  const std::filesystem::path& folder);

// The name of the imported model's image token: <im_patch> where its training had added that, else <image>, which the
// released vocabulary lacks. `config`: LlavaImport's.
struct LlavaImageToken {
  std::string name;
  std::int64_t id;
  bool is_new;  // not in the released vocabulary
};
LlavaImageToken imported_image_token(const Json& config, const std::filesystem::path& folder);

// The CLIP folder that such a config.json names; empty where it is not there.
std::filesystem::path find_clip_folder(const Json& config, const std::filesystem::path& folder);

}  // namespace thinkvg::models
