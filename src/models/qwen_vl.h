#pragma once

// What Qwen2-VL, Qwen2.5-VL and Qwen3-VL share: grids of merged patches, multimodal positions, rotary attention in the
// tower. Shape letters: T tokens, P image patches before merging, I image tokens after it, D width.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "models/decoder.h"

namespace thinkvg::models {

struct QwenVlNames {
  const char* model_type;
  const char* text_type;
  const char* vision_type;
  const char* architecture;
  double rope_theta;  // where the file has none
};

// The layout of transformers 5, whatever came; keys that this code does not know are kept.
Json nest_qwen_config(const Json& config, const QwenVlNames& names);

// Text part without mrope kind; checks mrope_section against `head_dim`.
DecoderConfig read_qwen_text(const Json& text_config, RopeConfig::Kind kind);
SpecialTokens read_qwen_tokens(const Json& nested);

// How a tower cuts pictures.
struct QwenPatchConfig {
  std::int64_t in_channels = 3;
  std::int64_t patch_size = 14;
  std::int64_t temporal_patch_size = 2;
  std::int64_t spatial_merge_size = 2;

  void read(const ConfigReader& vision);
  std::int64_t unit() const { return spatial_merge_size * spatial_merge_size; }
  std::vector<std::int64_t> kernel() const { return {in_channels, temporal_patch_size, patch_size, patch_size}; }
  std::int64_t patch_width() const { return in_channels * temporal_patch_size * patch_size * patch_size; }
};

// Throws std::invalid_argument unless rows and columns are positive multiples of `merge`.
void check_grids(const std::vector<ImageGrid>& grids, std::int64_t merge);
// Row and column of every patch, [2, P], in the processor's order: merged cells in rows, the patches of a cell
// together.
at::Tensor patch_coordinates(const std::vector<ImageGrid>& grids, std::int64_t merge);
// Patches of each frame: the blocks of full attention.
std::vector<std::int64_t> frame_lengths(const std::vector<ImageGrid>& grids);

class QwenVisionAttention final : public torch::nn::Module {
 public:
  QwenVisionAttention(std::int64_t width, std::int64_t num_heads);
  // [P, D] -> [P, D]; lengths: patches of the blocks that see each other.
  at::Tensor forward(const at::Tensor& hidden, const nn::RotaryTable& rotary,
                     const std::vector<std::int64_t>& lengths) const;

 private:
  std::int64_t num_heads_;
  std::shared_ptr<nn::Linear> qkv_;
  std::shared_ptr<nn::Linear> proj_;
};

// norm, attention, norm, MLP: the block of Qwen2-VL's and Qwen3-VL's towers.
class QwenVisionBlock final : public nn::Block {
 public:
  struct Shape {
    std::int64_t width = 0, inner_width = 0, num_heads = 0;
  };
  QwenVisionBlock(const Shape& shape, nn::Activation activation, const std::pair<const char*, const char*>& mlp_names);
  at::Tensor forward(const at::Tensor& input, const nn::RotaryTable& rotary,
                     const std::vector<std::int64_t>& lengths) const;

 private:
  std::shared_ptr<nn::LayerNorm> norm1_;
  std::shared_ptr<nn::LayerNorm> norm2_;
  std::shared_ptr<QwenVisionAttention> attn_;
  std::shared_ptr<Mlp> mlp_;
};

class QwenVl : public DecoderModel {
 public:
  std::int64_t num_image_tokens(const ImageGrid& grid) const override {
    return grid.t * (grid.h / patches_.spatial_merge_size) * (grid.w / patches_.spatial_merge_size);
  }
  at::Tensor encode_images(const PixelPatches& patches) override;
  TokenPositions token_positions(const std::vector<std::int64_t>& ids,
                                 const std::vector<ImageGrid>& grids) const override;

 protected:
  QwenVl(Json json, DecoderConfig text, QwenPatchConfig patches);
  virtual at::Tensor run_tower(const PixelPatches& patches, bool checkpointing) const = 0;

 private:
  QwenPatchConfig patches_;
};

// Published checkpoints of Qwen2-VL and Qwen2.5-VL say "visual." and "model."; transformers 5 renames both.
class NestedQwenVl : public QwenVl {
 public:
  ModelPart part_of(const std::string& name) const override;
  std::string registered_name(const std::string& name) const override;
  std::string transformers_name(const std::string& name) const override;

 protected:
  using QwenVl::QwenVl;
};

}  // namespace thinkvg::models
