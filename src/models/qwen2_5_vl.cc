#include "thinkvg/models/qwen2_5_vl.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <utility>

#include "models/qwen_vl.h"

namespace thinkvg::models {
namespace {

constexpr QwenVlNames kNames = {"qwen2_5_vl", "qwen2_5_vl_text", "qwen2_5_vl_vision",
                                "Qwen2_5_VLForConditionalGeneration", 1e6};

struct VisionConfig {
  QwenPatchConfig patches;
  std::int64_t depth = 32;
  std::int64_t hidden_size = 3584;
  std::int64_t intermediate_size = 3420;
  std::int64_t num_heads = 16;
  std::int64_t window_size = 112;  // pixels
  std::int64_t out_hidden_size = 3584;
  std::vector<std::int64_t> fullatt_block_indexes = {7, 15, 23, 31};
  double rope_theta = 1e4;
};

VisionConfig read_vision(const Json& config) {
  const ConfigReader reader(config, "vision_config");
  VisionConfig vision;
  vision.patches.read(reader);
  vision.depth = reader.positive("depth", vision.depth);
  vision.hidden_size = reader.positive("hidden_size", vision.hidden_size);
  vision.intermediate_size = reader.positive("intermediate_size", vision.intermediate_size);
  vision.num_heads = reader.positive("num_heads", vision.num_heads);
  vision.window_size = reader.positive("window_size", vision.window_size);
  vision.out_hidden_size = reader.positive("out_hidden_size", vision.out_hidden_size);
  vision.fullatt_block_indexes = reader.integers("fullatt_block_indexes", vision.fullatt_block_indexes);
  if (reader.has("rope_parameters")) {
    vision.rope_theta =
        ConfigReader(reader.at("rope_parameters"), reader.name("rope_parameters")).number("rope_theta", 1e4);
  }
  if (vision.hidden_size % vision.num_heads != 0 || (vision.hidden_size / vision.num_heads) % 4 != 0) {
    throw_invalid("config.json: vision_config.hidden_size {} over num_heads {} must be a head width that 4 divides",
                  vision.hidden_size, vision.num_heads);
  }
  if (vision.window_size / vision.patches.spatial_merge_size / vision.patches.patch_size == 0) {
    throw_invalid("config.json: vision_config.window_size {} is smaller than one merged cell of {} pixels",
                  vision.window_size, vision.patches.spatial_merge_size * vision.patches.patch_size);
  }
  reader.require("hidden_act", "silu");
  return vision;
}

class VisionBlock final : public nn::Block {
 public:
  explicit VisionBlock(const VisionConfig& config)
      : norm1_(register_module("norm1", std::make_shared<nn::RmsNorm>(config.hidden_size, 1e-6))),
        norm2_(register_module("norm2", std::make_shared<nn::RmsNorm>(config.hidden_size, 1e-6))),
        attn_(register_module("attn", std::make_shared<QwenVisionAttention>(config.hidden_size, config.num_heads))),
        mlp_(register_module("mlp",
                             std::make_shared<nn::GatedMlp>(config.hidden_size, config.intermediate_size, true))) {}

  at::Tensor forward(const at::Tensor& input, const nn::RotaryTable& rotary,
                     const std::vector<std::int64_t>& lengths) const {
    const at::Tensor hidden = input + attn_->forward(norm1_->forward(input), rotary, lengths);
    return hidden + mlp_->forward(norm2_->forward(hidden));
  }

 private:
  std::shared_ptr<nn::RmsNorm> norm1_;
  std::shared_ptr<nn::RmsNorm> norm2_;
  std::shared_ptr<QwenVisionAttention> attn_;
  std::shared_ptr<nn::GatedMlp> mlp_;
};

// Norm, then the cells of merge x merge patches become one token.
class PatchMerger final : public torch::nn::Module {
 public:
  explicit PatchMerger(const VisionConfig& config)
      : width_(config.hidden_size * config.patches.unit()),
        ln_q_(register_module("ln_q", std::make_shared<nn::RmsNorm>(config.hidden_size, 1e-6))),
        mlp_(register_module("mlp", std::make_shared<Mlp>(Mlp::Shape{width_, width_, config.out_hidden_size},
                                                          nn::Activation::gelu, std::pair{"0", "2"}))) {}

  // [P, D] -> [I, out].
  at::Tensor forward(const at::Tensor& hidden) const {
    return mlp_->forward(ln_q_->forward(hidden).view({-1, width_}));
  }

 private:
  std::int64_t width_;
  std::shared_ptr<nn::RmsNorm> ln_q_;
  std::shared_ptr<Mlp> mlp_;
};

class VisionTower final : public torch::nn::Module {
 public:
  explicit VisionTower(const VisionConfig& config) : config_(config) {
    const auto patch_embed = register_module("patch_embed", std::make_shared<nn::Children>());
    projection_ =
        patch_embed->add("proj", std::make_shared<PatchProjection>(config.hidden_size, config.patches.kernel(), false));
    const auto blocks = register_module("blocks", std::make_shared<nn::Children>());
    for (std::int64_t i = 0; i < config.depth; ++i) {
      blocks_.push_back(blocks->add(i, std::make_shared<VisionBlock>(config)));
    }
    merger_ = register_module("merger", std::make_shared<PatchMerger>(config));
  }

  // Patches -> [I, out].
  at::Tensor forward(const PixelPatches& patches, bool checkpointing) const {
    const std::int64_t merge = config_.patches.spatial_merge_size;
    const std::int64_t unit = config_.patches.unit();
    const WindowOrder order = window_order(patches.grids, {config_.window_size, config_.patches.patch_size, merge});
    const std::vector<std::int64_t> frames = frame_lengths(patches.grids);
    const at::Device device = patches.values.device();
    const at::Tensor units = at::tensor(order.units, at::kLong);
    const at::Tensor rows = (units.unsqueeze(1) * unit + at::arange(unit)).flatten();
    const nn::RotaryTable rotary =
        nn::axial_rotary(patch_coordinates(patches.grids, merge).index_select(1, rows).to(device), config_.rope_theta,
                         config_.hidden_size / config_.num_heads);
    // Re-ordering the patches themselves costs no gradient.
    at::Tensor hidden = projection_->forward(patches.values.index_select(0, rows.to(device)));
    for (std::int64_t i = 0; i < config_.depth; ++i) {
      const auto& full = config_.fullatt_block_indexes;
      const bool is_full = std::find(full.begin(), full.end(), i) != full.end();
      const auto run = [block = blocks_[static_cast<std::size_t>(i)], rotary,
                        lengths = is_full ? frames : order.window_lengths](const at::Tensor& input) {
        return block->forward(input, rotary, lengths);
      };
      hidden = nn::run_block(*blocks_[static_cast<std::size_t>(i)], run, hidden, checkpointing);
    }
    return merger_->forward(hidden).index_select(0, at::argsort(units).to(device));
  }

 private:
  VisionConfig config_;
  std::shared_ptr<PatchProjection> projection_;
  std::vector<std::shared_ptr<VisionBlock>> blocks_;
  std::shared_ptr<PatchMerger> merger_;
};

DecoderConfig read_text(const Json& nested) {
  DecoderConfig text = read_qwen_text(nested.at("text_config"), RopeConfig::Kind::sections);
  text.qkv_bias = true;
  return text;
}

class Qwen2_5Vl final : public NestedQwenVl {
 public:
  explicit Qwen2_5Vl(const Json& nested)
      : NestedQwenVl(nested, read_text(nested), read_vision(nested.at("vision_config")).patches) {
    const VisionConfig vision = read_vision(nested.at("vision_config"));
    if (vision.out_hidden_size != text().hidden_size) {
      throw_invalid("config.json: vision_config.out_hidden_size {} must equal text_config.hidden_size {}",
                    vision.out_hidden_size, text().hidden_size);
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

WindowOrder window_order(const std::vector<ImageGrid>& grids, const WindowOptions& options) {
  const std::int64_t merge = options.spatial_merge_size;
  const std::int64_t side = options.window_size / merge / options.patch_size;
  check_grids(grids, merge);
  WindowOrder order;
  std::int64_t base = 0;
  for (const ImageGrid& grid : grids) {
    const std::int64_t rows = grid.h / merge;
    const std::int64_t columns = grid.w / merge;
    for (std::int64_t t = 0; t < grid.t; ++t) {
      for (std::int64_t top = 0; top < rows; top += side) {
        for (std::int64_t left = 0; left < columns; left += side) {
          const std::int64_t bottom = std::min(top + side, rows);
          const std::int64_t right = std::min(left + side, columns);
          for (std::int64_t y = top; y < bottom; ++y) {
            for (std::int64_t x = left; x < right; ++x) order.units.push_back(base + y * columns + x);
          }
          order.window_lengths.push_back((bottom - top) * (right - left) * merge * merge);
        }
      }
      base += rows * columns;
    }
  }
  return order;
}

std::shared_ptr<VisionLanguageModel> make_qwen2_5_vl(const Json& config) {
  return std::make_shared<Qwen2_5Vl>(nest_qwen_config(config, kNames));
}

}  // namespace thinkvg::models
