#include <ATen/ATen.h>

#include <cstdlib>
#include <set>

#include "models/config_reader.h"
#include "models/decoder.h"
#include "thinkvg/core/files.h"
#include "thinkvg/models/llava.h"
#include "thinkvg/models/safetensors.h"
#include "thinkvg/text/chat.h"

namespace thinkvg::models {
namespace fs = std::filesystem;
namespace {

const char* const kTower = "vision_tower.vision_model.";
const char* const kProjector = "multi_modal_projector.";
const char* const kEmbedding = "language_model.model.embed_tokens.weight";
const char* const kHead = "language_model.lm_head.weight";

// What LLaVA's code adds to the settings of its language model.
bool is_own_setting(const std::string& key) {
  static const std::set<std::string> kOthers = {"architectures",
                                                "image_aspect_ratio",
                                                "image_grid_pinpoints",
                                                "freeze_mm_mlp_adapter",
                                                "tune_mm_mlp_adapter",
                                                "use_mm_proj",
                                                "unfreeze_mm_vision_tower",
                                                "sep_image_conv_front",
                                                "model_type",
                                                "torch_dtype",
                                                "dtype",
                                                "transformers_version",
                                                "_name_or_path",
                                                "tokenizer_model_max_length",
                                                "tokenizer_padding_side",
                                                "image_token_len",
                                                "bert_type",
                                                "tune_vision_tower",
                                                "pretrain_mm_mlp_adapter"};
  return key.starts_with("mm_") || kOthers.contains(key);
}

std::string renamed(const std::string& name) {
  static const Prefixes kNames = {{"model.vision_tower.vision_tower.vision_model.", kTower},
                                  {"model.vision_tower.vision_model.", kTower},
                                  {"model.mm_projector.0.", "multi_modal_projector.linear_1."},
                                  {"model.mm_projector.2.", "multi_modal_projector.linear_2."},
                                  {"model.mm_projector.", "multi_modal_projector.linear_1."},
                                  {"model.", "language_model.model."},
                                  {"lm_head.", "language_model.lm_head."}};
  return with_prefix(name, kNames);
}

bool has_tower(const std::map<std::string, at::Tensor>& weights) {
  const auto found = weights.lower_bound(kTower);
  return found != weights.end() && found->first.starts_with(kTower);
}

// The tower of a CLIP model, or of a CLIP vision model.
void add_tower(std::map<std::string, at::Tensor>& weights, const Json& config, const fs::path& clip) {
  if (clip.empty()) {
    throw_failure(
        "the checkpoint holds no vision tower, and the CLIP model '{}' that config.json names is not here; put its "
        "folder (config.json, model.safetensors) at that path or beside the model, or set mm_vision_tower to where it "
        "lies",
        config.value("mm_vision_tower", ""));
  }
  for (auto& [name, tensor] : read_safetensors(clip / "model.safetensors")) {
    const std::string prefix = "vision_model.";
    if (name.starts_with(prefix)) weights[kTower + name.substr(prefix.size())] = tensor;
    // As transformers 5 may write a vision model alone.
    if (name.starts_with("embeddings.") || name.starts_with("encoder.") || name.starts_with("pre_layrnorm.") ||
        name.starts_with("post_layernorm."))
      weights[kTower + name] = tensor;
  }
  if (!has_tower(weights)) throw_failure("{}: holds no vision_model tensors", (clip / "model.safetensors").string());
}

// The tower's settings as its weights tell them; `clip_config` goes before where it is an object.
Json tower_config(const std::map<std::string, at::Tensor>& weights, const Json& clip_config) {
  const auto shape = [&](const std::string& name) {
    const auto found = weights.find(kTower + name);
    if (found == weights.end()) throw_failure("the vision tower lacks {}", name);
    return found->second.sizes().vec();
  };
  const std::vector<std::int64_t> patch = shape("embeddings.patch_embedding.weight");
  const std::vector<std::int64_t> places = shape("embeddings.position_embedding.weight");
  if (patch.size() != 4 || places.size() != 2)
    throw_failure("the vision tower's embeddings have other ranks than CLIP's");
  std::int64_t num_layers = 0;
  while (weights.contains(fmt::format("{}encoder.layers.{}.mlp.fc1.weight", kTower, num_layers))) ++num_layers;
  std::int64_t side = 1;
  while (side * side < places[0] - 1) ++side;
  Json config = {
      {"model_type", "clip_vision_model"},
      {"hidden_size", patch[0]},
      {"num_channels", patch[1]},
      {"patch_size", patch[2]},
      {"image_size", side * patch[2]},
      {"num_hidden_layers", num_layers},
      {"num_attention_heads", std::max<std::int64_t>(1, patch[0] / 64)},  // heads of all CLIP towers are 64 wide
      {"intermediate_size", shape("encoder.layers.0.mlp.fc1.bias")[0]},
      {"hidden_act", "quick_gelu"}};
  if (clip_config.is_object())
    for (const char* key : {"num_attention_heads", "hidden_act", "layer_norm_eps", "projection_dim"})
      if (clip_config.contains(key)) config[key] = clip_config.at(key);
  return config;
}

Json clip_vision_config(const fs::path& clip) {
  if (clip.empty()) return {};
  const Json config = read_json_file(clip / "config.json");
  return config.is_object() && config.contains("vision_config") ? config.at("vision_config") : config;
}

// The id that stands for a piece of an image, where training has added one.
std::int64_t patch_token(const fs::path& folder) {
  const fs::path file = folder / "added_tokens.json";
  const Json tokens = fs::exists(file) ? read_json_file(file) : Json();
  return tokens.is_object() ? tokens.value(std::string(text::kPatchToken), std::int64_t{-1}) : -1;
}

at::Tensor with_zero_row(const at::Tensor& table) {
  return at::cat({table, at::zeros({1, table.size(1)}, table.options())});
}

}  // namespace

bool is_released_llava(const Json& config) {
  if (!config.is_object() || !config.contains("mm_vision_tower")) return false;
  const std::string type = config.value("model_type", "");
  return type == "llava" || type == "llava_llama" || type == "llava_mistral";
}

fs::path find_clip_folder(const Json& config, const fs::path& folder) {
  const std::string name = config.value("mm_vision_tower", "");
  if (name.empty()) return {};
  const auto is_model = [](const fs::path& path) {
    return fs::exists(path / "config.json") && fs::exists(path / "model.safetensors");
  };
  const fs::path base = fs::path(name).filename();
  for (const fs::path& path : {fs::path(name), folder / name, folder / base, folder.parent_path() / base})
    if (is_model(path)) return path;
  const char* hub = std::getenv("HF_HUB_CACHE");
  const char* home = std::getenv("HF_HOME");
  const char* user = std::getenv("HOME");
  fs::path cache;
  if (hub != nullptr) {
    cache = hub;
  } else if (home != nullptr) {
    cache = fs::path(home) / "hub";
  } else if (user != nullptr) {
    cache = fs::path(user) / ".cache/huggingface/hub";
  }
  std::string entry = "models--" + name;
  for (std::size_t at = entry.find('/'); at != std::string::npos; at = entry.find('/')) entry.replace(at, 1, "--");
  const fs::path snapshots = cache / entry / "snapshots";
  if (!cache.empty() && fs::is_directory(snapshots))
    for (const auto& snapshot : fs::directory_iterator(snapshots))
      if (is_model(snapshot.path())) return snapshot.path();
  return {};
}

LlavaImport import_released_llava(const Json& config, std::map<std::string, at::Tensor> weights,
                                  const fs::path& folder) {
  const ConfigReader reader(config, "");
  LlavaImport result;
  for (auto& [name, tensor] : weights) result.weights[renamed(name)] = std::move(tensor);
  const fs::path clip = find_clip_folder(config, folder);
  if (!has_tower(result.weights)) add_tower(result.weights, config, clip);

  const bool is_mistral = reader.text("model_type", "") == "llava_mistral";
  Json text = {{"model_type", is_mistral ? "mistral" : "llama"}};
  for (const auto& [key, value] : config.items())
    if (!is_own_setting(key)) text[key] = value;
  // Written without the key by releases before there were windows.
  if (is_mistral && !text.contains("sliding_window")) text["sliding_window"] = nullptr;
  std::int64_t image = patch_token(folder);
  const std::int64_t vocab_size = reader.positive("vocab_size");
  if (image < 0 || image >= vocab_size) {
    image = vocab_size;
    text["vocab_size"] = vocab_size + 1;
    for (const char* name : {kEmbedding, kHead})
      if (const auto found = result.weights.find(name); found != result.weights.end())
        found->second = with_zero_row(found->second);
  }

  const std::string projector = reader.text("mm_projector_type", "linear");
  if (projector != "linear" && projector != "mlp2x_gelu") {
    throw_invalid("config.json: mm_projector_type is '{}'; supported are linear, mlp2x_gelu", projector);
  }
  if (projector == "linear") {
    const auto first = result.weights.find(std::string(kProjector) + "linear_1.weight");
    if (first == result.weights.end()) throw_failure("{}: model.mm_projector.weight is missing", folder.string());
    const std::int64_t width = first->second.size(0);
    result.weights[std::string(kProjector) + "linear_2.weight"] = at::eye(width, first->second.options());
    result.weights[std::string(kProjector) + "linear_2.bias"] = at::zeros({width}, first->second.options());
  }
  const std::string feature = reader.text("mm_vision_select_feature", "patch");
  if (feature != "patch" && feature != "cls_patch") {
    throw_invalid("config.json: mm_vision_select_feature is '{}', expected 'patch' or 'cls_patch'", feature);
  }
  const Json vision = tower_config(result.weights, clip_vision_config(clip));
  const std::int64_t side = vision.at("image_size").get<std::int64_t>() / vision.at("patch_size").get<std::int64_t>();
  result.config = {{"model_type", "llava"},
                   {"text_config", text},
                   {"vision_config", vision},
                   {"image_token_index", image},
                   {"image_seq_length", side * side + (feature == "patch" ? 0 : 1)},
                   {"vision_feature_layer", reader.integer("mm_vision_select_layer", -2)},
                   {"vision_feature_select_strategy", feature == "patch" ? "default" : "full"},
                   {"projector_hidden_act", projector == "linear" ? "linear" : "gelu"},
                   {"multimodal_projector_bias", true},
                   {"tie_word_embeddings", reader.flag("tie_word_embeddings", false)},
                   {"image_aspect_ratio", reader.text("image_aspect_ratio", "pad")},
                   {"conversation", is_mistral ? "llava_med" : "llava_v1"}};
  return result;
}

LlavaImageToken imported_image_token(const Json& config, const fs::path& folder) {
  const auto id = config.at("image_token_index").get<std::int64_t>();
  const bool is_new = id != patch_token(folder);
  return {is_new ? "<image>" : std::string(text::kPatchToken), id, is_new};
}

}  // namespace thinkvg::models
