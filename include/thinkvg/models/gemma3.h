#pragma once

#include <memory>

#include "thinkvg/core/json.h"
#include "thinkvg/models/vision_language_model.h"

namespace thinkvg::models {

// Gemma 3 with pictures (Gemma 3 technical report, arXiv 2503.19786) and MedGemma: a SigLIP tower whose patches are
// pooled, sliding windows in most layers, and image tokens that see all of their picture. Equal to
// Gemma3ForConditionalGeneration of transformers, without pan and scan. A forward pass with pictures needs their places
// in the attention's layout (nn::SequenceLayout::images; PackBuilder writes them). config: config.json's content.
// Parameters are uninitialised: use models::load or models::create. Throws std::invalid_argument naming the key that is
// missing, of the wrong kind or out of range, or the feature that is not supported (soft caps).
std::shared_ptr<VisionLanguageModel> make_gemma3(const Json& config);

}  // namespace thinkvg::models
