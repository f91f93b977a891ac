#pragma once

#include <memory>

#include "thinkvg/core/json.h"
#include "thinkvg/models/vision_language_model.h"

namespace thinkvg::models {

// Qwen3-VL (dense; Qwen3-VL technical report, arXiv 2511.21631): equal to Qwen3VLForConditionalGeneration of
// transformers for text and still pictures. DeepStack (Meng et al., 2024, arXiv 2406.04334): image features hold one
// part a tower layer that the first layers of the decoder add, so that encode_images() gives [I, D (1 + n)]; embed()
// and decode() take such rows. config: config.json's content. Parameters are uninitialised: use models::load or
// models::create. Throws std::invalid_argument naming the key that is missing, of the wrong kind or out of range, or
// the feature that is not supported.
std::shared_ptr<VisionLanguageModel> make_qwen3_vl(const Json& config);

}  // namespace thinkvg::models
