#include "models/contrastive_vlm.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace thinkvg::models {
namespace {

const Prefixes kToRegistered = {{"model.language_model.", "language_model.model."},
                                {"lm_head.", "language_model.lm_head."},
                                {"model.vision_tower.vision_model.", "vision_tower.vision_model."},
                                {"model.vision_tower.", "vision_tower.vision_model."},
                                {"vision_tower.vision_model.", "vision_tower.vision_model."},
                                {"vision_tower.", "vision_tower.vision_model."},
                                {"model.multi_modal_projector.", "multi_modal_projector."}};
const Prefixes kToTransformers = {{"language_model.model.", "model.language_model."},
                                  {"language_model.lm_head.", "lm_head."},
                                  {"vision_tower.vision_model.", "model.vision_tower."},
                                  {"multi_modal_projector.", "model.multi_modal_projector."}};

}  // namespace

Json with_defaults(Json object, const Json& defaults) {
  for (const auto& [key, value] : defaults.items())
    if (!object.contains(key) || object.at(key).is_null()) object[key] = value;
  return object;
}

TowerConfig::TowerConfig(const Json& vision_config) {
  const std::string type = ConfigReader(vision_config, "vision_config").text("model_type", "clip_vision_model");
  is_clip = type == "clip_vision_model";
  if (!is_clip && type != "siglip_vision_model") {
    throw_invalid("config.json: vision_config.model_type is '{}'; supported are clip_vision_model, siglip_vision_model",
                  type);
  }
  const Json filled = with_defaults(vision_config, {{"hidden_size", 768},
                                                    {"intermediate_size", 3072},
                                                    {"num_hidden_layers", 12},
                                                    {"num_attention_heads", 12},
                                                    {"num_channels", 3},
                                                    {"image_size", 224},
                                                    {"patch_size", is_clip ? 32 : 16},
                                                    {"hidden_act", is_clip ? "quick_gelu" : "gelu_pytorch_tanh"},
                                                    {"layer_norm_eps", is_clip ? 1e-5 : 1e-6}});
  const ConfigReader reader(filled, "vision_config");
  hidden_size = reader.positive("hidden_size");
  intermediate_size = reader.positive("intermediate_size");
  num_hidden_layers = reader.positive("num_hidden_layers");
  num_attention_heads = reader.positive("num_attention_heads");
  num_channels = reader.positive("num_channels");
  image_size = reader.positive("image_size");
  patch_size = reader.positive("patch_size");
  activation = reader.activation("hidden_act", "quick_gelu");
  layer_norm_eps = reader.number("layer_norm_eps", 1e-5);
  if (hidden_size % num_attention_heads != 0) {
    throw_invalid("config.json: vision_config.hidden_size {} must be a multiple of num_attention_heads {}", hidden_size,
                  num_attention_heads);
  }
  if (patch_size > image_size) {
    throw_invalid("config.json: vision_config.patch_size {} is above image_size {}", patch_size, image_size);
  }
}

class TowerLayer final : public nn::Block {
 public:
  explicit TowerLayer(const TowerConfig& config)
      : num_heads_(config.num_attention_heads), head_dim_(config.hidden_size / config.num_attention_heads) {
    const std::int64_t width = config.hidden_size;
    layer_norm1_ = register_module("layer_norm1", std::make_shared<nn::LayerNorm>(width, config.layer_norm_eps));
    const auto attention = register_module("self_attn", std::make_shared<nn::Children>());
    const auto linear = [&](const char* name) {
      return attention->add(name, std::make_shared<nn::Linear>(width, width, true));
    };
    q_proj_ = linear("q_proj");
    k_proj_ = linear("k_proj");
    v_proj_ = linear("v_proj");
    out_proj_ = linear("out_proj");
    layer_norm2_ = register_module("layer_norm2", std::make_shared<nn::LayerNorm>(width, config.layer_norm_eps));
    mlp_ = register_module("mlp", std::make_shared<Mlp>(Mlp::Shape{width, config.intermediate_size, width},
                                                        config.activation, std::pair{"fc1", "fc2"}));
  }

  // [N * places, D] -> the same; lengths: places of each picture.
  at::Tensor forward(const at::Tensor& input, const std::vector<std::int64_t>& lengths) const {
    const at::Tensor normed = layer_norm1_->forward(input);
    const auto heads = [&](const nn::Linear& linear) {
      return linear.forward(normed).view({input.size(0), num_heads_, head_dim_});
    };
    const at::Tensor attended = nn::block_attention(heads(*q_proj_), heads(*k_proj_), heads(*v_proj_), lengths);
    const at::Tensor hidden = input + out_proj_->forward(attended.reshape(input.sizes()));
    return hidden + mlp_->forward(layer_norm2_->forward(hidden));
  }

 private:
  std::int64_t num_heads_;
  std::int64_t head_dim_;
  std::shared_ptr<nn::LayerNorm> layer_norm1_;
  std::shared_ptr<nn::Linear> q_proj_;
  std::shared_ptr<nn::Linear> k_proj_;
  std::shared_ptr<nn::Linear> v_proj_;
  std::shared_ptr<nn::Linear> out_proj_;
  std::shared_ptr<nn::LayerNorm> layer_norm2_;
  std::shared_ptr<Mlp> mlp_;
};

ContrastiveTower::ContrastiveTower(const TowerConfig& config) : config_(config) {
  const std::int64_t width = config.hidden_size;
  const auto embeddings = register_module("embeddings", std::make_shared<nn::Children>());
  if (config.is_clip) class_embedding_ = embeddings->register_parameter("class_embedding", nn::new_parameter({width}));
  patch_embedding_ =
      embeddings->add("patch_embedding",
                      std::make_shared<PatchProjection>(
                          width, std::vector<std::int64_t>{config.num_channels, config.patch_size, config.patch_size},
                          !config.is_clip));
  position_embedding_ =
      embeddings->add("position_embedding", std::make_shared<nn::Embedding>(config.num_places(), width));
  if (config.is_clip) {
    pre_layrnorm_ = register_module("pre_layrnorm", std::make_shared<nn::LayerNorm>(width, config.layer_norm_eps));
  }
  const auto layers =
      register_module("encoder", std::make_shared<nn::Children>())->add("layers", std::make_shared<nn::Children>());
  for (std::int64_t i = 0; i < config.num_hidden_layers; ++i) {
    layers_.push_back(layers->add(i, std::make_shared<TowerLayer>(config)));
  }
  post_layernorm_ = register_module("post_layernorm", std::make_shared<nn::LayerNorm>(width, config.layer_norm_eps));
}

std::vector<at::Tensor> ContrastiveTower::hidden_states(const PixelPatches& patches,
                                                        const std::vector<std::int64_t>& wanted,
                                                        bool checkpointing) const {
  const std::int64_t num_pictures = std::ssize(patches.grids);
  const std::int64_t places = config_.num_places(), width = config_.hidden_size;
  at::Tensor hidden = patch_embedding_->forward(patches.values).view({num_pictures, -1, width});
  if (config_.is_clip) hidden = at::cat({class_embedding_.expand({num_pictures, 1, width}), hidden}, 1);
  hidden = (hidden + position_embedding_->weight).reshape({-1, width});
  if (config_.is_clip) hidden = pre_layrnorm_->forward(hidden);
  const std::vector<std::int64_t> lengths(static_cast<std::size_t>(num_pictures), places);
  const std::int64_t last = *std::max_element(wanted.begin(), wanted.end());
  std::vector<at::Tensor> states(wanted.size());
  for (std::int64_t i = 0;; ++i) {
    for (std::size_t k = 0; k < wanted.size(); ++k)
      if (wanted[k] == i) states[k] = hidden.view({num_pictures, places, width});
    if (i == last) return states;
    const auto layer = layers_[static_cast<std::size_t>(i)];
    const auto run = [layer, lengths](const at::Tensor& input) { return layer->forward(input, lengths); };
    hidden = nn::run_block(*layer, run, hidden, checkpointing);
  }
}

at::Tensor ContrastiveTower::last_state(const PixelPatches& patches, bool checkpointing) const {
  return post_layernorm_->forward(hidden_states(patches, {config_.num_hidden_layers}, checkpointing).front());
}

ContrastiveVlm::ContrastiveVlm(Json json, const Parts& parts)
    : DecoderModel(std::move(json), parts.text, parts.tokens),
      tower_config_(parts.tower),
      tokens_a_picture_(parts.tokens_a_picture) {
  const auto vision_tower = register_module("vision_tower", std::make_shared<nn::Children>());
  tower_ = vision_tower->add("vision_model", std::make_shared<ContrastiveTower>(tower_config_));
  const auto language = register_module("language_model", std::make_shared<nn::Children>());
  make_language(*language, "model", *language, parts.tied);
}

std::int64_t ContrastiveVlm::num_image_tokens(const ImageGrid& grid) const { return grid.t * tokens_a_picture_; }

at::Tensor ContrastiveVlm::encode_images(const PixelPatches& patches) {
  const TowerConfig& tower = tower_config_;
  check_patches(patches, tower.num_channels * tower.patch_size * tower.patch_size);
  const ImageGrid wanted{1, tower.patches_a_side(), tower.patches_a_side()};
  for (const ImageGrid& grid : patches.grids) {
    if (grid != wanted) {
      throw_invalid("encode_images: a grid of {} x {} x {} patches; this tower sees 1 x {} x {}", grid.t, grid.h,
                    grid.w, wanted.h, wanted.w);
    }
  }
  return project(patches, checkpoints_now());
}

TokenPositions ContrastiveVlm::token_positions(const std::vector<std::int64_t>& ids,
                                               const std::vector<ImageGrid>& grids) const {
  std::vector<std::int64_t> lengths;
  for (const ImageGrid& grid : grids) lengths.push_back(num_image_tokens(grid));
  return counted_positions(ids, special_tokens().image, lengths);
}

ModelPart ContrastiveVlm::part_of(const std::string& name) const {
  if (name.starts_with("multi_modal_projector")) return ModelPart::projector;
  return name.starts_with("vision_tower") ? ModelPart::vision : ModelPart::language;
}
std::string ContrastiveVlm::registered_name(const std::string& name) const { return with_prefix(name, kToRegistered); }
std::string ContrastiveVlm::transformers_name(const std::string& name) const {
  return with_prefix(name, kToTransformers);
}

}  // namespace thinkvg::models
