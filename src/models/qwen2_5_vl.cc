#include "thinkvg/models/qwen2_5_vl.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/ranges.h>

#include <algorithm>
#include <numeric>
#include <utility>

#include "thinkvg/core/error.h"
#include "thinkvg/nn/checkpoint.h"
#include "thinkvg/nn/layers.h"
#include "thinkvg/nn/rotary.h"

namespace thinkvg::models {
namespace {

constexpr const char* kFamily = "qwen2_5_vl";
constexpr std::pair<std::string_view, std::string_view> kPrefixes[] = {{"model.visual.", "visual."},
                                                                       {"model.language_model.", "model."}};
// The settings that transformers 4 wrote at the top level and transformers 5 nests.
constexpr const char* kTextKeys[] = {
    "vocab_size",          "hidden_size",         "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads", "hidden_act",        "max_position_embeddings",
    "initializer_range",   "rms_norm_eps",        "use_cache",         "use_sliding_window",
    "sliding_window",      "max_window_layers",   "attention_dropout", "layer_types",
    "rope_parameters",     "rope_scaling",        "rope_theta",        "bos_token_id",
    "eos_token_id",        "pad_token_id"};

// Typed access to one object of config.json, with errors that name the key.
class ConfigReader {
 public:
  ConfigReader(const Json& object, std::string path) : object_(object), path_(std::move(path)) {
    if (!object_.is_object()) throw_invalid("config.json: {} must be an object", path_.empty() ? "the content" : path_);
  }

  bool has(const char* key) const { return object_.contains(key) && !object_.at(key).is_null(); }
  const Json& at(const char* key) const { return object_.at(key); }
  std::string name(const char* key) const { return path_.empty() ? key : path_ + "." + key; }

  std::int64_t integer(const char* key, std::int64_t fallback) const {
    return has(key) ? convert<std::int64_t>(key, object_.at(key).is_number_integer(), "an integer") : fallback;
  }
  std::int64_t positive(const char* key, std::int64_t fallback) const {
    return require_positive(key, integer(key, fallback));
  }
  std::int64_t positive(const char* key) const {
    if (!has(key)) throw_invalid("config.json: {} is missing; expected a positive integer", name(key));
    return positive(key, 0);
  }
  double number(const char* key, double fallback) const {
    return has(key) ? convert<double>(key, object_.at(key).is_number(), "a number") : fallback;
  }
  bool flag(const char* key, bool fallback) const {
    return has(key) ? convert<bool>(key, object_.at(key).is_boolean(), "true or false") : fallback;
  }
  std::string text(const char* key, const std::string& fallback) const {
    return has(key) ? convert<std::string>(key, object_.at(key).is_string(), "a text") : fallback;
  }
  std::vector<std::int64_t> integers(const char* key, std::vector<std::int64_t> fallback) const {
    if (!has(key)) return fallback;
    const Json& value = object_.at(key);
    if (value.is_number_integer()) return {value.get<std::int64_t>()};
    const bool fits = value.is_array() && std::all_of(value.begin(), value.end(),
                                                      [](const Json& item) { return item.is_number_integer(); });
    return convert<std::vector<std::int64_t>>(key, fits, "an integer or a list of integers");
  }

 private:
  template <class Value>
  Value convert(const char* key, bool fits, const char* kind) const {
    if (!fits) throw_invalid("config.json: {} is {}, expected {}", name(key), object_.at(key).dump(), kind);
    return object_.at(key).get<Value>();
  }
  std::int64_t require_positive(const char* key, std::int64_t value) const {
    if (value <= 0) throw_invalid("config.json: {} is {}, expected a positive integer", name(key), value);
    return value;
  }

  const Json& object_;
  std::string path_;
};

// The layout of transformers 5, whatever came; keys that this code does not know are kept.
Json nested_layout(const Json& config) {
  if (!config.is_object()) throw_invalid("config.json: expected an object, got {}", config.type_name());
  Json nested = config;
  if (!nested.contains("text_config") || nested.at("text_config").is_null()) {
    Json text = {{"model_type", "qwen2_5_vl_text"}};
    for (const char* key : kTextKeys) {
      if (!nested.contains(key)) continue;
      text[key] = nested.at(key);
      nested.erase(key);
    }
    nested["text_config"] = std::move(text);
  }
  if (!nested.contains("vision_config")) throw_invalid("config.json: vision_config is missing");
  if (!nested.at("text_config").is_object() || !nested.at("vision_config").is_object()) {
    throw_invalid("config.json: text_config and vision_config must be objects");
  }
  Json& text = nested["text_config"];
  Json& vision = nested["vision_config"];
  vision["model_type"] = "qwen2_5_vl_vision";
  if (vision.contains("in_chans")) {
    if (!vision.contains("in_channels")) vision["in_channels"] = vision.at("in_chans");
    vision.erase("in_chans");
  }
  Json rope = text.value("rope_parameters", Json());
  if (!rope.is_object()) rope = text.value("rope_scaling", Json());
  if (!rope.is_object()) rope = Json::object();
  if (!rope.contains("rope_theta")) rope["rope_theta"] = text.value("rope_theta", Json(1e6));
  const Json kind = rope.value("rope_type", rope.value("type", Json("default")));
  rope["rope_type"] = kind == "mrope" ? Json("default") : kind;
  rope.erase("type");
  text["rope_parameters"] = std::move(rope);
  text.erase("rope_scaling");
  text.erase("rope_theta");
  if (text.value("tie_word_embeddings", Json(false)) == true) nested["tie_word_embeddings"] = true;
  text.erase("tie_word_embeddings");
  nested["model_type"] = kFamily;
  nested["architectures"] = {"Qwen2_5_VLForConditionalGeneration"};
  return nested;
}

Qwen2_5VlTextConfig read_text(const Json& config) {
  const ConfigReader reader(config, "text_config");
  Qwen2_5VlTextConfig text;
  text.vocab_size = reader.positive("vocab_size");
  text.hidden_size = reader.positive("hidden_size");
  text.intermediate_size = reader.positive("intermediate_size");
  text.num_hidden_layers = reader.positive("num_hidden_layers");
  text.num_attention_heads = reader.positive("num_attention_heads");
  text.num_key_value_heads = reader.positive("num_key_value_heads", text.num_attention_heads);
  text.rms_norm_eps = reader.number("rms_norm_eps", 1e-5);
  const ConfigReader rope(reader.at("rope_parameters"), reader.name("rope_parameters"));
  text.rope_theta = rope.number("rope_theta", 1e6);
  text.mrope_section = rope.integers("mrope_section", {16, 24, 24});
  if (rope.text("rope_type", "default") != "default") {
    throw_invalid("config.json: {} is '{}'; only 'default' (unscaled) rotary embeddings are supported",
                  rope.name("rope_type"), rope.text("rope_type", ""));
  }
  if (text.hidden_size % text.num_attention_heads != 0 || (text.hidden_size / text.num_attention_heads) % 2 != 0) {
    throw_invalid(
        "config.json: text_config.hidden_size {} over num_attention_heads {} must be a whole, even head width",
        text.hidden_size, text.num_attention_heads);
  }
  if (text.num_attention_heads % text.num_key_value_heads != 0) {
    throw_invalid("config.json: text_config.num_attention_heads {} must be a multiple of num_key_value_heads {}",
                  text.num_attention_heads, text.num_key_value_heads);
  }
  const std::int64_t half = text.hidden_size / text.num_attention_heads / 2;
  if (std::any_of(text.mrope_section.begin(), text.mrope_section.end(), [](std::int64_t s) { return s < 0; }) ||
      std::accumulate(text.mrope_section.begin(), text.mrope_section.end(), std::int64_t{0}) != half) {
    throw_invalid("config.json: {} is [{}]; expected sections that sum to {}, half the head width",
                  rope.name("mrope_section"), fmt::join(text.mrope_section, ", "), half);
  }
  if (reader.text("hidden_act", "silu") != "silu") {
    throw_invalid("config.json: text_config.hidden_act is '{}', only 'silu' is supported",
                  reader.text("hidden_act", ""));
  }
  if (reader.flag("use_sliding_window", false) && reader.has("sliding_window") &&
      reader.integer("max_window_layers", 80) < text.num_hidden_layers) {
    throw_invalid(
        "config.json: text_config.use_sliding_window is on for some layers; sliding windows are not supported");
  }
  return text;
}

Qwen2_5VlVisionConfig read_vision(const Json& config) {
  const ConfigReader reader(config, "vision_config");
  Qwen2_5VlVisionConfig vision;
  vision.depth = reader.positive("depth", vision.depth);
  vision.hidden_size = reader.positive("hidden_size", vision.hidden_size);
  vision.intermediate_size = reader.positive("intermediate_size", vision.intermediate_size);
  vision.num_heads = reader.positive("num_heads", vision.num_heads);
  vision.in_channels = reader.positive("in_channels", vision.in_channels);
  vision.patch_size = reader.positive("patch_size", vision.patch_size);
  vision.temporal_patch_size = reader.positive("temporal_patch_size", vision.temporal_patch_size);
  vision.spatial_merge_size = reader.positive("spatial_merge_size", vision.spatial_merge_size);
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
  if (vision.window_size / vision.spatial_merge_size / vision.patch_size == 0) {
    throw_invalid("config.json: vision_config.window_size {} is smaller than one merged cell of {} pixels",
                  vision.window_size, vision.spatial_merge_size * vision.patch_size);
  }
  if (reader.text("hidden_act", "silu") != "silu") {
    throw_invalid("config.json: vision_config.hidden_act is '{}', only 'silu' is supported",
                  reader.text("hidden_act", ""));
  }
  return vision;
}

at::Tensor to_tensor(const std::vector<std::int64_t>& values) { return at::tensor(values, at::kLong); }

// Row and column of every patch, [2, P], in the processor's order: merged cells in rows, the patches of a cell
// together.
at::Tensor patch_coordinates(const std::vector<ImageGrid>& grids, std::int64_t merge) {
  std::vector<std::int64_t> rows;
  std::vector<std::int64_t> columns;
  for (const ImageGrid& grid : grids) {
    for (std::int64_t t = 0; t < grid.t; ++t) {
      for (std::int64_t cell_y = 0; cell_y < grid.h; cell_y += merge) {
        for (std::int64_t cell_x = 0; cell_x < grid.w; cell_x += merge) {
          for (std::int64_t y = 0; y < merge; ++y) {
            for (std::int64_t x = 0; x < merge; ++x) {
              rows.push_back(cell_y + y);
              columns.push_back(cell_x + x);
            }
          }
        }
      }
    }
  }
  return at::stack({to_tensor(rows), to_tensor(columns)});
}

class VisionAttention final : public torch::nn::Module {
 public:
  explicit VisionAttention(const Qwen2_5VlVisionConfig& config)
      : num_heads_(config.num_heads),
        qkv_(register_module("qkv", std::make_shared<nn::Linear>(config.hidden_size, 3 * config.hidden_size, true))),
        proj_(register_module("proj", std::make_shared<nn::Linear>(config.hidden_size, config.hidden_size, true))) {}

  // [P, D] -> [P, D]; lengths: patches of the blocks that see each other.
  at::Tensor forward(const at::Tensor& hidden, const nn::RotaryTable& rotary,
                     const std::vector<std::int64_t>& lengths) const {
    const std::int64_t num_patches = hidden.size(0);
    const std::vector<at::Tensor> parts = qkv_->forward(hidden).view({num_patches, 3, num_heads_, -1}).unbind(1);
    const at::Tensor attended =
        nn::block_attention(nn::rotate(parts[0], rotary), nn::rotate(parts[1], rotary), parts[2], lengths);
    return proj_->forward(attended.reshape({num_patches, -1}));
  }

 private:
  std::int64_t num_heads_;
  std::shared_ptr<nn::Linear> qkv_;
  std::shared_ptr<nn::Linear> proj_;
};

class VisionBlock final : public torch::nn::Module {
 public:
  explicit VisionBlock(const Qwen2_5VlVisionConfig& config)
      : norm1_(register_module("norm1", std::make_shared<nn::RmsNorm>(config.hidden_size, 1e-6))),
        norm2_(register_module("norm2", std::make_shared<nn::RmsNorm>(config.hidden_size, 1e-6))),
        attn_(register_module("attn", std::make_shared<VisionAttention>(config))),
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
  std::shared_ptr<VisionAttention> attn_;
  std::shared_ptr<nn::GatedMlp> mlp_;
};

// One linear map per patch; checkpoints store it as a convolution whose stride is its kernel.
class PatchProjection final : public torch::nn::Module {
 public:
  explicit PatchProjection(const Qwen2_5VlVisionConfig& config)
      : weight_(
            register_parameter("weight", at::empty({config.hidden_size, config.in_channels, config.temporal_patch_size,
                                                    config.patch_size, config.patch_size}))) {}

  at::Tensor forward(const at::Tensor& patches) const {
    return at::linear(patches.to(weight_.scalar_type()), weight_.flatten(1));
  }

 private:
  at::Tensor weight_;
};

class PatchEmbed final : public torch::nn::Module {
 public:
  explicit PatchEmbed(const Qwen2_5VlVisionConfig& config)
      : proj_(register_module("proj", std::make_shared<PatchProjection>(config))) {}

  at::Tensor forward(const at::Tensor& patches) const { return proj_->forward(patches); }

 private:
  std::shared_ptr<PatchProjection> proj_;
};

// Norm, then the cells of merge x merge patches become one token.
class PatchMerger final : public torch::nn::Module {
 public:
  explicit PatchMerger(const Qwen2_5VlVisionConfig& config)
      : width_(config.hidden_size * config.spatial_merge_size * config.spatial_merge_size),
        ln_q_(register_module("ln_q", std::make_shared<nn::RmsNorm>(config.hidden_size, 1e-6))) {
    const auto mlp = register_module("mlp", std::make_shared<nn::Children>());
    first_ = mlp->add(0, std::make_shared<nn::Linear>(width_, width_, true));
    second_ = mlp->add(2, std::make_shared<nn::Linear>(width_, config.out_hidden_size, true));
  }

  // [P, D] -> [I, out].
  at::Tensor forward(const at::Tensor& hidden) const {
    return second_->forward(at::gelu(first_->forward(ln_q_->forward(hidden).view({-1, width_}))));
  }

 private:
  std::int64_t width_;
  std::shared_ptr<nn::RmsNorm> ln_q_;
  std::shared_ptr<nn::Linear> first_;
  std::shared_ptr<nn::Linear> second_;
};

class VisionTower final : public torch::nn::Module {
 public:
  explicit VisionTower(const Qwen2_5VlVisionConfig& config)
      : config_(config), patch_embed_(register_module("patch_embed", std::make_shared<PatchEmbed>(config))) {
    const auto blocks = register_module("blocks", std::make_shared<nn::Children>());
    for (std::int64_t i = 0; i < config.depth; ++i) {
      blocks_.push_back(blocks->add(i, std::make_shared<VisionBlock>(config)));
    }
    merger_ = register_module("merger", std::make_shared<PatchMerger>(config));
  }

  // Patches -> [I, out].
  at::Tensor forward(const PixelPatches& patches, bool checkpointing) const {
    const std::int64_t merge = config_.spatial_merge_size;
    const std::int64_t unit = merge * merge;
    const WindowOrder order = window_order(patches.grids, config_);
    const at::Device device = patches.values.device();
    const at::Tensor units = to_tensor(order.units);
    const at::Tensor rows = (units.unsqueeze(1) * unit + at::arange(unit)).flatten();
    const nn::RotaryTable rotary =
        nn::axial_rotary(patch_coordinates(patches.grids, merge).index_select(1, rows).to(device), config_.rope_theta,
                         config_.hidden_size / config_.num_heads);
    // Re-ordering the patches themselves costs no gradient.
    at::Tensor hidden = patch_embed_->forward(patches.values.index_select(0, rows.to(device)));
    for (std::int64_t i = 0; i < config_.depth; ++i) {
      const auto& full = config_.fullatt_block_indexes;
      const bool is_full = std::find(full.begin(), full.end(), i) != full.end();
      const auto run = [block = blocks_[i], rotary, lengths = is_full ? order.frame_lengths : order.window_lengths](
                           const at::Tensor& input) { return block->forward(input, rotary, lengths); };
      hidden = checkpointing ? nn::checkpoint(run, hidden, nn::trained_tensors(*blocks_[i])) : run(hidden);
    }
    return merger_->forward(hidden).index_select(0, at::argsort(units).to(device));
  }

 private:
  Qwen2_5VlVisionConfig config_;
  std::shared_ptr<PatchEmbed> patch_embed_;
  std::vector<std::shared_ptr<VisionBlock>> blocks_;
  std::shared_ptr<PatchMerger> merger_;
};

class DecoderAttention final : public torch::nn::Module {
 public:
  explicit DecoderAttention(const Qwen2_5VlTextConfig& config)
      : num_heads_(config.num_attention_heads),
        num_kv_heads_(config.num_key_value_heads),
        head_dim_(config.hidden_size / config.num_attention_heads),
        q_proj_(
            register_module("q_proj", std::make_shared<nn::Linear>(config.hidden_size, num_heads_ * head_dim_, true))),
        k_proj_(register_module("k_proj",
                                std::make_shared<nn::Linear>(config.hidden_size, num_kv_heads_ * head_dim_, true))),
        v_proj_(register_module("v_proj",
                                std::make_shared<nn::Linear>(config.hidden_size, num_kv_heads_ * head_dim_, true))),
        o_proj_(register_module("o_proj",
                                std::make_shared<nn::Linear>(num_heads_ * head_dim_, config.hidden_size, false))) {}

  // What the tokens attend to, before the output projection.
  at::Tensor attend(const at::Tensor& hidden, const nn::RotaryTable& rotary, nn::AttentionContext& attention,
                    std::int64_t layer) const {
    const std::int64_t num_tokens = hidden.size(0);
    const std::vector<at::Tensor> parts = nn::forward_together(hidden, {q_proj_.get(), k_proj_.get(), v_proj_.get()});
    const at::Tensor query = parts[0].view({num_tokens, num_heads_, head_dim_});
    const at::Tensor key = parts[1].view({num_tokens, num_kv_heads_, head_dim_});
    const at::Tensor value = parts[2].view({num_tokens, num_kv_heads_, head_dim_});
    const at::Tensor attended = attention.attend(layer, nn::rotate(query, rotary), nn::rotate(key, rotary), value);
    return attended.reshape({num_tokens, num_heads_ * head_dim_});
  }

  // residual + the output projection of `attended`.
  at::Tensor project_onto(const at::Tensor& attended, const at::Tensor& residual) const {
    return o_proj_->forward_onto(attended, residual);
  }

 private:
  std::int64_t num_heads_;
  std::int64_t num_kv_heads_;
  std::int64_t head_dim_;
  std::shared_ptr<nn::Linear> q_proj_;
  std::shared_ptr<nn::Linear> k_proj_;
  std::shared_ptr<nn::Linear> v_proj_;
  std::shared_ptr<nn::Linear> o_proj_;
};

class DecoderLayer final : public torch::nn::Module {
 public:
  explicit DecoderLayer(const Qwen2_5VlTextConfig& config)
      : self_attn_(register_module("self_attn", std::make_shared<DecoderAttention>(config))),
        mlp_(register_module("mlp",
                             std::make_shared<nn::GatedMlp>(config.hidden_size, config.intermediate_size, false))),
        input_layernorm_(
            register_module("input_layernorm", std::make_shared<nn::RmsNorm>(config.hidden_size, config.rms_norm_eps))),
        post_attention_layernorm_(register_module(
            "post_attention_layernorm", std::make_shared<nn::RmsNorm>(config.hidden_size, config.rms_norm_eps))) {}

  at::Tensor forward(const at::Tensor& input, const nn::RotaryTable& rotary, nn::AttentionContext& attention,
                     std::int64_t layer) const {
    const at::Tensor attended = self_attn_->attend(input_layernorm_->forward(input), rotary, attention, layer);
    const at::Tensor hidden = self_attn_->project_onto(attended, input);
    return mlp_->forward_onto(post_attention_layernorm_->forward(hidden), hidden);
  }

 private:
  std::shared_ptr<DecoderAttention> self_attn_;
  std::shared_ptr<nn::GatedMlp> mlp_;
  std::shared_ptr<nn::RmsNorm> input_layernorm_;
  std::shared_ptr<nn::RmsNorm> post_attention_layernorm_;
};

class Decoder final : public torch::nn::Module {
 public:
  explicit Decoder(const Qwen2_5VlTextConfig& config)
      : config_(config),
        embed_tokens_(
            register_module("embed_tokens", std::make_shared<nn::Embedding>(config.vocab_size, config.hidden_size))) {
    const auto layers = register_module("layers", std::make_shared<nn::Children>());
    for (std::int64_t i = 0; i < config.num_hidden_layers; ++i) {
      layers_.push_back(layers->add(i, std::make_shared<DecoderLayer>(config)));
    }
    norm_ = register_module("norm", std::make_shared<nn::RmsNorm>(config.hidden_size, config.rms_norm_eps));
  }

  at::Tensor forward(const at::Tensor& embeddings, const at::Tensor& positions, nn::AttentionContext& attention,
                     bool checkpointing) const {
    const nn::RotaryTable rotary = nn::multimodal_rotary(positions, config_.mrope_section, config_.rope_theta,
                                                         config_.hidden_size / config_.num_attention_heads);
    const auto repeatable = checkpointing ? attention.repeatable() : nullptr;
    at::Tensor hidden = embeddings;
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      const auto index = static_cast<std::int64_t>(i);
      if (repeatable) {
        const auto run = [layer = layers_[i], rotary, repeatable, index](const at::Tensor& input) {
          return layer->forward(input, rotary, *repeatable, index);
        };
        hidden = nn::checkpoint(run, hidden, nn::trained_tensors(*layers_[i]));
      } else {
        hidden = layers_[i]->forward(hidden, rotary, attention, index);
      }
    }
    return norm_->forward(hidden);
  }

  const nn::Embedding& embedding() const { return *embed_tokens_; }

 private:
  Qwen2_5VlTextConfig config_;
  std::shared_ptr<nn::Embedding> embed_tokens_;
  std::vector<std::shared_ptr<DecoderLayer>> layers_;
  std::shared_ptr<nn::RmsNorm> norm_;
};

class Qwen2_5Vl final : public VisionLanguageModel {
 public:
  explicit Qwen2_5Vl(Json config)
      : json_(std::move(config)),
        config_(json_),
        visual_(register_module("visual", std::make_shared<VisionTower>(config_.vision))),
        model_(register_module("model", std::make_shared<Decoder>(config_.text))) {
    if (!config_.tie_word_embeddings) {
      lm_head_ = register_module(
          "lm_head", std::make_shared<nn::Linear>(config_.text.hidden_size, config_.text.vocab_size, false));
    }
  }

  const Json& config() const override { return json_; }
  const SpecialTokens& special_tokens() const override { return config_.tokens; }
  std::int64_t num_layers() const override { return config_.text.num_hidden_layers; }
  std::int64_t num_kv_heads() const override { return config_.text.num_key_value_heads; }
  std::int64_t head_dim() const override { return config_.text.hidden_size / config_.text.num_attention_heads; }
  std::int64_t hidden_size() const override { return config_.text.hidden_size; }
  std::int64_t vocab_size() const override { return config_.text.vocab_size; }

  std::int64_t num_image_tokens(const ImageGrid& grid) const override {
    const std::int64_t merge = config_.vision.spatial_merge_size;
    return grid.t * (grid.h / merge) * (grid.w / merge);
  }

  at::Tensor encode_images(const PixelPatches& patches) override {
    const Qwen2_5VlVisionConfig& vision = config_.vision;
    const std::int64_t width = vision.in_channels * vision.temporal_patch_size * vision.patch_size * vision.patch_size;
    std::int64_t num_patches = 0;
    for (const ImageGrid& grid : patches.grids) num_patches += grid.t * grid.h * grid.w;
    if (!patches.values.defined() || patches.values.dim() != 2 || patches.values.size(0) != num_patches ||
        patches.values.size(1) != width) {
      throw_invalid("encode_images: {} grids ask for patches [{}, {}], got [{}]", patches.grids.size(), num_patches,
                    width, patches.values.defined() ? fmt::format("{}", fmt::join(patches.values.sizes(), ", ")) : "");
    }
    return visual_->forward(patches, checkpointing() && at::GradMode::is_enabled());
  }

  at::Tensor embed(const at::Tensor& ids, const at::Tensor& image_rows, const at::Tensor& image_features) override {
    const at::Tensor embeddings = model_->embedding().forward(ids);
    if (!image_rows.defined() && !image_features.defined()) return embeddings;
    if (!image_rows.defined() || !image_features.defined() || image_features.dim() != 2 ||
        image_rows.numel() != image_features.size(0) || image_features.size(1) != embeddings.size(1)) {
      throw_invalid("embed: {} image rows need as many image features of width {}; got [{}]",
                    image_rows.defined() ? image_rows.numel() : 0, embeddings.size(1),
                    image_features.defined() ? fmt::format("{}", fmt::join(image_features.sizes(), ", ")) : "nothing");
    }
    return embeddings.index_copy(0, image_rows, image_features.to(embeddings.scalar_type()));
  }

  at::Tensor decode(const at::Tensor& embeddings, const at::Tensor& positions,
                    nn::AttentionContext& attention) override {
    return model_->forward(embeddings, positions, attention, checkpointing() && at::GradMode::is_enabled());
  }

  const at::Tensor& output_weight() const override { return lm_head_ ? lm_head_->weight : model_->embedding().weight; }

  TokenPositions token_positions(const std::vector<std::int64_t>& ids,
                                 const std::vector<ImageGrid>& grids) const override {
    const auto num_tokens = static_cast<std::int64_t>(ids.size());
    const std::int64_t merge = config_.vision.spatial_merge_size;
    TokenPositions result;
    result.positions = at::empty({3, num_tokens}, at::kLong);
    auto positions = result.positions.accessor<std::int64_t, 2>();
    std::size_t picture = 0;
    for (std::int64_t i = 0; i < num_tokens;) {
      if (ids[i] != config_.tokens.image) {
        for (int axis = 0; axis < 3; ++axis) positions[axis][i] = result.next;
        ++result.next;
        ++i;
        continue;
      }
      if (picture == grids.size()) {
        throw_invalid("token_positions: token {} starts picture {}, but there are {} grids", i, picture + 1,
                      grids.size());
      }
      const ImageGrid& grid = grids[picture++];
      const std::int64_t length = num_image_tokens(grid);
      for (std::int64_t k = 0; k < length; ++k) {
        if (i + k >= num_tokens || ids[i + k] != config_.tokens.image) {
          throw_invalid("token_positions: picture {} needs {} image tokens, {} came from token {} on", picture, length,
                        k, i);
        }
        const std::int64_t columns = grid.w / merge;
        const std::int64_t rows = grid.h / merge;
        positions[0][i + k] = result.next + k / (rows * columns);
        positions[1][i + k] = result.next + k / columns % rows;
        positions[2][i + k] = result.next + k % columns;
      }
      result.next += std::max(grid.h, grid.w) / merge;
      i += length;
    }
    if (picture != grids.size()) {
      throw_invalid("token_positions: {} grids, but image tokens for {} pictures", grids.size(), picture);
    }
    return result;
  }

  ModelPart part_of(const std::string& name) const override {
    if (name.starts_with("visual.merger.") || name == "visual.merger") return ModelPart::projector;
    return name.starts_with("visual") ? ModelPart::vision : ModelPart::language;
  }

  // Published checkpoints say "visual." and "model.", as this class does; transformers 5 renames both.
  std::string registered_name(const std::string& name) const override {
    for (const auto& [written, registered] : kPrefixes)
      if (name.starts_with(written)) return std::string(registered) + name.substr(written.size());
    return name;
  }
  std::string transformers_name(const std::string& name) const override {
    for (const auto& [written, registered] : kPrefixes)
      if (name.starts_with(registered)) return std::string(written) + name.substr(registered.size());
    return name;
  }

 private:
  Json json_;
  Qwen2_5VlConfig config_;
  std::shared_ptr<VisionTower> visual_;
  std::shared_ptr<Decoder> model_;
  std::shared_ptr<nn::Linear> lm_head_;  // none where the embeddings serve
};

}  // namespace

Qwen2_5VlConfig::Qwen2_5VlConfig(const Json& config) {
  const Json nested = nested_layout(config);
  text = read_text(nested.at("text_config"));
  vision = read_vision(nested.at("vision_config"));
  const ConfigReader reader(nested, "");
  const ConfigReader text_reader(nested.at("text_config"), "text_config");
  if (vision.out_hidden_size != text.hidden_size) {
    throw_invalid("config.json: vision_config.out_hidden_size {} must equal text_config.hidden_size {}",
                  vision.out_hidden_size, text.hidden_size);
  }
  tie_word_embeddings = reader.flag("tie_word_embeddings", false);
  tokens.image = reader.integer("image_token_id", 151655);
  tokens.vision_start = reader.integer("vision_start_token_id", 151652);
  tokens.vision_end = reader.integer("vision_end_token_id", 151653);
  tokens.end = text_reader.integers("eos_token_id", reader.integers("eos_token_id", {151645}));
  tokens.pad = text_reader.integer("pad_token_id", reader.integer("pad_token_id", -1));
}

WindowOrder window_order(const std::vector<ImageGrid>& grids, const Qwen2_5VlVisionConfig& config) {
  const std::int64_t merge = config.spatial_merge_size;
  const std::int64_t side = config.window_size / merge / config.patch_size;
  WindowOrder order;
  std::int64_t base = 0;
  for (std::size_t i = 0; i < grids.size(); ++i) {
    const ImageGrid& grid = grids[i];
    if (grid.t <= 0 || grid.h <= 0 || grid.w <= 0 || grid.h % merge != 0 || grid.w % merge != 0) {
      throw_invalid(
          "picture {}: a grid of {} x {} x {} patches; expected positive sides, rows and columns multiples of {}", i,
          grid.t, grid.h, grid.w, merge);
    }
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
      order.frame_lengths.push_back(grid.h * grid.w);
      base += rows * columns;
    }
  }
  return order;
}

std::shared_ptr<VisionLanguageModel> make_qwen2_5_vl(const Json& config) {
  return std::make_shared<Qwen2_5Vl>(nested_layout(config));
}

}  // namespace thinkvg::models
