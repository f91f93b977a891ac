#include "thinkvg/models/llava.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <utility>

#include "models/contrastive_vlm.h"

namespace thinkvg::models {
namespace {

// What config.json may leave out, as llava-hf's do.
const Json& text_defaults(const std::string& type) {
  static const Json kLlama = {{"vocab_size", 32000},         {"hidden_size", 4096},       {"intermediate_size", 11008},
                              {"num_hidden_layers", 32},     {"num_attention_heads", 32}, {"rms_norm_eps", 1e-6},
                              {"tie_word_embeddings", false}};
  static const Json kMistral = {{"vocab_size", 32000},     {"hidden_size", 4096},         {"intermediate_size", 14336},
                                {"num_hidden_layers", 32}, {"num_attention_heads", 32},   {"num_key_value_heads", 8},
                                {"rms_norm_eps", 1e-6},    {"tie_word_embeddings", false}};
  if (type == "llama") return kLlama;
  if (type == "mistral") return kMistral;
  throw_invalid("config.json: text_config.model_type is '{}'; supported are llama, mistral", type);
}

Json filled_config(const Json& config) {
  if (!config.is_object()) throw_invalid("config.json: expected an object, got {}", config.type_name());
  Json filled = with_defaults(config, {{"text_config", Json::object()}, {"vision_config", Json::object()}});
  for (const char* key : {"text_config", "vision_config"})
    if (!filled.at(key).is_object()) throw_invalid("config.json: {} must be an object", key);
  Json& text = filled["text_config"];
  text = with_defaults(text, {{"model_type", "llama"}});
  const std::string type = ConfigReader(text, "text_config").text("model_type", "llama");
  // A Mistral without the key has a window of 4,096; null means none.
  if (type == "mistral" && !text.contains("sliding_window")) text["sliding_window"] = 4096;
  text = with_defaults(text, text_defaults(type));
  nest_rope_parameters(text, 1e4);
  // The defaults of LLaVA's tower, CLIP ViT-L/14 at 336 pixels.
  filled["vision_config"] = with_defaults(filled["vision_config"], {{"model_type", "clip_vision_model"}});
  if (filled["vision_config"].size() == 1) {
    filled["vision_config"] = with_defaults(filled["vision_config"], {{"hidden_size", 1024},
                                                                      {"intermediate_size", 4096},
                                                                      {"num_hidden_layers", 24},
                                                                      {"num_attention_heads", 16},
                                                                      {"image_size", 336},
                                                                      {"patch_size", 14},
                                                                      {"projection_dim", 768}});
  }
  if (text.value("tie_word_embeddings", Json(false)) == true) filled["tie_word_embeddings"] = true;
  filled["model_type"] = "llava";
  filled["architectures"] = {"LlavaForConditionalGeneration"};
  return filled;
}

DecoderConfig read_text(const Json& filled) {
  const ConfigReader reader(filled.at("text_config"), "text_config");
  DecoderConfig text = read_decoder(reader);
  text.activation = reader.activation("hidden_act", "silu");
  const bool bias = reader.flag("attention_bias", false);
  text.qkv_bias = bias;
  text.output_bias = bias;
  text.mlp_bias = reader.flag("mlp_bias", false);
  text.ropes = {read_linear_rope({reader.at("rope_parameters"), reader.name("rope_parameters")})};
  if (reader.text("model_type", "llama") == "mistral" && reader.has("sliding_window")) {
    const std::int64_t window = reader.positive("sliding_window");
    text.layers.assign(static_cast<std::size_t>(text.num_hidden_layers), {0, window});
  }
  return text;
}

SpecialTokens read_tokens(const Json& filled) {
  const ConfigReader reader(filled, "");
  const ConfigReader text(filled.at("text_config"), "text_config");
  SpecialTokens tokens;
  tokens.image = reader.integer("image_token_index", reader.integer("image_token_id", 32000));
  tokens.end = text.integers("eos_token_id", reader.integers("eos_token_id", {2}));
  tokens.pad = text.integer("pad_token_id", reader.integer("pad_token_id", -1));
  return tokens;
}

// Which hidden states the projector takes, and what of them.
struct FeatureChoice {
  std::vector<std::int64_t> layers;  // numbers of layers behind which they stand
  bool with_class = false;

  FeatureChoice(const Json& filled, const TowerConfig& tower) {
    const ConfigReader reader(filled, "");
    const std::string strategy = reader.text("vision_feature_select_strategy", "default");
    if (strategy != "default" && strategy != "full") {
      throw_invalid("config.json: vision_feature_select_strategy is '{}', expected 'default' or 'full'", strategy);
    }
    with_class = strategy == "full";
    layers = reader.integers("vision_feature_layer", {-2});
    if (layers.empty()) throw_invalid("config.json: vision_feature_layer is empty");
    for (std::int64_t& layer : layers) {
      const std::int64_t count = tower.num_hidden_layers;
      if (layer < -count - 1 || layer > count) {
        throw_invalid("config.json: vision_feature_layer {} of a tower of {} layers", layer, count);
      }
      if (layer < 0) layer += count + 1;
    }
  }
  // The first place is dropped even where it is no class token, as transformers does.
  std::int64_t num_tokens(const TowerConfig& tower) const { return tower.num_places() - (with_class ? 0 : 1); }
};

class Llava final : public ContrastiveVlm {
 public:
  explicit Llava(const Json& filled) : ContrastiveVlm(filled, parts_of(filled)), choice_(filled, tower_config()) {
    const ConfigReader reader(filled, "");
    const Mlp::Shape shape{tower_config().hidden_size * std::ssize(choice_.layers), hidden_size(), hidden_size(),
                           reader.flag("multimodal_projector_bias", true)};
    projector_ = register_module("multi_modal_projector",
                                 std::make_shared<Mlp>(shape, reader.activation("projector_hidden_act", "gelu"),
                                                       std::pair{"linear_1", "linear_2"}));
  }

 private:
  static Parts parts_of(const Json& filled) {
    const TowerConfig tower(filled.at("vision_config"));
    return {read_text(filled), read_tokens(filled), tower, FeatureChoice(filled, tower).num_tokens(tower),
            ConfigReader(filled, "").flag("tie_word_embeddings", false)};
  }

  at::Tensor project(const PixelPatches& patches, bool checkpointing) const override {
    std::vector<at::Tensor> states = tower().hidden_states(patches, choice_.layers, checkpointing);
    if (!choice_.with_class)
      for (at::Tensor& state : states) state = state.narrow(1, 1, state.size(1) - 1);
    return projector_->forward(at::cat(states, 2).flatten(0, 1));
  }

  FeatureChoice choice_;
  std::shared_ptr<Mlp> projector_;
};

}  // namespace

std::shared_ptr<VisionLanguageModel> make_llava(const Json& config) {
  return std::make_shared<Llava>(filled_config(config));
}

}  // namespace thinkvg::models
