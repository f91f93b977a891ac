#include <ATen/ATen.h>
#include <spdlog/fmt/ranges.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <utility>

#include "thinkvg/core/error.h"
#include "thinkvg/core/files.h"
#include "thinkvg/core/random.h"
#include "thinkvg/models/gemma3.h"
#include "thinkvg/models/llava.h"
#include "thinkvg/models/qwen2_5_vl.h"
#include "thinkvg/models/qwen2_vl.h"
#include "thinkvg/models/qwen3_vl.h"
#include "thinkvg/models/safetensors.h"
#include "thinkvg/models/skeleton.h"
#include "thinkvg/models/vision_language_model.h"
#include "thinkvg/nn/layers.h"
#include "thinkvg/nn/linear.h"

namespace thinkvg::models {
namespace {

struct Family {
  const char* model_type;  // as config.json says it
  std::shared_ptr<VisionLanguageModel> (*make)(const Json& config);
};

constexpr Family kFamilies[] = {
    {"qwen2_5_vl", make_qwen2_5_vl}, {"qwen2_vl", make_qwen2_vl}, {"qwen3_vl", make_qwen3_vl},
    {"llava", make_llava},           {"gemma3", make_gemma3},
};

const Family& family_of(const Json& config) {
  const Json type = config.is_object() ? config.value("model_type", Json()) : Json();
  std::vector<std::string> names;
  for (const Family& family : kFamilies) {
    if (type == family.model_type) return family;
    names.emplace_back(family.model_type);
  }
  throw_invalid(
      "config.json: model_type is {}; known model types: {}; and llava_llama, llava_mistral with an mm_vision_tower, "
      "as "
      "LLaVA's own code writes them",
      type.dump(), fmt::join(names, ", "));
}

// A wrong file is the environment's fault, though the same content given to create() is the caller's.
template <class Action>
auto blaming(const std::filesystem::path& folder, const Action& action) {
  try {
    return action();
  } catch (const std::invalid_argument& error) {
    throw_failure("{}: {}", folder.string(), error.what());
  }
}

Json read_config(const std::filesystem::path& folder) {
  Json config = read_json_file(folder / "config.json");
  const std::filesystem::path generation_file = folder / "generation_config.json";
  if (!config.is_object() || !std::filesystem::exists(generation_file)) return config;
  const Json generation = read_json_file(generation_file);
  if (!generation.is_object()) throw_failure("{}: expected a JSON object", generation_file.string());
  Json& text = config.contains("text_config") && config.at("text_config").is_object() ? config["text_config"] : config;
  for (const char* key : {"eos_token_id", "pad_token_id"}) {
    if (generation.contains(key) && !generation.at(key).is_null()) text[key] = generation.at(key);
  }
  return config;
}

std::map<std::string, at::Tensor> read_weights(const std::filesystem::path& folder) {
  const std::filesystem::path index_file = folder / "model.safetensors.index.json";
  if (std::filesystem::exists(folder / "model.safetensors")) return read_safetensors(folder / "model.safetensors");
  if (!std::filesystem::exists(index_file)) {
    throw_failure("{}: holds neither model.safetensors nor model.safetensors.index.json", folder.string());
  }
  const Json index = read_json_file(index_file);
  if (!index.is_object() || !index.contains("weight_map") || !index.at("weight_map").is_object()) {
    throw_failure("{}: weight_map is missing", index_file.string());
  }
  std::map<std::string, std::map<std::string, at::Tensor>> shards;
  std::map<std::string, at::Tensor> weights;
  std::vector<std::string> problems;
  std::set<std::string> unreadable;
  for (const auto& [name, value] : index.at("weight_map").items()) {
    if (!value.is_string()) {
      problems.push_back(fmt::format("weight_map names no file for '{}'", name));
      continue;
    }
    const auto file = value.get<std::string>();
    try {
      if (!shards.contains(file) && !unreadable.contains(file)) shards.emplace(file, read_safetensors(folder / file));
    } catch (const std::runtime_error& error) {
      problems.emplace_back(error.what());
      unreadable.insert(file);
    }
    if (unreadable.contains(file)) continue;
    const auto found = shards.at(file).find(name);
    if (found == shards.at(file).end())
      problems.push_back(fmt::format("'{}' should be in {}, but is not", name, file));
    else
      weights.insert(*found);
  }
  if (!problems.empty()) throw_failure("{}:\n  {}", index_file.string(), fmt::join(problems, "\n  "));
  return weights;
}

std::string shape_text(const at::Tensor& tensor) { return fmt::format("[{}]", fmt::join(tensor.sizes(), ", ")); }

void append_problems(std::string* report, const char* title, const std::vector<std::string>& problems) {
  if (!problems.empty()) *report += fmt::format("\n  {} ({}): {}", title, problems.size(), fmt::join(problems, ", "));
}

// The one tensor whose name ends so, or none.
auto find_ending(std::map<std::string, at::Tensor>& weights, std::string_view end) {
  return std::find_if(weights.begin(), weights.end(), [end](const auto& item) { return item.first.ends_with(end); });
}

// Checkpoints of tied models may carry the head as well; it must then be the embedding.
void drop_tied_head(std::map<std::string, at::Tensor>& weights, const std::map<std::string, at::Tensor>& parameters,
                    const std::filesystem::path& folder) {
  const auto head = find_ending(weights, "lm_head.weight");
  const auto embedding = find_ending(weights, "embed_tokens.weight");
  if (head == weights.end() || embedding == weights.end() || parameters.contains(head->first)) return;
  if (!head->second.equal(embedding->second)) {
    throw_failure(
        "{}: config.json says tie_word_embeddings, but lm_head.weight differs from {}; set tie_word_embeddings to "
        "false to use both",
        folder.string(), embedding->first);
  }
  weights.erase(head);
}

// Constants that old checkpoints carry.
bool is_constant(const std::string& name) {
  return name.ends_with(".position_ids") || name.ends_with(".rotary_emb.inv_freq");
}

void fill_parameters(VisionLanguageModel& model, std::map<std::string, at::Tensor> weights,
                     std::optional<at::ScalarType> dtype, at::Device device, const std::filesystem::path& folder) {
  const at::NoGradGuard no_grad;
  std::map<std::string, at::Tensor> parameters;
  for (const auto& item : model.named_parameters()) parameters.emplace(item.key(), item.value());
  drop_tied_head(weights, parameters, folder);
  std::vector<std::string> missing;
  std::vector<std::string> unexpected;
  std::vector<std::string> misshaped;
  for (const auto& [name, parameter] : parameters) {
    const auto found = weights.find(name);
    if (found == weights.end()) {
      missing.push_back(name);
    } else if (found->second.sizes() != parameter.sizes()) {
      misshaped.push_back(fmt::format("{} is {}, expected {}", name, shape_text(found->second), shape_text(parameter)));
    } else if (!found->second.is_floating_point()) {
      misshaped.push_back(
          fmt::format("{} holds {}, expected floating point", name, c10::toString(found->second.scalar_type())));
    }
  }
  for (const auto& [name, tensor] : weights) {
    if (!parameters.contains(name)) unexpected.push_back(name);
  }
  if (!missing.empty() || !unexpected.empty() || !misshaped.empty()) {
    std::string report = fmt::format("{}: the weights do not fit config.json", folder.string());
    append_problems(&report, "missing", missing);
    append_problems(&report, "unexpected", unexpected);
    append_problems(&report, "of another shape", misshaped);
    throw std::runtime_error(report);
  }
  for (auto& [name, parameter] : parameters) {
    const auto found = weights.find(name);
    const at::Tensor& read = found->second;
    if (device.is_cpu())
      parameter.set_data(dtype ? converted(read, *dtype) : read);
    else
      parameter.set_data(read.to(device).to(dtype.value_or(read.scalar_type())));
    weights.erase(found);
  }
}

}  // namespace

at::Tensor VisionLanguageModel::logits(const at::Tensor& hidden) const {
  return nn::linear(hidden, nn::LinearWeights{output_weight(), {}, quantized_head_.get()});
}

std::optional<at::ScalarType> dtype_setting(const std::string& name, const std::string& own) {
  if (name == own) return std::nullopt;
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf})
    if (name == dtype_name(type)) return type;
  throw_invalid("dtype must be {}{}float32, bfloat16 or float16, but is '{}'", own, own.empty() ? "" : ", ", name);
}

std::string dtype_name(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return "float32";
    case at::kBFloat16:
      return "bfloat16";
    case at::kHalf:
      return "float16";
    case at::kDouble:
      return "float64";
    default:
      return c10::toString(type);
  }
}

std::shared_ptr<VisionLanguageModel> load(const std::filesystem::path& folder, std::optional<at::ScalarType> dtype,
                                          at::Device device) {
  const Json config = read_config(folder);
  return blaming(folder, [&] {
    const bool is_released = is_released_llava(config);
    if (!is_released) family_of(config);  // before anything large is read
    std::map<std::string, at::Tensor> written = read_weights(folder);
    Json plain = config;
    if (is_released) {
      LlavaImport import = import_released_llava(config, std::move(written), folder);
      plain = std::move(import.config);
      written = std::move(import.weights);
    }
    const std::shared_ptr<VisionLanguageModel> model = [&] {
      const nn::WithoutParameterMemory none(device);
      return family_of(plain).make(plain);
    }();
    std::map<std::string, at::Tensor> weights;
    for (auto& [name, tensor] : written) {
      if (is_constant(name)) continue;
      const std::string registered = model->registered_name(name);
      if (!weights.emplace(registered, std::move(tensor)).second) {
        throw_failure("{}: two tensors of the checkpoint mean '{}'", folder.string(), registered);
      }
    }
    fill_parameters(*model, std::move(weights), dtype, device, folder);
    return model;
  });
}

std::shared_ptr<VisionLanguageModel> make_empty(const std::filesystem::path& folder) {
  const Json config = read_config(folder);
  return blaming(folder, [&] {
    // The settings of LLaVA's own checkpoints stand in the shapes of their weights.
    const Json plain =
        is_released_llava(config) ? import_released_llava(config, read_weights(folder), folder).config : config;
    const nn::WithoutParameterMemory none;
    return family_of(plain).make(plain);
  });
}

std::shared_ptr<VisionLanguageModel> create(const Json& config, std::uint64_t seed) {
  const std::shared_ptr<VisionLanguageModel> model = family_of(config).make(config);
  const at::NoGradGuard no_grad;
  for (auto& item : model->named_parameters()) {
    at::Tensor& parameter = item.value();
    if (parameter.dim() < 2 && !item.key().ends_with("class_embedding")) {
      parameter.fill_(item.key().ends_with(".bias") ? 0.0 : 1.0);
      continue;
    }
    RandomStream random({seed, hash_key(item.key())});
    const std::int64_t fan_in = parameter.dim() < 2 ? parameter.numel() : parameter.numel() / parameter.size(0);
    const double deviation = 1.0 / std::sqrt(static_cast<double>(fan_in));
    float* values = parameter.mutable_data_ptr<float>();
    for (std::int64_t i = 0; i < parameter.numel(); ++i) values[i] = static_cast<float>(deviation * random.normal());
  }
  for (const auto& module : model->modules(false))
    if (const auto norm = std::dynamic_pointer_cast<nn::RmsNorm>(module); norm && norm->centred()) norm->weight.zero_();
  return model;
}

FolderContent model_content(const VisionLanguageModel& model) {
  NamedTensors tensors;
  for (const auto& item : model.named_parameters()) tensors.emplace_back(item.key(), item.value());
  Json config = model.config();
  config["dtype"] = dtype_name(tensors.front().second.scalar_type());
  config.erase("torch_dtype");
  const SpecialTokens& tokens = model.special_tokens();
  Json generation = {{"eos_token_id", tokens.end}};
  if (tokens.pad >= 0) generation["pad_token_id"] = tokens.pad;
  FolderContent content;
  content.tensors["model.safetensors"] = std::move(tensors);
  content.texts["config.json"] = config.dump(2) + "\n";
  content.texts["generation_config.json"] = generation.dump(2) + "\n";
  return content;
}

void save(const VisionLanguageModel& model, const std::filesystem::path& folder) {
  write_content(model_content(model), folder);
}

}  // namespace thinkvg::models
