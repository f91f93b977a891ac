#pragma once

// Qwen2.5-VL (Bai et al., 2025, arXiv 2502.13923): a vision tower with window attention and a decoder with
// multimodal rotary positions. Equal to Qwen2_5_VLForConditionalGeneration of transformers for text and still pictures.
// Shape letters: T tokens, P image patches before merging, I image tokens after it, D width.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "thinkvg/core/json.h"
#include "thinkvg/models/vision_language_model.h"

namespace thinkvg::models {

struct Qwen2_5VlTextConfig {
  std::int64_t vocab_size = 0;
  std::int64_t hidden_size = 0;
  std::int64_t intermediate_size = 0;
  std::int64_t num_hidden_layers = 0;
  std::int64_t num_attention_heads = 0;
  std::int64_t num_key_value_heads = 0;
  double rms_norm_eps = 1e-6;
  double rope_theta = 1e6;
  std::vector<std::int64_t> mrope_section;  // sums to half the head width
};

struct Qwen2_5VlVisionConfig {
  std::int64_t depth = 32;
  std::int64_t hidden_size = 3584;
  std::int64_t intermediate_size = 3420;
  std::int64_t num_heads = 16;
  std::int64_t in_channels = 3;
  std::int64_t patch_size = 14;
  std::int64_t temporal_patch_size = 2;
  std::int64_t spatial_merge_size = 2;
  std::int64_t window_size = 112;  // pixels
  std::int64_t out_hidden_size = 3584;
  std::vector<std::int64_t> fullatt_block_indexes = {7, 15, 23, 31};
  double rope_theta = 1e4;
};

// Reads config.json's content in the layouts of transformers 5 (text_config, vision_config) and 4 (text settings at
// the top). Throws std::invalid_argument naming the key that is missing, of the wrong kind or out of range, or the
// feature that is not supported (sliding windows, scaled rotary embeddings, activations other than silu).
struct Qwen2_5VlConfig {
  Qwen2_5VlTextConfig text;
  Qwen2_5VlVisionConfig vision;
  SpecialTokens tokens;
  bool tie_word_embeddings = false;

  explicit Qwen2_5VlConfig(const Json& config);
};

// The order in which a tower sees its patches: window by window.
struct WindowOrder {
  std::vector<std::int64_t> units;           // position in the new order -> merged cell in the old one
  std::vector<std::int64_t> window_lengths;  // patches of each window
  std::vector<std::int64_t> frame_lengths;   // patches of each frame: the blocks of full attention
};
WindowOrder window_order(const std::vector<ImageGrid>& grids, const Qwen2_5VlVisionConfig& config);

// config: config.json's content. Parameters are uninitialised: use models::load or models::create.
std::shared_ptr<VisionLanguageModel> make_qwen2_5_vl(const Json& config);

}  // namespace thinkvg::models
