#include "thinkvg/models/qwen2_vl.h"

#include <ATen/ATen.h>

#include <utility>

#include "models/qwen_vl.h"

namespace thinkvg::models {
namespace {

constexpr QwenVlNames kNames = {"qwen2_vl", "qwen2_vl_text", "qwen2_vl_vision", "Qwen2VLForConditionalGeneration", 1e6};

struct VisionConfig {
  QwenPatchConfig patches;
  std::int64_t depth = 32;
  std::int64_t width = 1280;      // "embed_dim"
  std::int64_t out_width = 3584;  // "hidden_size"
  std::int64_t inner_width = 5120;
  std::int64_t num_heads = 16;
  nn::Activation activation = nn::Activation::quick_gelu;
  double rope_theta = 1e4;
};

VisionConfig read_vision(const Json& config) {
  const ConfigReader reader(config, "vision_config");
  VisionConfig vision;
  vision.patches.read(reader);
  vision.depth = reader.positive("depth", vision.depth);
  vision.width = reader.positive("embed_dim", vision.width);
  vision.out_width = reader.positive("hidden_size", vision.out_width);
  vision.num_heads = reader.positive("num_heads", vision.num_heads);
  const double ratio = reader.number("mlp_ratio", 4);
  if (!(ratio > 0)) throw_invalid("config.json: vision_config.mlp_ratio is {}, expected a positive number", ratio);
  vision.inner_width = static_cast<std::int64_t>(static_cast<double>(vision.width) * ratio);
  vision.activation = reader.activation("hidden_act", "quick_gelu");
  if (reader.has("rope_parameters")) {
    vision.rope_theta =
        ConfigReader(reader.at("rope_parameters"), reader.name("rope_parameters")).number("rope_theta", 1e4);
  }
  if (vision.width % vision.num_heads != 0 || (vision.width / vision.num_heads) % 4 != 0) {
    throw_invalid("config.json: vision_config.embed_dim {} over num_heads {} must be a head width that 4 divides",
                  vision.width, vision.num_heads);
  }
  return vision;
}

// Norm, then the cells of merge x merge patches become one token.
class PatchMerger final : public torch::nn::Module {
 public:
  explicit PatchMerger(const VisionConfig& config)
      : width_(config.width * config.patches.unit()),
        ln_q_(register_module("ln_q", std::make_shared<nn::LayerNorm>(config.width, 1e-6))),
        mlp_(register_module("mlp", std::make_shared<Mlp>(Mlp::Shape{width_, width_, config.out_width},
                                                          nn::Activation::gelu, std::pair{"0", "2"}))) {}

  // [P, D] -> [I, out].
  at::Tensor forward(const at::Tensor& hidden) const {
    return mlp_->forward(ln_q_->forward(hidden).view({-1, width_}));
  }

 private:
  std::int64_t width_;
  std::shared_ptr<nn::LayerNorm> ln_q_;
  std::shared_ptr<Mlp> mlp_;
};

class VisionTower final : public torch::nn::Module {
 public:
  explicit VisionTower(const VisionConfig& config) : config_(config) {
    const auto patch_embed = register_module("patch_embed", std::make_shared<nn::Children>());
    projection_ =
        patch_embed->add("proj", std::make_shared<PatchProjection>(config.width, config.patches.kernel(), false));
    const auto blocks = register_module("blocks", std::make_shared<nn::Children>());
    const QwenVisionBlock::Shape shape{config.width, config.inner_width, config.num_heads};
    for (std::int64_t i = 0; i < config.depth; ++i) {
      blocks_.push_back(
          blocks->add(i, std::make_shared<QwenVisionBlock>(shape, config.activation, std::pair{"fc1", "fc2"})));
    }
    merger_ = register_module("merger", std::make_shared<PatchMerger>(config));
  }

  at::Tensor forward(const PixelPatches& patches, bool checkpointing) const {
    const at::Tensor places = patch_coordinates(patches.grids, config_.patches.spatial_merge_size);
    const nn::RotaryTable rotary =
        nn::axial_rotary(places.to(patches.values.device()), config_.rope_theta, config_.width / config_.num_heads);
    const std::vector<std::int64_t> frames = frame_lengths(patches.grids);
    at::Tensor hidden = projection_->forward(patches.values);
    for (const auto& block : blocks_) {
      const auto run = [block, rotary, frames](const at::Tensor& input) {
        return block->forward(input, rotary, frames);
      };
      hidden = nn::run_block(*block, run, hidden, checkpointing);
    }
    return merger_->forward(hidden);
  }

 private:
  VisionConfig config_;
  std::shared_ptr<PatchProjection> projection_;
  std::vector<std::shared_ptr<QwenVisionBlock>> blocks_;
  std::shared_ptr<PatchMerger> merger_;
};

DecoderConfig read_text(const Json& nested) {
  DecoderConfig text = read_qwen_text(nested.at("text_config"), RopeConfig::Kind::sections);
  text.qkv_bias = true;
  return text;
}

class Qwen2Vl final : public NestedQwenVl {
 public:
  explicit Qwen2Vl(const Json& nested)
      : NestedQwenVl(nested, read_text(nested), read_vision(nested.at("vision_config")).patches) {
    const VisionConfig vision = read_vision(nested.at("vision_config"));
    if (vision.out_width != text().hidden_size) {
      throw_invalid("config.json: vision_config.hidden_size {} must equal text_config.hidden_size {}", vision.out_width,
                    text().hidden_size);
    }
    visual_ = register_module("visual", std::make_shared<VisionTower>(vision));
    make_language(*this, "model", *this, ConfigReader(nested, "").flag("tie_word_embeddings", false));
  }

 private:
  at::Tensor run_tower(const PixelPatches& patches, bool checkpointing) const override {
    return visual_->forward(patches, checkpointing);
  }
  std::shared_ptr<VisionTower> visual_;
};

}  // namespace

std::shared_ptr<VisionLanguageModel> make_qwen2_vl(const Json& config) {
  return std::make_shared<Qwen2Vl>(nest_qwen_config(config, kNames));
}

}  // namespace thinkvg::models
