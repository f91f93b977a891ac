#include "models/qwen_vl.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/ranges.h>

#include <algorithm>
#include <numeric>

namespace thinkvg::models {
namespace {

// The settings that transformers 4 wrote at the top level and transformers 5 nests.
constexpr const char* kTextKeys[] = {
    "vocab_size",          "hidden_size",         "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads", "hidden_act",        "max_position_embeddings",
    "initializer_range",   "rms_norm_eps",        "use_cache",         "use_sliding_window",
    "sliding_window",      "max_window_layers",   "attention_dropout", "layer_types",
    "rope_parameters",     "rope_scaling",        "rope_theta",        "bos_token_id",
    "eos_token_id",        "pad_token_id"};

const Prefixes kTransformersToPublished = {{"model.visual.", "visual."}, {"model.language_model.", "model."}};
const Prefixes kPublishedToTransformers = {{"visual.", "model.visual."}, {"model.", "model.language_model."}};

at::Tensor to_tensor(const std::vector<std::int64_t>& values) { return at::tensor(values, at::kLong); }

}  // namespace

Json nest_qwen_config(const Json& config, const QwenVlNames& names) {
  if (!config.is_object()) throw_invalid("config.json: expected an object, got {}", config.type_name());
  Json nested = config;
  if (!nested.contains("text_config") || nested.at("text_config").is_null()) {
    Json text = Json::object();
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
  text["model_type"] = names.text_type;
  vision["model_type"] = names.vision_type;
  if (vision.contains("in_chans")) {
    if (!vision.contains("in_channels")) vision["in_channels"] = vision.at("in_chans");
    vision.erase("in_chans");
  }
  nest_rope_parameters(text, names.rope_theta);
  if (text.value("tie_word_embeddings", Json(false)) == true) nested["tie_word_embeddings"] = true;
  text.erase("tie_word_embeddings");
  nested["model_type"] = names.model_type;
  nested["architectures"] = {names.architecture};
  return nested;
}

DecoderConfig read_qwen_text(const Json& text_config, RopeConfig::Kind kind) {
  const ConfigReader reader(text_config, "text_config");
  DecoderConfig text = read_decoder(reader);
  reader.require("hidden_act", "silu");
  const ConfigReader rope(reader.at("rope_parameters"), reader.name("rope_parameters"));
  RopeConfig& config = text.ropes.front();
  config.kind = kind;
  config.theta = rope.number("rope_theta", 1e6);
  config.sections =
      rope.integers("mrope_section", kind == RopeConfig::Kind::interleaved ? std::vector<std::int64_t>{24, 20, 20}
                                                                           : std::vector<std::int64_t>{16, 24, 24});
  if (rope.text("rope_type", "default") != "default") {
    throw_invalid("config.json: {} is '{}'; only 'default' (unscaled) rotary embeddings are supported",
                  rope.name("rope_type"), rope.text("rope_type", ""));
  }
  const std::int64_t half = text.head_dim / 2;
  if (std::any_of(config.sections.begin(), config.sections.end(), [](std::int64_t s) { return s < 0; }) ||
      std::accumulate(config.sections.begin(), config.sections.end(), std::int64_t{0}) != half) {
    throw_invalid("config.json: {} is [{}]; expected sections that sum to {}, half the head width",
                  rope.name("mrope_section"), fmt::join(config.sections, ", "), half);
  }
  if (reader.flag("use_sliding_window", false) && reader.has("sliding_window") &&
      reader.integer("max_window_layers", 80) < text.num_hidden_layers) {
    throw_invalid(
        "config.json: text_config.use_sliding_window is on for some layers; sliding windows are not supported here");
  }
  return text;
}

SpecialTokens read_qwen_tokens(const Json& nested) {
  const ConfigReader reader(nested, "");
  const ConfigReader text(nested.at("text_config"), "text_config");
  SpecialTokens tokens;
  tokens.image = reader.integer("image_token_id", 151655);
  tokens.vision_start = reader.integer("vision_start_token_id", 151652);
  tokens.vision_end = reader.integer("vision_end_token_id", 151653);
  tokens.end = text.integers("eos_token_id", reader.integers("eos_token_id", {151645}));
  tokens.pad = text.integer("pad_token_id", reader.integer("pad_token_id", -1));
  return tokens;
}

void QwenPatchConfig::read(const ConfigReader& vision) {
  in_channels = vision.positive("in_channels", in_channels);
  patch_size = vision.positive("patch_size", patch_size);
  temporal_patch_size = vision.positive("temporal_patch_size", temporal_patch_size);
  spatial_merge_size = vision.positive("spatial_merge_size", spatial_merge_size);
}

void check_grids(const std::vector<ImageGrid>& grids, std::int64_t merge) {
  for (std::size_t i = 0; i < grids.size(); ++i) {
    const ImageGrid& grid = grids[i];
    if (grid.t <= 0 || grid.h <= 0 || grid.w <= 0 || grid.h % merge != 0 || grid.w % merge != 0) {
      throw_invalid(
          "picture {}: a grid of {} x {} x {} patches; expected positive sides, rows and columns multiples of {}", i,
          grid.t, grid.h, grid.w, merge);
    }
  }
}

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

std::vector<std::int64_t> frame_lengths(const std::vector<ImageGrid>& grids) {
  std::vector<std::int64_t> lengths;
  for (const ImageGrid& grid : grids) lengths.insert(lengths.end(), static_cast<std::size_t>(grid.t), grid.h * grid.w);
  return lengths;
}

QwenVisionAttention::QwenVisionAttention(std::int64_t width, std::int64_t num_heads)
    : num_heads_(num_heads),
      qkv_(register_module("qkv", std::make_shared<nn::Linear>(width, 3 * width, true))),
      proj_(register_module("proj", std::make_shared<nn::Linear>(width, width, true))) {}

at::Tensor QwenVisionAttention::forward(const at::Tensor& hidden, const nn::RotaryTable& rotary,
                                        const std::vector<std::int64_t>& lengths) const {
  const std::int64_t num_patches = hidden.size(0);
  const std::vector<at::Tensor> parts = qkv_->forward(hidden).view({num_patches, 3, num_heads_, -1}).unbind(1);
  const at::Tensor attended =
      nn::block_attention(nn::rotate(parts[0], rotary), nn::rotate(parts[1], rotary), parts[2], lengths);
  return proj_->forward(attended.reshape({num_patches, -1}));
}

QwenVisionBlock::QwenVisionBlock(const Shape& shape, nn::Activation activation,
                                 const std::pair<const char*, const char*>& mlp_names)
    : norm1_(register_module("norm1", std::make_shared<nn::LayerNorm>(shape.width, 1e-6))),
      norm2_(register_module("norm2", std::make_shared<nn::LayerNorm>(shape.width, 1e-6))),
      attn_(register_module("attn", std::make_shared<QwenVisionAttention>(shape.width, shape.num_heads))),
      mlp_(register_module("mlp", std::make_shared<Mlp>(Mlp::Shape{shape.width, shape.inner_width, shape.width},
                                                        activation, mlp_names))) {}

at::Tensor QwenVisionBlock::forward(const at::Tensor& input, const nn::RotaryTable& rotary,
                                    const std::vector<std::int64_t>& lengths) const {
  const at::Tensor hidden = input + attn_->forward(norm1_->forward(input), rotary, lengths);
  return hidden + mlp_->forward(norm2_->forward(hidden));
}

QwenVl::QwenVl(Json json, DecoderConfig text, QwenPatchConfig patches)
    : DecoderModel(json, std::move(text), read_qwen_tokens(json)), patches_(patches) {}

at::Tensor QwenVl::encode_images(const PixelPatches& patches) {
  check_patches(patches, patches_.patch_width());
  check_grids(patches.grids, patches_.spatial_merge_size);
  return run_tower(patches, checkpoints_now());
}

TokenPositions QwenVl::token_positions(const std::vector<std::int64_t>& ids,
                                       const std::vector<ImageGrid>& grids) const {
  std::vector<std::int64_t> lengths;
  for (const ImageGrid& grid : grids) lengths.push_back(num_image_tokens(grid));
  TokenPositions result = counted_positions(ids, special_tokens().image, lengths);
  if (grids.empty()) return result;
  // A picture's tokens count by frame, row and column; the text behind it goes on at the largest of them.
  const std::int64_t merge = patches_.spatial_merge_size;
  auto positions = result.positions.accessor<std::int64_t, 2>();
  std::size_t picture = 0;
  std::int64_t next = 0;
  const auto num_tokens = static_cast<std::int64_t>(ids.size());
  for (std::int64_t i = 0; i < num_tokens;) {
    if (ids[static_cast<std::size_t>(i)] != special_tokens().image) {
      for (int axis = 0; axis < 3; ++axis) positions[axis][i] = next;
      ++next;
      ++i;
      continue;
    }
    const ImageGrid& grid = grids[picture];
    const std::int64_t columns = grid.w / merge;
    const std::int64_t rows = grid.h / merge;
    for (std::int64_t k = 0; k < lengths[picture]; ++k) {
      positions[0][i + k] = next + k / (rows * columns);
      positions[1][i + k] = next + k / columns % rows;
      positions[2][i + k] = next + k % columns;
    }
    next += std::max(grid.h, grid.w) / merge;
    i += lengths[picture++];
  }
  result.next = next;
  return result;
}

ModelPart NestedQwenVl::part_of(const std::string& name) const {
  if (name.starts_with("visual.merger.") || name == "visual.merger") return ModelPart::projector;
  return name.starts_with("visual") ? ModelPart::vision : ModelPart::language;
}
std::string NestedQwenVl::registered_name(const std::string& name) const {
  return with_prefix(name, kTransformersToPublished);
}
std::string NestedQwenVl::transformers_name(const std::string& name) const {
  return with_prefix(name, kPublishedToTransformers);
}

}  // namespace thinkvg::models
