#include "thinkvg/models/qwen3_vl.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "models/qwen_vl.h"

namespace thinkvg::models {
namespace {

constexpr QwenVlNames kNames = {"qwen3_vl", "qwen3_vl_text", "qwen3_vl_vision", "Qwen3VLForConditionalGeneration", 5e5};

struct VisionConfig {
  QwenPatchConfig patches;
  std::int64_t depth = 27;
  std::int64_t hidden_size = 1152;
  std::int64_t intermediate_size = 4304;
  std::int64_t num_heads = 16;
  std::int64_t out_hidden_size = 3584;
  std::int64_t num_position_embeddings = 2304;
  std::vector<std::int64_t> deepstack_visual_indexes = {8, 16, 24};
  nn::Activation activation = nn::Activation::gelu_tanh;
  double rope_theta = 1e4;

  std::int64_t positions_a_side() const {
    return std::llround(std::floor(std::sqrt(static_cast<double>(num_position_embeddings))));
  }
};

VisionConfig read_vision(const Json& config) {
  const ConfigReader reader(config, "vision_config");
  VisionConfig vision;
  vision.patches.patch_size = 16;
  vision.patches.read(reader);
  vision.depth = reader.positive("depth", vision.depth);
  vision.hidden_size = reader.positive("hidden_size", vision.hidden_size);
  vision.intermediate_size = reader.positive("intermediate_size", vision.intermediate_size);
  vision.num_heads = reader.positive("num_heads", vision.num_heads);
  vision.out_hidden_size = reader.positive("out_hidden_size", vision.out_hidden_size);
  vision.num_position_embeddings = reader.positive("num_position_embeddings", vision.num_position_embeddings);
  vision.deepstack_visual_indexes = reader.integers("deepstack_visual_indexes", vision.deepstack_visual_indexes);
  vision.activation = reader.activation("hidden_act", "gelu_pytorch_tanh");
  if (reader.has("rope_parameters")) {
    vision.rope_theta =
        ConfigReader(reader.at("rope_parameters"), reader.name("rope_parameters")).number("rope_theta", 1e4);
  }
  if (vision.hidden_size % vision.num_heads != 0 || (vision.hidden_size / vision.num_heads) % 4 != 0) {
    throw_invalid("config.json: vision_config.hidden_size {} over num_heads {} must be a head width that 4 divides",
                  vision.hidden_size, vision.num_heads);
  }
  for (const std::int64_t index : vision.deepstack_visual_indexes) {
    if (index < 0 || index >= vision.depth) {
      throw_invalid("config.json: vision_config.deepstack_visual_indexes holds {}; there are layers 0 to {}", index,
                    vision.depth - 1);
    }
  }
  return vision;
}

// The cells of merge x merge patches become one token; the norm stands before that, or behind it (DeepStack).
class PatchMerger final : public torch::nn::Module {
 public:
  PatchMerger(const VisionConfig& config, bool norm_behind)
      : width_(config.hidden_size * config.patches.unit()),
        norm_behind_(norm_behind),
        norm_(
            register_module("norm", std::make_shared<nn::LayerNorm>(norm_behind ? width_ : config.hidden_size, 1e-6))),
        linear_fc1_(register_module("linear_fc1", std::make_shared<nn::Linear>(width_, width_, true))),
        linear_fc2_(register_module("linear_fc2", std::make_shared<nn::Linear>(width_, config.out_hidden_size, true))) {
  }

  // [P, D] -> [I, out].
  at::Tensor forward(const at::Tensor& hidden) const {
    const at::Tensor cells =
        norm_behind_ ? norm_->forward(hidden.reshape({-1, width_})) : norm_->forward(hidden).view({-1, width_});
    return linear_fc2_->forward(at::gelu(linear_fc1_->forward(cells)));
  }

 private:
  std::int64_t width_;
  bool norm_behind_;
  std::shared_ptr<nn::LayerNorm> norm_;
  std::shared_ptr<nn::Linear> linear_fc1_;
  std::shared_ptr<nn::Linear> linear_fc2_;
};

class VisionTower final : public torch::nn::Module {
 public:
  explicit VisionTower(const VisionConfig& config) : config_(config) {
    const auto patch_embed = register_module("patch_embed", std::make_shared<nn::Children>());
    projection_ =
        patch_embed->add("proj", std::make_shared<PatchProjection>(config.hidden_size, config.patches.kernel(), true));
    pos_embed_ = register_module("pos_embed",
                                 std::make_shared<nn::Embedding>(config.num_position_embeddings, config.hidden_size));
    const auto blocks = register_module("blocks", std::make_shared<nn::Children>());
    const QwenVisionBlock::Shape shape{config.hidden_size, config.intermediate_size, config.num_heads};
    for (std::int64_t i = 0; i < config.depth; ++i) {
      blocks_.push_back(blocks->add(
          i, std::make_shared<QwenVisionBlock>(shape, config.activation, std::pair{"linear_fc1", "linear_fc2"})));
    }
    merger_ = register_module("merger", std::make_shared<PatchMerger>(config, false));
    const auto mergers = register_module("deepstack_merger_list", std::make_shared<nn::Children>());
    for (std::size_t i = 0; i < config.deepstack_visual_indexes.size(); ++i) {
      deepstack_.push_back(mergers->add(static_cast<std::int64_t>(i), std::make_shared<PatchMerger>(config, true)));
    }
  }

  // Patches -> [I, out (1 + n)].
  at::Tensor forward(const PixelPatches& patches, bool checkpointing) const {
    const at::Device device = patches.values.device();
    const at::Tensor places = patch_coordinates(patches.grids, config_.patches.spatial_merge_size);
    const nn::RotaryTable rotary =
        nn::axial_rotary(places.to(device), config_.rope_theta, config_.hidden_size / config_.num_heads);
    const std::vector<std::int64_t> frames = frame_lengths(patches.grids);
    at::Tensor hidden = projection_->forward(patches.values);
    hidden = hidden + position_embeddings(patches.grids, places, device).to(hidden.scalar_type());
    std::vector<at::Tensor> features(1 + deepstack_.size());
    for (std::size_t i = 0; i < blocks_.size(); ++i) {
      const auto run = [block = blocks_[i], rotary, frames](const at::Tensor& input) {
        return block->forward(input, rotary, frames);
      };
      hidden = nn::run_block(*blocks_[i], run, hidden, checkpointing);
      const auto& taps = config_.deepstack_visual_indexes;
      const auto tap = std::find(taps.begin(), taps.end(), static_cast<std::int64_t>(i));
      if (tap != taps.end()) {
        const auto at = static_cast<std::size_t>(tap - taps.begin());
        features[1 + at] = deepstack_[at]->forward(hidden);
      }
    }
    features[0] = merger_->forward(hidden);
    return at::cat(features, 1);
  }

 private:
  // The learned square table at each patch's place, interpolated between its four neighbours, corners on corners. [P,
  // D]
  at::Tensor position_embeddings(const std::vector<ImageGrid>& grids, const at::Tensor& places,
                                 const at::Device& device) const {
    const std::int64_t side = config_.positions_a_side();
    const auto num_patches = places.size(1);
    at::Tensor indices = at::empty({num_patches, 4}, at::kLong);
    at::Tensor weights = at::empty({num_patches, 4}, at::kFloat);
    const auto place = places.accessor<std::int64_t, 2>();
    auto index = indices.accessor<std::int64_t, 2>();
    auto weight = weights.accessor<float, 2>();
    struct Axis {
      std::int64_t low, high;
      float high_weight;
    };
    const auto locate = [side](std::int64_t at, std::int64_t size) {
      const float source = static_cast<float>(at) * static_cast<float>(side - 1) /
                           static_cast<float>(std::max<std::int64_t>(1, size - 1));
      const float floor = std::floor(source);
      const auto low = static_cast<std::int64_t>(floor);
      return Axis{low, std::min(low + 1, side - 1), source - floor};
    };
    std::int64_t p = 0;
    for (const ImageGrid& grid : grids) {
      for (std::int64_t k = 0; k < grid.t * grid.h * grid.w; ++k, ++p) {
        const Axis y = locate(place[0][p], grid.h), x = locate(place[1][p], grid.w);
        index[p][0] = y.low * side + x.low;
        index[p][1] = y.low * side + x.high;
        index[p][2] = y.high * side + x.low;
        index[p][3] = y.high * side + x.high;
        weight[p][0] = (1 - y.high_weight) * (1 - x.high_weight);
        weight[p][1] = (1 - y.high_weight) * x.high_weight;
        weight[p][2] = y.high_weight * (1 - x.high_weight);
        weight[p][3] = y.high_weight * x.high_weight;
      }
    }
    return (pos_embed_->forward(indices.to(device)) * weights.to(device).unsqueeze(2)).sum(1);
  }

  VisionConfig config_;
  std::shared_ptr<PatchProjection> projection_;
  std::shared_ptr<nn::Embedding> pos_embed_;
  std::vector<std::shared_ptr<QwenVisionBlock>> blocks_;
  std::shared_ptr<PatchMerger> merger_;
  std::vector<std::shared_ptr<PatchMerger>> deepstack_;
};

DecoderConfig read_text(const Json& nested) {
  const Json& section = nested.at("text_config");
  Json with_width = section;
  if (!with_width.contains("head_dim") || with_width.at("head_dim").is_null()) with_width["head_dim"] = 128;
  DecoderConfig text = read_qwen_text(with_width, RopeConfig::Kind::interleaved);
  const bool bias = ConfigReader(section, "text_config").flag("attention_bias", false);
  text.qkv_bias = bias;
  text.output_bias = bias;
  text.head_norms = true;
  return text;
}

class Qwen3Vl final : public QwenVl {
 public:
  explicit Qwen3Vl(const Json& nested)
      : QwenVl(nested, read_text(nested), read_vision(nested.at("vision_config")).patches) {
    const VisionConfig vision = read_vision(nested.at("vision_config"));
    if (vision.out_hidden_size != text().hidden_size) {
      throw_invalid("config.json: vision_config.out_hidden_size {} must equal text_config.hidden_size {}",
                    vision.out_hidden_size, text().hidden_size);
    }
    if (std::ssize(vision.deepstack_visual_indexes) > text().num_hidden_layers) {
      throw_invalid("config.json: vision_config.deepstack_visual_indexes holds {} layers for the {} of the decoder",
                    vision.deepstack_visual_indexes.size(), text().num_hidden_layers);
    }
    const auto model = register_module("model", std::make_shared<nn::Children>());
    visual_ = model->add("visual", std::make_shared<VisionTower>(vision));
    make_language(*model, "language_model", *this, ConfigReader(nested, "").flag("tie_word_embeddings", false));
  }

  ModelPart part_of(const std::string& name) const override {
    if (name.starts_with("model.visual.merger") || name.starts_with("model.visual.deepstack_merger_list"))
      return ModelPart::projector;
    return name.starts_with("model.visual") ? ModelPart::vision : ModelPart::language;
  }
  // Published checkpoints have the names of transformers 5.
  std::string registered_name(const std::string& name) const override { return name; }
  std::string transformers_name(const std::string& name) const override { return name; }

 private:
  at::Tensor run_tower(const PixelPatches& patches, bool checkpointing) const override {
    return visual_->forward(patches, checkpointing);
  }
  std::shared_ptr<VisionTower> visual_;
};

}  // namespace

std::shared_ptr<VisionLanguageModel> make_qwen3_vl(const Json& config) {
  return std::make_shared<Qwen3Vl>(nest_qwen_config(config, kNames));
}

}  // namespace thinkvg::models
