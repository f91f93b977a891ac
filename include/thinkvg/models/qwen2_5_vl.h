#pragma once

// Qwen2.5-VL (Bai et al., 2025, arXiv 2502.13923): a vision tower with window attention and a decoder with
// multimodal rotary positions. Equal to Qwen2_5_VLForConditionalGeneration of transformers for text and still pictures.

#include <cstdint>
#include <memory>
#include <vector>

#include "thinkvg/core/json.h"
#include "thinkvg/models/vision_language_model.h"

namespace thinkvg::models {

// What decides the order in which a tower sees its patches.
struct WindowOptions {
  std::int64_t window_size = 112;  // pixels
  std::int64_t patch_size = 14;
  std::int64_t spatial_merge_size = 2;
};
// The order itself: window by window.
struct WindowOrder {
  std::vector<std::int64_t> units;           // position in the new order -> merged cell in the old one
  std::vector<std::int64_t> window_lengths;  // patches of each window
};
// Throws std::invalid_argument unless the grids' rows and columns are multiples of spatial_merge_size.
WindowOrder window_order(const std::vector<ImageGrid>& grids, const WindowOptions& options);

// config: config.json's content, in the layouts of transformers 5 (text_config, vision_config) and 4 (text settings at
// the top). Parameters are uninitialised: use models::load or models::create. Throws std::invalid_argument naming the
// key that is missing, of the wrong kind or out of range, or the feature that is not supported (sliding windows, scaled
// rotary embeddings, activations other than silu).
std::shared_ptr<VisionLanguageModel> make_qwen2_5_vl(const Json& config);

}  // namespace thinkvg::models
