#include "thinkvg/models/adapters.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <spdlog/fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <regex>
#include <set>

#include "thinkvg/core/error.h"
#include "thinkvg/core/files.h"
#include "thinkvg/core/random.h"
#include "thinkvg/nn/layers.h"

namespace thinkvg::models {
namespace fs = std::filesystem;
namespace {

constexpr std::pair<const char*, ModelPart> kParts[] = {
    {"language", ModelPart::language}, {"projector", ModelPart::projector}, {"vision", ModelPart::vision}};
constexpr const char* kAllLinear = "all-linear";
constexpr const char* kHead = "lm_head";
constexpr const char* kPeftPrefix = "base_model.model.";

using NamedLinears = std::vector<std::pair<std::string, std::shared_ptr<nn::Linear>>>;

// The linear layers that may be adapted: all but the output head, as PEFT's all-linear.
NamedLinears linears_of(const VisionLanguageModel& model) {
  NamedLinears linears;
  for (const auto& item : model.named_modules("", false))
    if (auto linear = std::dynamic_pointer_cast<nn::Linear>(item.value()); linear && !item.key().ends_with(kHead))
      linears.emplace_back(item.key(), std::move(linear));
  return linears;
}

std::shared_ptr<nn::Linear> linear_of(const VisionLanguageModel& model, const std::string& name) {
  for (auto& [key, linear] : linears_of(model))
    if (key == name) return linear;
  return nullptr;
}

bool matches(const std::string& module, const std::vector<std::string>& targets) {
  return std::any_of(targets.begin(), targets.end(), [&](const std::string& target) {
    return target == kAllLinear || module == target || module.ends_with("." + target);
  });
}

double scale_of(std::int64_t rank, double alpha, bool rslora) {
  return alpha / (rslora ? std::sqrt(static_cast<double>(rank)) : static_cast<double>(rank));
}

std::string short_list(const std::set<std::string>& names) { return fmt::format("{}", fmt::join(names, ", ")); }

// Features of PEFT's configurations that change the result and are not offered here.
void check_supported(const Json& config, const std::string& file) {
  const auto refuse = [&](const char* key, const Json& value) {
    throw_failure("{}: {} is {}, which is not supported; export a plain LoRA adapter, or merge it before", file, key,
                  value.dump());
  };
  if (config.value("peft_type", "") != "LORA")
    throw_failure("{}: peft_type is {}; expected \"LORA\"", file, config.value("peft_type", Json()).dump());
  for (const char* key : {"use_dora", "fan_in_fan_out", "lora_bias", "use_qalora"})
    if (config.value(key, Json()) == Json(true)) refuse(key, true);
  if (config.value("bias", "none") != "none") refuse("bias", config.at("bias"));
  for (const char* key : {"modules_to_save", "trainable_token_indices", "layer_replication", "alora_invocation_tokens",
                          "arrow_config", "use_bdlora", "kasa_config", "monteclora_config", "target_parameters"})
    if (const Json value = config.value(key, Json()); !value.is_null() && !value.empty()) refuse(key, value);
  // Ways to start from another base than the model that the folder names: its weights were changed.
  const Json start = config.value("init_lora_weights", Json());
  for (const char* known : {"pissa", "corda", "olora", "loftq", "lora_ga"})
    if (start.is_string() && start.get<std::string>().starts_with(known)) refuse("init_lora_weights", start);
}

// rank_pattern and alpha_pattern: the value of the first regular expression that is the module's name or, behind a dot,
// its end.
template <class Value>
Value patterned(const Json& config, const char* key, const std::string& module, Value fallback,
                const std::string& file) {
  const Json patterns = config.value(key, Json::object());
  if (!patterns.is_object()) return fallback;
  for (const auto& [pattern, value] : patterns.items()) {
    try {
      if (std::regex_match(module, std::regex("(.*\\.)?(" + pattern + ")"))) return value.template get<Value>();
    } catch (const std::regex_error& error) {
      throw_failure("{}: {} holds '{}', which is no regular expression: {}", file, key, pattern, error.what());
    }
  }
  return fallback;
}

}  // namespace

Adapters::Adapters(std::shared_ptr<VisionLanguageModel> model, const LoraOptions& options, std::uint64_t seed)
    : model_(std::move(model)), options_(options) {
  options.check();
  if (options.rank < 1) throw_invalid("lora.rank must be at least 1 for adapters, but is {}", options.rank);
  std::set<std::string> known;
  for (const auto& [name, linear] : linears_of(*model_)) {
    const ModelPart part = model_->part_of(name);
    const bool wanted = std::any_of(options.parts.begin(), options.parts.end(), [&](const std::string& given) {
      return std::any_of(std::begin(kParts), std::end(kParts), [&](const std::pair<const char*, ModelPart>& item) {
        return item.first == given && item.second == part;
      });
    });
    if (!wanted) continue;
    known.insert(name.substr(name.rfind('.') + 1));
    if (!matches(name, options.target_modules)) continue;
    attach(name, options.rank, options.alpha);
    nn::LowRankAdapter& adapter = *adapters_.back().adapter;
    RandomStream random({hash_key("lora"), seed, hash_key(name)});
    // PEFT's kaiming_uniform(a = sqrt(5)).
    const double bound = 1.0 / std::sqrt(static_cast<double>(linear->weight.size(1)));
    at::Tensor down = at::empty(adapter.down.sizes(), at::kFloat);
    float* values = down.mutable_data_ptr<float>();
    for (std::int64_t i = 0; i < down.numel(); ++i) values[i] = static_cast<float>(random.uniform(-bound, bound));
    const at::NoGradGuard no_grad;
    adapter.down.copy_(down);
    adapter.up.zero_();
  }
  if (adapters_.empty())
    throw_invalid("lora.target_modules {} match no linear layer of {}; there are {}",
                  fmt::join(options.target_modules, ", "), fmt::join(options.parts, ", "), short_list(known));
}

Adapters::Adapters(std::shared_ptr<VisionLanguageModel> model, const fs::path& folder) : model_(std::move(model)) {
  const std::string file = (folder / "adapter_config.json").string();
  const Json config = read_json_file(file);
  if (!config.is_object()) throw_failure("{}: expected a JSON object", file);
  check_supported(config, file);
  if (!config.contains("r") || !config.at("r").is_number_integer()) throw_failure("{}: r is missing", file);
  options_.rank = config.at("r").get<std::int64_t>();
  options_.alpha = config.value("lora_alpha", 8.0);
  options_.dropout = config.value("lora_dropout", 0.0);
  options_.rslora = config.value("use_rslora", false);
  options_.target_modules.clear();
  options_.parts.clear();

  std::map<std::string, at::Tensor> tensors;  // by registered module and ".lora_A.weight"
  for (auto& [name, tensor] : read_safetensors(folder / "adapter_model.safetensors")) {
    if (!name.starts_with(kPeftPrefix)) throw_failure("{}: unexpected tensor '{}'", folder.string(), name);
    tensors[model_->registered_name(name.substr(std::string_view(kPeftPrefix).size()))] = tensor;
  }
  std::vector<std::string> problems;
  const at::NoGradGuard no_grad;
  for (const auto& [name, linear] : linears_of(*model_)) {
    const auto down = tensors.find(name + ".lora_A.weight"), up = tensors.find(name + ".lora_B.weight");
    if (down == tensors.end() && up == tensors.end()) continue;
    if (down == tensors.end() || up == tensors.end()) {
      problems.push_back(name + " has only one of lora_A and lora_B");
      continue;
    }
    const std::string published = model_->transformers_name(name);
    const auto rank = patterned<std::int64_t>(config, "rank_pattern", published, options_.rank, file);
    attach(name, rank, patterned<double>(config, "alpha_pattern", published, options_.alpha, file));
    options_.target_modules.push_back(name);
    nn::LowRankAdapter& adapter = *adapters_.back().adapter;
    if (down->second.sizes() != adapter.down.sizes() || up->second.sizes() != adapter.up.sizes()) {
      problems.push_back(fmt::format("{}: lora_A [{}] and lora_B [{}], expected [{}] and [{}]", name,
                                     fmt::join(down->second.sizes(), ", "), fmt::join(up->second.sizes(), ", "),
                                     fmt::join(adapter.down.sizes(), ", "), fmt::join(adapter.up.sizes(), ", ")));
      continue;
    }
    adapter.down.copy_(down->second);
    adapter.up.copy_(up->second);
    tensors.erase(down);
    tensors.erase(up);
  }
  for (const auto& [name, tensor] : tensors)
    if (problems.empty() || !linear_of(*model_, name.substr(0, name.find(".lora_"))))
      problems.push_back("no linear layer for " + name);
  if (!problems.empty())
    throw_failure("{}: the adapter does not fit the model:\n  {}", folder.string(), fmt::join(problems, "\n  "));
  if (adapters_.empty()) throw_failure("{}: the adapter holds no tensors", folder.string());
}

Adapters::~Adapters() {
  for (const Entry& entry : adapters_)
    if (const auto linear = linear_of(*model_, entry.module); linear && linear->adapter == entry.adapter)
      linear->adapter = nullptr;
}

void Adapters::attach(const std::string& module, std::int64_t rank, double alpha) {
  const auto linear = linear_of(*model_, module);
  if (linear->adapter) throw_invalid("{} has an adapter already; merge or drop it first", module);
  const auto options = linear->weight.options().requires_grad(false);
  auto adapter = std::make_shared<nn::LowRankAdapter>();
  adapter->down = at::empty({rank, linear->weight.size(1)}, options).set_requires_grad(true);
  adapter->up = at::empty({linear->weight.size(0), rank}, options).set_requires_grad(true);
  adapter->scale = scale_of(rank, alpha, options_.rslora);
  adapter->dropout = options_.dropout;
  adapter->key = hash_key(module);
  linear->adapter = adapter;
  adapters_.push_back({module, alpha, std::move(adapter)});
}

NamedTensors Adapters::tensors() const {
  NamedTensors named;
  for (const Entry& entry : adapters_) {
    named.emplace_back(entry.module + ".lora_A.weight", entry.adapter->down);
    named.emplace_back(entry.module + ".lora_B.weight", entry.adapter->up);
  }
  return named;
}

FolderContent Adapters::content(const std::string& base_model) const {
  NamedTensors published;
  for (const auto& [name, tensor] : tensors())
    published.emplace_back(kPeftPrefix + model_->transformers_name(name), tensor);
  std::sort(published.begin(), published.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<std::string> targets;
  Json ranks = Json::object(), alphas = Json::object();
  for (const Entry& entry : adapters_) {
    targets.push_back(model_->transformers_name(entry.module));
    if (entry.adapter->down.size(0) != options_.rank) ranks[targets.back()] = entry.adapter->down.size(0);
    if (entry.alpha != options_.alpha) alphas[targets.back()] = entry.alpha;
  }
  const Json config = {{"peft_type", "LORA"},
                       {"task_type", "CAUSAL_LM"},
                       {"base_model_name_or_path", base_model},
                       {"r", options_.rank},
                       {"lora_alpha", options_.alpha},
                       {"lora_dropout", options_.dropout},
                       {"use_rslora", options_.rslora},
                       {"use_dora", false},
                       {"bias", "none"},
                       {"fan_in_fan_out", false},
                       {"inference_mode", true},
                       {"modules_to_save", nullptr},
                       {"rank_pattern", ranks},
                       {"alpha_pattern", alphas},
                       {"target_modules", targets}};
  FolderContent content;
  content.tensors["adapter_model.safetensors"] = std::move(published);
  content.texts["adapter_config.json"] = config.dump(2) + "\n";
  return content;
}

void Adapters::merge() {
  const at::NoGradGuard no_grad;
  for (const Entry& entry : adapters_) {
    const auto linear = linear_of(*model_, entry.module);
    const nn::LowRankAdapter& adapter = *entry.adapter;
    const at::Tensor change = at::matmul(adapter.up.to(at::kFloat), adapter.down.to(at::kFloat)) * adapter.scale;
    linear->weight.copy_(linear->weight.to(at::kFloat) + change);
    linear->adapter = nullptr;
  }
  adapters_.clear();
}

bool is_adapter_folder(const fs::path& folder) { return fs::exists(folder / "adapter_config.json"); }

fs::path adapter_base(const fs::path& folder) {
  const fs::path base = read_json_file(folder / "adapter_config.json").value("base_model_name_or_path", "");
  for (const fs::path& candidate : {base, folder / base})
    if (!base.empty() && fs::exists(candidate / "config.json")) return candidate;
  throw_failure(
      "{}: the adapter belongs to the model '{}', which is not a model folder here; set base_model_name_or_path in its "
      "adapter_config.json to where the model lies",
      folder.string(), base.string());
}

}  // namespace thinkvg::models
