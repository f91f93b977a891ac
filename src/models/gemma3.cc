#include "thinkvg/models/gemma3.h"

#include <ATen/ATen.h>

#include <cmath>
#include <utility>

#include "models/contrastive_vlm.h"

namespace thinkvg::models {
namespace {

const char* const kFull = "full_attention";
const char* const kSliding = "sliding_attention";

// Rotary embeddings a kind of layer, whatever came: transformers 4 wrote rope_theta, rope_local_base_freq and, for the
// layers of full attention, rope_scaling.
void nest_ropes(Json& text) {
  Json ropes = text.value("rope_parameters", Json());
  if (!ropes.is_object()) ropes = Json::object();
  Json full = ropes.value(kFull, Json());
  Json sliding = ropes.value(kSliding, Json());
  if (!full.is_object()) full = Json::object();
  if (!sliding.is_object()) sliding = Json::object();
  if (const Json scaling = text.value("rope_scaling", Json()); scaling.is_object()) full.update(scaling);
  full = with_defaults(full, {{"rope_type", "default"}, {"rope_theta", text.value("rope_theta", Json(1e6))}});
  sliding =
      with_defaults(sliding, {{"rope_type", "default"}, {"rope_theta", text.value("rope_local_base_freq", Json(1e4))}});
  text["rope_parameters"] = {{kFull, full}, {kSliding, sliding}};
  for (const char* key : {"rope_scaling", "rope_theta", "rope_local_base_freq"}) text.erase(key);
}

Json filled_config(const Json& config) {
  if (!config.is_object()) throw_invalid("config.json: expected an object, got {}", config.type_name());
  Json filled = with_defaults(config, {{"text_config", Json::object()},
                                       {"vision_config", Json::object()},
                                       {"mm_tokens_per_image", 256},
                                       {"boi_token_index", 255999},
                                       {"eoi_token_index", 256000},
                                       {"image_token_index", 262144},
                                       {"tie_word_embeddings", true}});
  for (const char* key : {"text_config", "vision_config"})
    if (!filled.at(key).is_object()) throw_invalid("config.json: {} must be an object", key);
  Json& text = filled["text_config"];
  text = with_defaults(text, {{"model_type", "gemma3_text"},
                              {"vocab_size", 262208},
                              {"hidden_size", 2304},
                              {"intermediate_size", 9216},
                              {"num_hidden_layers", 26},
                              {"num_attention_heads", 8},
                              {"num_key_value_heads", 4},
                              {"head_dim", 256},
                              {"hidden_activation", "gelu_pytorch_tanh"},
                              {"rms_norm_eps", 1e-6},
                              {"query_pre_attn_scalar", 256}});
  if (!text.contains("sliding_window")) text["sliding_window"] = 4096;
  nest_ropes(text);
  filled["vision_config"] = with_defaults(filled["vision_config"], {{"model_type", "siglip_vision_model"}});
  filled["vision_config"]["vision_use_head"] = false;
  filled["model_type"] = "gemma3";
  filled["architectures"] = {"Gemma3ForConditionalGeneration"};
  return filled;
}

DecoderConfig read_text(const Json& filled) {
  const ConfigReader reader(filled.at("text_config"), "text_config");
  for (const char* key : {"attn_logit_softcapping", "final_logit_softcapping"})
    if (reader.has(key)) throw_invalid("config.json: {} is set; soft caps are not supported", reader.name(key));
  if (reader.flag("use_bidirectional_attention", false)) {
    throw_invalid("config.json: {} is on, which is not supported", reader.name("use_bidirectional_attention"));
  }
  DecoderConfig text = read_decoder(reader);
  text.activation = reader.activation("hidden_activation", "gelu_pytorch_tanh");
  const bool bias = reader.flag("attention_bias", false);
  text.qkv_bias = bias;
  text.output_bias = bias;
  text.head_norms = true;
  text.centred_norms = true;
  text.outer_norms = true;
  text.image_blocks = true;
  text.embedding_scale = std::sqrt(static_cast<double>(text.hidden_size));
  const double scalar = reader.number("query_pre_attn_scalar", 256);
  if (!(scalar > 0))
    throw_invalid("config.json: {} is {}, expected above 0", reader.name("query_pre_attn_scalar"), scalar);
  text.query_scale = 1 / std::sqrt(scalar);

  const ConfigReader ropes(reader.at("rope_parameters"), reader.name("rope_parameters"));
  text.ropes = {read_linear_rope({ropes.at(kFull), ropes.name(kFull)}),
                read_linear_rope({ropes.at(kSliding), ropes.name(kSliding)})};
  const std::int64_t window = reader.has("sliding_window") ? reader.positive("sliding_window") : 0;
  const std::int64_t pattern = reader.positive("sliding_window_pattern", reader.positive("_sliding_window_pattern", 6));
  const Json types = reader.has("layer_types") ? reader.at("layer_types") : Json();
  if (!types.is_null() && (!types.is_array() || std::ssize(types) != text.num_hidden_layers)) {
    throw_invalid("config.json: {} is {}, expected a list of {} kinds", reader.name("layer_types"), types.dump(),
                  text.num_hidden_layers);
  }
  for (std::int64_t i = 0; i < text.num_hidden_layers; ++i) {
    const Json type =
        types.is_null() ? Json((i + 1) % pattern == 0 ? kFull : kSliding) : types.at(static_cast<std::size_t>(i));
    if (type != kFull && type != kSliding) {
      throw_invalid("config.json: {} holds {}, expected \"{}\" or \"{}\"", reader.name("layer_types"), type.dump(),
                    kFull, kSliding);
    }
    text.layers.push_back(type == kFull ? DecoderConfig::Layer{0, 0} : DecoderConfig::Layer{1, window});
  }
  return text;
}

SpecialTokens read_tokens(const Json& filled) {
  const ConfigReader reader(filled, "");
  const ConfigReader text(filled.at("text_config"), "text_config");
  SpecialTokens tokens;
  tokens.image = reader.integer("image_token_index", 262144);
  tokens.vision_start = reader.integer("boi_token_index", 255999);
  tokens.vision_end = reader.integer("eoi_token_index", 256000);
  tokens.end = text.integers("eos_token_id", reader.integers("eos_token_id", {1}));
  tokens.pad = text.integer("pad_token_id", reader.integer("pad_token_id", 0));
  return tokens;
}

std::int64_t tokens_a_side(const Json& filled, const TowerConfig& tower) {
  const std::int64_t count = ConfigReader(filled, "").positive("mm_tokens_per_image");
  const std::int64_t side = std::llround(std::sqrt(static_cast<double>(count)));
  if (side * side != count || side > tower.patches_a_side() || tower.patches_a_side() % side != 0) {
    throw_invalid("config.json: mm_tokens_per_image is {}; expected a square whose side divides the {} patches a side",
                  count, tower.patches_a_side());
  }
  return side;
}

class Projector final : public torch::nn::Module {
 public:
  Projector(const TowerConfig& tower, std::int64_t side, std::int64_t width)
      : patches_a_side_(tower.patches_a_side()),
        side_(side),
        weight_(register_parameter("mm_input_projection_weight", nn::new_parameter({tower.hidden_size, width}))),
        norm_(register_module("mm_soft_emb_norm",
                              std::make_shared<nn::RmsNorm>(tower.hidden_size, tower.layer_norm_eps, true))) {}

  // [N, P, D] -> [N * side * side, width].
  at::Tensor forward(const at::Tensor& states) const {
    const std::int64_t pool = patches_a_side_ / side_;
    const at::Tensor pooled =
        states.view({states.size(0), side_, pool, side_, pool, states.size(2)}).mean(at::IntArrayRef({2, 4}));
    return at::matmul(norm_->forward(pooled.flatten(0, 2)), weight_);
  }

 private:
  std::int64_t patches_a_side_;
  std::int64_t side_;
  at::Tensor weight_;
  std::shared_ptr<nn::RmsNorm> norm_;
};

class Gemma3 final : public ContrastiveVlm {
 public:
  explicit Gemma3(const Json& filled) : ContrastiveVlm(filled, parts_of(filled)) {
    projector_ = register_module(
        "multi_modal_projector",
        std::make_shared<Projector>(tower_config(), tokens_a_side(filled, tower_config()), hidden_size()));
  }

 private:
  static Parts parts_of(const Json& filled) {
    const TowerConfig tower(filled.at("vision_config"));
    if (tower.is_clip) throw_invalid("config.json: vision_config.model_type must be siglip_vision_model");
    const std::int64_t side = tokens_a_side(filled, tower);
    return {read_text(filled), read_tokens(filled), tower, side * side,
            ConfigReader(filled, "").flag("tie_word_embeddings", true)};
  }

  at::Tensor project(const PixelPatches& patches, bool checkpointing) const override {
    return projector_->forward(tower().last_state(patches, checkpointing));
  }

  std::shared_ptr<Projector> projector_;
};

}  // namespace

std::shared_ptr<VisionLanguageModel> make_gemma3(const Json& config) {
  return std::make_shared<Gemma3>(filled_config(config));
}

}  // namespace thinkvg::models
