#pragma once

#include <memory>

#include "thinkvg/core/json.h"
#include "thinkvg/models/vision_language_model.h"

namespace thinkvg::models {

// Qwen2-VL (Wang et al., 2024, arXiv 2409.12191): equal to Qwen2VLForConditionalGeneration of transformers for text and
// still pictures. config: config.json's content, in the layouts of transformers 5 and 4. Parameters are uninitialised:
// use models::load or models::create. Throws std::invalid_argument naming the key that is missing, of the wrong kind or
// out of range, or the feature that is not supported.
std::shared_ptr<VisionLanguageModel> make_qwen2_vl(const Json& config);

}  // namespace thinkvg::models
