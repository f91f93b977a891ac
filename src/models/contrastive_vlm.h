#pragma once

// What LLaVA and Gemma 3 share: a contrastively trained tower (CLIP, SigLIP) that sees one square size, and the names
// of Hugging Face's LLaVA layout. Shape letters: N pictures, P patches of one, D width of the tower.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "models/decoder.h"

namespace thinkvg::models {

// `object` with the defaults that it lacks, or has as null.
Json with_defaults(Json object, const Json& defaults);

// config.json's vision_config of model_type clip_vision_model or siglip_vision_model, with the defaults of
// transformers.
struct TowerConfig {
  bool is_clip = true;  // a class token, a norm before the layers, no bias in the patch projection
  std::int64_t hidden_size = 0;
  std::int64_t intermediate_size = 0;
  std::int64_t num_hidden_layers = 0;
  std::int64_t num_attention_heads = 0;
  std::int64_t num_channels = 3;
  std::int64_t image_size = 0;
  std::int64_t patch_size = 0;
  nn::Activation activation = nn::Activation::quick_gelu;
  double layer_norm_eps = 1e-5;

  explicit TowerConfig(const Json& vision_config);
  std::int64_t patches_a_side() const { return image_size / patch_size; }
  std::int64_t num_patches() const { return patches_a_side() * patches_a_side(); }
  // With the class token.
  std::int64_t num_places() const { return num_patches() + (is_clip ? 1 : 0); }
};

class TowerLayer;

class ContrastiveTower final : public torch::nn::Module {
 public:
  explicit ContrastiveTower(const TowerConfig& config);
  // Hidden states [N, places, D] behind each wanted number of layers (0: what enters the first one).
  std::vector<at::Tensor> hidden_states(const PixelPatches& patches, const std::vector<std::int64_t>& wanted,
                                        bool checkpointing) const;
  // Behind the last layer and its norm.
  at::Tensor last_state(const PixelPatches& patches, bool checkpointing) const;

 private:
  TowerConfig config_;
  at::Tensor class_embedding_;
  std::shared_ptr<PatchProjection> patch_embedding_;
  std::shared_ptr<nn::Embedding> position_embedding_;
  std::shared_ptr<nn::LayerNorm> pre_layrnorm_;  // as checkpoints spell it
  std::vector<std::shared_ptr<TowerLayer>> layers_;
  std::shared_ptr<nn::LayerNorm> post_layernorm_;
};

// Registers under the names of published checkpoints: vision_tower.vision_model, multi_modal_projector,
// language_model.model and language_model.lm_head.
class ContrastiveVlm : public DecoderModel {
 public:
  std::int64_t num_image_tokens(const ImageGrid& grid) const override;
  at::Tensor encode_images(const PixelPatches& patches) override;
  TokenPositions token_positions(const std::vector<std::int64_t>& ids,
                                 const std::vector<ImageGrid>& grids) const override;
  ModelPart part_of(const std::string& name) const override;
  std::string registered_name(const std::string& name) const override;
  std::string transformers_name(const std::string& name) const override;

 protected:
  struct Parts {
    DecoderConfig text;
    SpecialTokens tokens;
    TowerConfig tower;
    std::int64_t tokens_a_picture = 0;
    bool tied = false;
  };
  ContrastiveVlm(Json json, const Parts& parts);
  virtual at::Tensor project(const PixelPatches& patches, bool checkpointing) const = 0;
  const TowerConfig& tower_config() const { return tower_config_; }
  const ContrastiveTower& tower() const { return *tower_; }

 private:
  TowerConfig tower_config_;
  std::int64_t tokens_a_picture_;
  std::shared_ptr<ContrastiveTower> tower_;
};

}  // namespace thinkvg::models
