#pragma once

// The decoder that the families share: pre-norm layers of grouped-query attention and a gated MLP (LLaMA), with what
// Qwen and Gemma add to it. Shape letters: T tokens, D width, K head width.

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "models/config_reader.h"
#include "thinkvg/models/vision_language_model.h"
#include "thinkvg/nn/attention.h"
#include "thinkvg/nn/block.h"
#include "thinkvg/nn/layers.h"
#include "thinkvg/nn/rotary.h"

namespace thinkvg::models {

struct RopeConfig {
  enum class Kind { linear, sections, interleaved };  // of nn/rotary.h
  Kind kind = Kind::linear;
  double theta = 1e4;
  double factor = 1;
  std::vector<std::int64_t> sections;  // of the multimodal kinds
};

struct DecoderConfig {
  std::int64_t vocab_size = 0;
  std::int64_t hidden_size = 0;
  std::int64_t intermediate_size = 0;
  std::int64_t num_hidden_layers = 0;
  std::int64_t num_attention_heads = 0;
  std::int64_t num_key_value_heads = 0;
  std::int64_t head_dim = 0;
  double rms_norm_eps = 1e-6;
  nn::Activation activation = nn::Activation::silu;
  bool qkv_bias = false;
  bool output_bias = false;
  bool mlp_bias = false;
  bool head_norms = false;     // query and key are normed, head by head
  bool centred_norms = false;  // norms multiply by 1 + weight
  bool outer_norms = false;    // a norm behind attention and MLP, too
  bool image_blocks = false;   // image tokens of a picture see each other
  double embedding_scale = 1;
  double query_scale = 0;  // of the scores; 0: 1 / sqrt(K)

  std::vector<RopeConfig> ropes = {{}};
  struct Layer {
    std::size_t rope = 0;     // index into ropes
    std::int64_t window = 0;  // 0: no sliding window
  };
  std::vector<Layer> layers;  // one a layer; empty: all of them plain
};

// The settings that all families write alike; those of rotary embeddings, norms and windows are the family's to add.
// head_dim where the file has none: hidden_size / num_attention_heads.
DecoderConfig read_decoder(const ConfigReader& text);

// rope_parameters of transformers 5, whatever came: a text_config of transformers 4 says rope_theta and rope_scaling.
void nest_rope_parameters(Json& text, double default_theta);
// The linear kind: types "default" and "linear" are supported.
RopeConfig read_linear_rope(const ConfigReader& rope);

class DecoderLayer;

class Decoder final : public torch::nn::Module {
 public:
  explicit Decoder(const DecoderConfig& config);

  // [T, D (1 + n)] -> [T, D]: part i > 0 of the embeddings is added behind layer i - 1 (DeepStack). positions [3, T].
  at::Tensor forward(const at::Tensor& embeddings, const at::Tensor& positions, nn::AttentionContext& attention,
                     bool checkpointing) const;
  // ids [T] -> [T, D], scaled.
  at::Tensor embed(const at::Tensor& ids) const;
  const nn::Embedding& embedding() const { return *embed_tokens_; }

 private:
  DecoderConfig config_;
  std::shared_ptr<nn::Embedding> embed_tokens_;
  std::vector<std::shared_ptr<DecoderLayer>> layers_;
  std::shared_ptr<nn::RmsNorm> norm_;
};

// What the families' classes have in common around that decoder.
class DecoderModel : public VisionLanguageModel {
 public:
  const Json& config() const override { return json_; }
  const SpecialTokens& special_tokens() const override { return tokens_; }
  std::int64_t num_layers() const override { return text_.num_hidden_layers; }
  std::int64_t num_kv_heads() const override { return text_.num_key_value_heads; }
  std::int64_t head_dim() const override { return text_.head_dim; }
  std::int64_t hidden_size() const override { return text_.hidden_size; }
  std::int64_t vocab_size() const override { return text_.vocab_size; }
  at::Tensor embed(const at::Tensor& ids, const at::Tensor& image_rows, const at::Tensor& image_features) override;
  at::Tensor decode(const at::Tensor& embeddings, const at::Tensor& positions,
                    nn::AttentionContext& attention) override;
  const at::Tensor& output_weight() const override {
    return lm_head_ ? lm_head_->weight : decoder_->embedding().weight;
  }

 protected:
  DecoderModel(Json json, DecoderConfig text, SpecialTokens tokens);
  // Makes the decoder, and the head where it has weights of its own, as children of `decoder_owner` and `head_owner`.
  void make_language(torch::nn::Module& decoder_owner, const std::string& decoder_name, torch::nn::Module& head_owner,
                     bool tied);
  bool checkpoints_now() const;
  const DecoderConfig& text() const { return text_; }

 private:
  Json json_;
  DecoderConfig text_;
  SpecialTokens tokens_;
  std::shared_ptr<Decoder> decoder_;
  std::shared_ptr<nn::Linear> lm_head_;  // none where the embeddings serve
};

// The convolution that turns patches into vectors: its stride is its kernel, so it is one linear map a patch.
class PatchProjection final : public torch::nn::Module {
 public:
  // kernel: channels, (frames,) rows, columns, as checkpoints store it.
  PatchProjection(std::int64_t width, const std::vector<std::int64_t>& kernel, bool with_bias);
  // [P, channels * frames * rows * columns] -> [P, D].
  at::Tensor forward(const at::Tensor& patches) const;

 private:
  at::Tensor weight_;
  at::Tensor bias_;
};

// second(activation(first(x))), under the names that checkpoints give the two.
class Mlp final : public torch::nn::Module {
 public:
  struct Shape {
    std::int64_t in = 0, inner = 0, out = 0;
    bool bias = true;
  };
  Mlp(const Shape& shape, nn::Activation activation, const std::pair<const char*, const char*>& names);
  at::Tensor forward(const at::Tensor& input) const;

 private:
  nn::Activation activation_;
  std::shared_ptr<nn::Linear> first_;
  std::shared_ptr<nn::Linear> second_;
};

// Throws std::invalid_argument unless `patches` holds what its grids ask for, in rows of `width` values.
void check_patches(const PixelPatches& patches, std::int64_t width);

// Positions that count on, text and pictures alike, on all three axes; checks that pictures and image tokens agree.
TokenPositions counted_positions(const std::vector<std::int64_t>& ids, std::int64_t image,
                                 const std::vector<std::int64_t>& image_lengths);

// `name` with the first prefix of the list that it has replaced.
using Prefixes = std::vector<std::pair<std::string, std::string>>;
std::string with_prefix(const std::string& name, const Prefixes& prefixes);

}  // namespace thinkvg::models
