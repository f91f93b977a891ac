#include "thinkvg/models/bundle.h"

#include <algorithm>
#include <charconv>

#include "thinkvg/core/error.h"
#include "thinkvg/core/files.h"
#include "thinkvg/models/adapters.h"
#include "thinkvg/models/llava.h"
#include "thinkvg/models/skeleton.h"

namespace thinkvg::models {
namespace fs = std::filesystem;
namespace {

constexpr const char* kTokenizerFiles[] = {"tokenizer.model",     "tokenizer.json",    "tokenizer_config.json",
                                           "vocab.json",          "merges.txt",        "tekken.json",
                                           "qwen.tiktoken",       "added_tokens.json", "special_tokens_map.json",
                                           "chat_template.jinja", "chat_template.json"};

std::int64_t step_of(const fs::path& checkpoint) {
  const std::string name = checkpoint.filename().string();
  std::int64_t step = -1;
  if (name.starts_with("step-")) {
    const auto [stop, error] = std::from_chars(name.data() + 5, name.data() + name.size(), step);
    if (error != std::errc() || stop != name.data() + name.size()) return -1;
  }
  return step;
}

}  // namespace

std::map<std::string, std::string> read_tokenizer_files(const fs::path& folder) {
  std::map<std::string, std::string> files;
  for (const char* name : kTokenizerFiles)
    if (fs::exists(folder / name)) files[name] = read_file(folder / name);
  return files;
}

namespace {

// processor_config.json without the picture's part, which preprocessor_config.json holds as it is used.
std::map<std::string, std::string> read_processor_files(const fs::path& folder) {
  std::map<std::string, std::string> files;
  for (const char* name : {"video_preprocessor_config.json", "generation_config.json"})
    if (fs::exists(folder / name)) files[name] = read_file(folder / name);
  if (const char* name = "processor_config.json"; fs::exists(folder / name)) {
    Json config = read_json_file(folder / name);
    if (!config.is_object()) throw_failure("{}: expected a JSON object", (folder / name).string());
    config.erase("image_processor");
    files[name] = config.dump(2) + "\n";
  }
  return files;
}

// Makes the files of a tokenizer know one more special token.
void add_special_token(std::map<std::string, std::string>& files, const std::string& name, std::int64_t id) {
  Json token = {{"content", name}, {"lstrip", false},      {"normalized", false},
                {"rstrip", false}, {"single_word", false}, {"special", true}};
  const auto edit = [&](const char* file, const auto& change) {
    const auto found = files.find(file);
    Json content = found == files.end() ? Json::object() : Json::parse(found->second);
    change(content);
    files[file] = content.dump(2) + "\n";
  };
  if (files.contains("tokenizer.json")) {
    edit("tokenizer.json", [&](Json& content) {
      Json numbered = token;
      numbered["id"] = id;
      content["added_tokens"].push_back(numbered);
    });
  }
  bool is_listed = false;
  if (files.contains("tokenizer_config.json")) {
    edit("tokenizer_config.json", [&](Json& content) {
      if (!content.contains("added_tokens_decoder")) return;
      content["added_tokens_decoder"][std::to_string(id)] = token;
      is_listed = true;
    });
  }
  if (!is_listed || files.contains("added_tokens.json"))
    edit("added_tokens.json", [&](Json& content) { content[name] = id; });
}

// What a checkpoint of LLaVA's own code lacks in the layout of Hugging Face: the token that stands for a picture, the
// processor's settings, and its conversation as a template. `folder`: the checkpoint's.
void add_llava_files(ModelBundle& bundle, const fs::path& folder) {
  const Json& config = bundle.model->config();
  const LlavaImageToken token = imported_image_token(config, folder);
  if (token.is_new) add_special_token(bundle.tokenizer_files, token.name, token.id);
  bundle.processor_files["processor_config.json"] =
      Json({{"processor_class", "LlavaProcessor"},
            {"image_token", token.name},
            {"num_additional_image_tokens", 1},  // the tower's own, which the strategy "default" takes away again
            {"patch_size", config.at("vision_config").at("patch_size")},
            {"vision_feature_select_strategy", config.at("vision_feature_select_strategy")}})
          .dump(2) +
      "\n";
  bundle.tokenizer_files["chat_template.jinja"] = text::chat_template_jinja(*bundle.chat, token.name);
}

// `load_model`: reads the model itself.
template <class LoadModel>
ModelBundle read_bundle(const fs::path& folder, const LoadModel& load_model) {
  ModelBundle bundle;
  bundle.tokenizer = text::load_tokenizer(folder);
  bundle.tokenizer_files = read_tokenizer_files(folder);
  bundle.processor_files = read_processor_files(folder);
  bundle.chat = &text::load_chat_template(folder);
  bundle.processor = std::make_shared<const ImageProcessor>(ImageProcessor::load(folder));
  bundle.model = load_model(folder);
  if (bundle.tokenizer->vocab_size() > bundle.model->vocab_size())
    throw_failure("{}: the tokenizer has {} pieces, but the model's embedding table only {}", folder.string(),
                  bundle.tokenizer->vocab_size(), bundle.model->vocab_size());
  if (is_released_llava(read_json_file(folder / "config.json"))) add_llava_files(bundle, folder);
  return bundle;
}

}  // namespace

ModelBundle load_bundle(const fs::path& folder, std::optional<at::ScalarType> dtype, at::Device device) {
  if (!fs::is_directory(folder)) throw_failure("there is no model folder {}", folder.string());
  if (!is_adapter_folder(folder))
    return read_bundle(folder, [&](const fs::path& path) { return load(path, dtype, device); });
  ModelBundle bundle = load_bundle(adapter_base(folder), dtype, device);
  Adapters(bundle.model, folder).merge();
  return bundle;
}

ModelBundle load_skeleton(const fs::path& folder) {
  if (!fs::is_directory(folder)) throw_failure("there is no model folder {}", folder.string());
  return is_adapter_folder(folder) ? load_skeleton(adapter_base(folder)) : read_bundle(folder, make_empty);
}

FolderContent bundle_content(const ModelBundle& bundle) {
  FolderContent content = model_content(*bundle.model);
  content.texts["preprocessor_config.json"] = bundle.processor->to_json().dump(2) + "\n";
  for (const auto& [name, text] : bundle.tokenizer_files) content.texts[name] = text;
  for (const auto& [name, text] : bundle.processor_files) content.texts[name] = text;
  // transformers' processors read the template from a file of its own alone, not out of the tokenizer's settings.
  const auto settings = bundle.tokenizer_files.find("tokenizer_config.json");
  if (settings != bundle.tokenizer_files.end() && !content.texts.contains("chat_template.jinja") &&
      !content.texts.contains("chat_template.json")) {
    const Json config = Json::parse(settings->second);
    if (config.contains("chat_template") && config.at("chat_template").is_string())
      content.texts["chat_template.jinja"] = config.at("chat_template").get<std::string>();
  }
  const auto drawn = bundle.processor_files.find("generation_config.json");
  Json generation = drawn == bundle.processor_files.end() ? Json({{"do_sample", false}}) : Json::parse(drawn->second);
  const SpecialTokens& special = bundle.model->special_tokens();
  generation["eos_token_id"] = special.end;
  if (special.pad >= 0) generation["pad_token_id"] = special.pad;
  content.texts["generation_config.json"] = generation.dump(2) + "\n";
  return content;
}

void save_bundle(const ModelBundle& bundle, const fs::path& folder) { write_content(bundle_content(bundle), folder); }

std::vector<fs::path> checkpoints_of(const fs::path& run) {
  std::vector<fs::path> found;
  if (fs::is_directory(run / "checkpoints"))
    for (const auto& entry : fs::directory_iterator(run / "checkpoints"))
      if (step_of(entry.path()) >= 0) found.push_back(entry.path());
  std::sort(found.begin(), found.end(), [](const fs::path& a, const fs::path& b) { return step_of(a) < step_of(b); });
  return found;
}

fs::path resolve_model_folder(const fs::path& folder) {
  if (fs::exists(folder / "config.json") || is_adapter_folder(folder)) return folder;
  const std::vector<fs::path> all = checkpoints_of(folder);
  if (all.empty())
    throw_failure("{} is neither a model folder (no config.json) nor a run with checkpoints", folder.string());
  return all.back();
}

}  // namespace thinkvg::models
