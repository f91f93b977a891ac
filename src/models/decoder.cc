#include "models/decoder.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/ranges.h>

#include <cmath>

#include "thinkvg/nn/linear.h"

namespace thinkvg::models {

DecoderConfig read_decoder(const ConfigReader& reader) {
  DecoderConfig text;
  text.vocab_size = reader.positive("vocab_size");
  text.hidden_size = reader.positive("hidden_size");
  text.intermediate_size = reader.positive("intermediate_size");
  text.num_hidden_layers = reader.positive("num_hidden_layers");
  text.num_attention_heads = reader.positive("num_attention_heads");
  text.num_key_value_heads = reader.positive("num_key_value_heads", text.num_attention_heads);
  text.rms_norm_eps = reader.number("rms_norm_eps", 1e-6);
  text.head_dim = reader.positive("head_dim", std::max<std::int64_t>(1, text.hidden_size / text.num_attention_heads));
  if ((!reader.has("head_dim") && text.hidden_size % text.num_attention_heads != 0) || text.head_dim % 2 != 0) {
    throw_invalid("config.json: {} {} over num_attention_heads {} must be a whole, even head width",
                  reader.name("hidden_size"), text.hidden_size, text.num_attention_heads);
  }
  if (text.num_attention_heads % text.num_key_value_heads != 0) {
    throw_invalid("config.json: {} {} must be a multiple of num_key_value_heads {}", reader.name("num_attention_heads"),
                  text.num_attention_heads, text.num_key_value_heads);
  }
  return text;
}

void nest_rope_parameters(Json& text, double default_theta) {
  Json rope = text.value("rope_parameters", Json());
  if (!rope.is_object()) rope = text.value("rope_scaling", Json());
  if (!rope.is_object()) rope = Json::object();
  if (!rope.contains("rope_theta")) rope["rope_theta"] = text.value("rope_theta", Json(default_theta));
  const Json kind = rope.value("rope_type", rope.value("type", Json("default")));
  rope["rope_type"] = kind == "mrope" ? Json("default") : kind;
  rope.erase("type");
  text["rope_parameters"] = std::move(rope);
  text.erase("rope_scaling");
  text.erase("rope_theta");
}

RopeConfig read_linear_rope(const ConfigReader& rope) {
  RopeConfig config;
  config.theta = rope.number("rope_theta", 1e4);
  const std::string type = rope.text("rope_type", "default");
  if (type == "linear") {
    config.factor = rope.number("factor", 1);
    if (!(config.factor > 0)) {
      throw_invalid("config.json: {} is {}, expected a number above 0", rope.name("factor"), config.factor);
    }
  } else if (type != "default") {
    throw_invalid("config.json: {} is '{}'; rotary embeddings of types 'default' and 'linear' are supported",
                  rope.name("rope_type"), type);
  }
  return config;
}

class DecoderAttention final : public torch::nn::Module {
 public:
  explicit DecoderAttention(const DecoderConfig& config)
      : num_heads_(config.num_attention_heads), num_kv_heads_(config.num_key_value_heads), head_dim_(config.head_dim) {
    const std::int64_t width = config.hidden_size;
    const auto linear = [this](const char* name, std::int64_t in, std::int64_t out, bool bias) {
      return register_module(name, std::make_shared<nn::Linear>(in, out, bias));
    };
    q_proj_ = linear("q_proj", width, num_heads_ * head_dim_, config.qkv_bias);
    k_proj_ = linear("k_proj", width, num_kv_heads_ * head_dim_, config.qkv_bias);
    v_proj_ = linear("v_proj", width, num_kv_heads_ * head_dim_, config.qkv_bias);
    o_proj_ = linear("o_proj", num_heads_ * head_dim_, width, config.output_bias);
    if (config.head_norms) {
      const auto norm = [&] {
        return std::make_shared<nn::RmsNorm>(head_dim_, config.rms_norm_eps, config.centred_norms);
      };
      q_norm_ = register_module("q_norm", norm());
      k_norm_ = register_module("k_norm", norm());
    }
    // attend() scales the scores by 1 / sqrt(K).
    if (config.query_scale > 0) rescale_ = config.query_scale * std::sqrt(static_cast<double>(head_dim_));
  }

  struct Place {
    const nn::RotaryTable& rotary;
    nn::AttentionContext& attention;
    nn::MaskRule rule;
    std::int64_t layer;
  };
  // What the tokens attend to, before the output projection.
  at::Tensor attend(const at::Tensor& hidden, const Place& place) const {
    const std::int64_t num_tokens = hidden.size(0);
    const std::vector<at::Tensor> parts = nn::forward_together(hidden, {q_proj_.get(), k_proj_.get(), v_proj_.get()});
    at::Tensor query = parts[0].view({num_tokens, num_heads_, head_dim_});
    at::Tensor key = parts[1].view({num_tokens, num_kv_heads_, head_dim_});
    const at::Tensor value = parts[2].view({num_tokens, num_kv_heads_, head_dim_});
    if (q_norm_) {
      query = q_norm_->forward(query);
      key = k_norm_->forward(key);
    }
    query = nn::rotate(query, place.rotary);
    key = nn::rotate(key, place.rotary);
    if (std::abs(rescale_ - 1) > 1e-12) query = query * rescale_;
    const bool plain = place.rule.window == 0 && !place.rule.image_blocks;
    const at::Tensor attended = plain ? place.attention.attend(place.layer, query, key, value)
                                      : place.attention.attend_masked(place.layer, query, key, value, place.rule);
    return attended.reshape({num_tokens, num_heads_ * head_dim_});
  }
  at::Tensor project(const at::Tensor& attended) const { return o_proj_->forward(attended); }
  // residual + the output projection.
  at::Tensor project_onto(const at::Tensor& attended, const at::Tensor& residual) const {
    return o_proj_->forward_onto(attended, residual);
  }

 private:
  std::int64_t num_heads_;
  std::int64_t num_kv_heads_;
  std::int64_t head_dim_;
  double rescale_ = 1;
  std::shared_ptr<nn::Linear> q_proj_;
  std::shared_ptr<nn::Linear> k_proj_;
  std::shared_ptr<nn::Linear> v_proj_;
  std::shared_ptr<nn::Linear> o_proj_;
  std::shared_ptr<nn::RmsNorm> q_norm_;
  std::shared_ptr<nn::RmsNorm> k_norm_;
};

class DecoderLayer final : public nn::Block {
 public:
  explicit DecoderLayer(const DecoderConfig& config)
      : self_attn_(register_module("self_attn", std::make_shared<DecoderAttention>(config))),
        mlp_(register_module("mlp", std::make_shared<nn::GatedMlp>(config.hidden_size, config.intermediate_size,
                                                                   config.mlp_bias, config.activation))) {
    const auto norm = [&](const char* name) {
      return register_module(
          name, std::make_shared<nn::RmsNorm>(config.hidden_size, config.rms_norm_eps, config.centred_norms));
    };
    before_attention_ = norm("input_layernorm");
    // The name post_attention_layernorm means what stands before the MLP, or behind the attention where there is both.
    if (config.outer_norms) {
      behind_attention_ = norm("post_attention_layernorm");
      before_mlp_ = norm("pre_feedforward_layernorm");
      behind_mlp_ = norm("post_feedforward_layernorm");
    } else {
      before_mlp_ = norm("post_attention_layernorm");
    }
  }

  at::Tensor forward(const at::Tensor& input, const DecoderAttention::Place& place) const {
    const at::Tensor attended = self_attn_->attend(before_attention_->forward(input), place);
    const at::Tensor hidden = behind_attention_ ? input + behind_attention_->forward(self_attn_->project(attended))
                                                : self_attn_->project_onto(attended, input);
    const at::Tensor normed = before_mlp_->forward(hidden);
    return behind_mlp_ ? hidden + behind_mlp_->forward(mlp_->forward(normed)) : mlp_->forward_onto(normed, hidden);
  }

 private:
  std::shared_ptr<DecoderAttention> self_attn_;
  std::shared_ptr<nn::GatedMlp> mlp_;
  std::shared_ptr<nn::RmsNorm> before_attention_;
  std::shared_ptr<nn::RmsNorm> behind_attention_;
  std::shared_ptr<nn::RmsNorm> before_mlp_;
  std::shared_ptr<nn::RmsNorm> behind_mlp_;
};

Decoder::Decoder(const DecoderConfig& config)
    : config_(config),
      embed_tokens_(
          register_module("embed_tokens", std::make_shared<nn::Embedding>(config.vocab_size, config.hidden_size))) {
  if (config_.layers.empty()) config_.layers.resize(static_cast<std::size_t>(config.num_hidden_layers));
  const auto layers = register_module("layers", std::make_shared<nn::Children>());
  for (std::int64_t i = 0; i < config.num_hidden_layers; ++i) {
    layers_.push_back(layers->add(i, std::make_shared<DecoderLayer>(config)));
  }
  norm_ = register_module("norm",
                          std::make_shared<nn::RmsNorm>(config.hidden_size, config.rms_norm_eps, config.centred_norms));
}

at::Tensor Decoder::embed(const at::Tensor& ids) const {
  const at::Tensor rows = embed_tokens_->forward(ids);
  if (config_.embedding_scale == 1) return rows;
  // The scale is rounded to the dtype, as the released code does.
  return rows * at::scalar_tensor(config_.embedding_scale, rows.options());
}

at::Tensor Decoder::forward(const at::Tensor& embeddings, const at::Tensor& positions, nn::AttentionContext& attention,
                            bool checkpointing) const {
  std::vector<nn::RotaryTable> tables;
  for (const RopeConfig& rope : config_.ropes) {
    switch (rope.kind) {
      case RopeConfig::Kind::linear:
        tables.push_back(nn::linear_rotary(positions.select(0, 0), rope.theta, rope.factor, config_.head_dim));
        break;
      case RopeConfig::Kind::sections:
        tables.push_back(nn::multimodal_rotary(positions, rope.sections, rope.theta, config_.head_dim));
        break;
      case RopeConfig::Kind::interleaved:
        tables.push_back(nn::interleaved_rotary(positions, rope.sections, rope.theta, config_.head_dim));
        break;
    }
  }
  const auto repeatable = checkpointing ? attention.repeatable() : nullptr;
  std::vector<at::Tensor> parts = {embeddings};
  if (embeddings.size(1) > config_.hidden_size) parts = embeddings.split(config_.hidden_size, 1);
  at::Tensor hidden = parts.front();
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    const DecoderConfig::Layer& kind = config_.layers[i];
    const nn::MaskRule rule{kind.window, config_.image_blocks};
    const auto index = static_cast<std::int64_t>(i);
    const auto& layer = layers_[i];
    const nn::RotaryTable& table = tables[kind.rope];
    if (repeatable) {
      const auto run = [layer, rotary = table, repeatable, rule, index](const at::Tensor& input) {
        return layer->forward(input, {rotary, *repeatable, rule, index});
      };
      hidden = nn::run_block(*layer, run, hidden, true);
    } else {
      const auto run = [&](const at::Tensor& input) { return layer->forward(input, {table, attention, rule, index}); };
      hidden = nn::run_block(*layer, run, hidden, false);
    }
    if (i + 1 < parts.size()) hidden = hidden + parts[i + 1];
  }
  return norm_->forward(hidden);
}

DecoderModel::DecoderModel(Json json, DecoderConfig text, SpecialTokens tokens)
    : json_(std::move(json)), text_(std::move(text)), tokens_(std::move(tokens)) {}

void DecoderModel::make_language(torch::nn::Module& decoder_owner, const std::string& decoder_name,
                                 torch::nn::Module& head_owner, bool tied) {
  decoder_ = decoder_owner.register_module(decoder_name, std::make_shared<Decoder>(text_));
  if (!tied) {
    lm_head_ =
        head_owner.register_module("lm_head", std::make_shared<nn::Linear>(text_.hidden_size, text_.vocab_size, false));
  }
}

bool DecoderModel::checkpoints_now() const { return checkpointing() && at::GradMode::is_enabled(); }

at::Tensor DecoderModel::embed(const at::Tensor& ids, const at::Tensor& image_rows, const at::Tensor& image_features) {
  if (!image_rows.defined() && !image_features.defined()) return decoder_->embed(ids);
  const std::int64_t width = text_.hidden_size;
  if (!image_rows.defined() || !image_features.defined() || image_features.dim() != 2 ||
      image_rows.numel() != image_features.size(0) || image_features.size(1) % width != 0) {
    throw_invalid("embed: {} image rows need as many image features of width {}; got [{}]",
                  image_rows.defined() ? image_rows.numel() : 0, width,
                  image_features.defined() ? fmt::format("{}", fmt::join(image_features.sizes(), ", ")) : "nothing");
  }
  // The image token may lie outside the table.
  const at::Tensor words = tokens_.image < text_.vocab_size ? ids : ids.index_fill(0, image_rows, 0);
  at::Tensor embeddings = decoder_->embed(words);
  const at::Tensor features = image_features.to(embeddings.scalar_type());
  if (features.size(1) > width) {
    const at::Tensor rest = at::zeros({embeddings.size(0), features.size(1) - width}, embeddings.options());
    embeddings = at::cat({embeddings, rest}, 1);
  }
  return embeddings.index_copy(0, image_rows, features);
}

at::Tensor DecoderModel::decode(const at::Tensor& embeddings, const at::Tensor& positions,
                                nn::AttentionContext& attention) {
  if (embeddings.dim() != 2 || embeddings.size(1) == 0 || embeddings.size(1) % text_.hidden_size != 0) {
    throw_invalid("decode: expected embeddings of width {}, got [{}]", text_.hidden_size,
                  fmt::join(embeddings.sizes(), ", "));
  }
  return decoder_->forward(embeddings, positions, attention, checkpoints_now());
}

PatchProjection::PatchProjection(std::int64_t width, const std::vector<std::int64_t>& kernel, bool with_bias) {
  std::vector<std::int64_t> shape = {width};
  shape.insert(shape.end(), kernel.begin(), kernel.end());
  weight_ = register_parameter("weight", nn::new_parameter(shape));
  if (with_bias) bias_ = register_parameter("bias", nn::new_parameter({width}));
}

at::Tensor PatchProjection::forward(const at::Tensor& patches) const {
  return nn::linear(patches.to(weight_.scalar_type()), weight_.flatten(1), bias_);
}

Mlp::Mlp(const Shape& shape, nn::Activation activation, const std::pair<const char*, const char*>& names)
    : activation_(activation),
      first_(register_module(names.first, std::make_shared<nn::Linear>(shape.in, shape.inner, shape.bias))),
      second_(register_module(names.second, std::make_shared<nn::Linear>(shape.inner, shape.out, shape.bias))) {}

at::Tensor Mlp::forward(const at::Tensor& input) const {
  return second_->forward(nn::activate(first_->forward(input), activation_));
}

void check_patches(const PixelPatches& patches, std::int64_t width) {
  std::int64_t num_patches = 0;
  for (const ImageGrid& grid : patches.grids) num_patches += grid.t * grid.h * grid.w;
  if (!patches.values.defined() || patches.values.dim() != 2 || patches.values.size(0) != num_patches ||
      patches.values.size(1) != width) {
    throw_invalid("encode_images: {} grids ask for patches [{}, {}], got [{}]", patches.grids.size(), num_patches,
                  width, patches.values.defined() ? fmt::format("{}", fmt::join(patches.values.sizes(), ", ")) : "");
  }
}

TokenPositions counted_positions(const std::vector<std::int64_t>& ids, std::int64_t image,
                                 const std::vector<std::int64_t>& image_lengths) {
  const auto num_tokens = static_cast<std::int64_t>(ids.size());
  std::size_t picture = 0;
  for (std::int64_t i = 0; i < num_tokens;) {
    if (ids[static_cast<std::size_t>(i)] != image) {
      ++i;
      continue;
    }
    if (picture == image_lengths.size()) {
      throw_invalid("token_positions: token {} starts picture {}, but there are {} grids", i, picture + 1,
                    image_lengths.size());
    }
    const std::int64_t length = image_lengths[picture++];
    for (std::int64_t k = 0; k < length; ++k) {
      if (i + k >= num_tokens || ids[static_cast<std::size_t>(i + k)] != image) {
        throw_invalid("token_positions: picture {} needs {} image tokens, {} came from token {} on", picture, length, k,
                      i);
      }
    }
    i += length;
  }
  if (picture != image_lengths.size()) {
    throw_invalid("token_positions: {} grids, but image tokens for {} pictures", image_lengths.size(), picture);
  }
  return {at::arange(num_tokens, at::kLong).expand({3, num_tokens}).contiguous(), num_tokens};
}

std::string with_prefix(const std::string& name, const Prefixes& prefixes) {
  for (const auto& [from, to] : prefixes)
    if (name.starts_with(from)) return to + name.substr(from.size());
  return name;
}

}  // namespace thinkvg::models
