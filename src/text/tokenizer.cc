#include "thinkvg/text/tokenizer.h"

#include <algorithm>
#include <atomic>
#include <charconv>
#include <exception>
#include <thread>

#include "text/readers.h"
#include "text/unicode.h"
#include "thinkvg/core/error.h"
#include "thinkvg/core/files.h"
#include "thinkvg/core/json.h"

namespace thinkvg::text {
namespace fs = std::filesystem;
namespace {

Json read_object(const fs::path& file) {
  if (!fs::exists(file)) return Json::object();
  Json object = read_json_file(file);
  if (!object.is_object()) throw_failure("{}: expected a JSON object", file.string());
  return object;
}

bool flag(const Json& object, const char* name, bool otherwise) {
  const auto found = object.find(name);
  return found != object.end() && found->is_boolean() ? found->get<bool>() : otherwise;
}

// Adds the tokens that stand beside the vocabulary in other files than tokenizer.json.
class TokenMerger {
 public:
  explicit TokenMerger(BpeTokenizerParts& parts) : parts_(parts), next_id_(parts.vocabulary.size()) {
    for (const AddedToken& token : parts.added) next_id_ = std::max(next_id_, token.id + 1);
  }

  // `described`: the content, or an object with content and flags. `id`: -1 where the file gives none.
  void add(const Json& described, std::int64_t id, bool special) {
    AddedToken token;
    token.special = special;
    if (described.is_string()) {
      token.content = described.get<std::string>();
    } else if (described.is_object() && described.contains("content") && described.at("content").is_string()) {
      token.content = described.at("content").get<std::string>();
      token.single_word = flag(described, "single_word", false);
      token.lstrip = flag(described, "lstrip", false);
      token.rstrip = flag(described, "rstrip", false);
      token.normalized = flag(described, "normalized", !special);
      token.special = flag(described, "special", special) || special;
    }
    if (token.content.empty()) return;
    for (AddedToken& present : parts_.added) {
      if (present.content != token.content) continue;
      present.special = present.special || token.special;
      return;
    }
    const std::int64_t known = parts_.vocabulary.id_of(token.content);
    token.id = known >= 0 ? known : id >= 0 ? id : next_id_;
    next_id_ = std::max(next_id_, token.id + 1);
    parts_.added.push_back(std::move(token));
  }

 private:
  BpeTokenizerParts& parts_;
  std::int64_t next_id_;
};

std::string content_of(const Json& described) {
  if (described.is_string()) return described.get<std::string>();
  if (described.is_object() && described.contains("content") && described.at("content").is_string())
    return described.at("content").get<std::string>();
  return {};
}

void merge_config(const fs::path& folder, const Json& config, BpeTokenizerParts& parts) {
  TokenMerger tokens(parts);
  const Json& added = config.value("added_tokens_decoder", Json::object());
  std::vector<std::pair<std::int64_t, const Json*>> by_id;
  for (const auto& [key, described] : added.items()) {
    std::int64_t id = -1;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (error != std::errc() || end != key.data() + key.size() || id < 0)
      throw_failure("{}: added_tokens_decoder has the key '{}', expected an id", folder.string(), key);
    by_id.emplace_back(id, &described);
  }
  std::sort(by_id.begin(), by_id.end());
  for (const auto& [id, described] : by_id) tokens.add(*described, id, false);
  const Json map = read_object(folder / "special_tokens_map.json");
  const Json beside = read_object(folder / "added_tokens.json");
  for (const auto& [content, id] : beside.items())
    if (id.is_number_integer()) tokens.add(content, id.get<std::int64_t>(), false);
  for (const char* name :
       {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"}) {
    for (const Json* source : {&config, &map}) {
      if (!source->contains(name)) continue;
      const std::string content = content_of(source->at(name));
      if (content.empty()) continue;
      parts.named_tokens.emplace(name, content);
      tokens.add(source->at(name), -1, true);
    }
  }
  for (const char* name : {"additional_special_tokens", "extra_special_tokens"}) {
    for (const Json* source : {&config, &map}) {
      if (!source->contains(name) || !source->at(name).is_structured()) continue;
      for (const Json& described : source->at(name)) tokens.add(described, -1, true);
    }
  }
  // transformers lets these settings overrule tokenizer.json.
  const auto set_ids = [&](const char* setting, const char* token, std::vector<std::int64_t>& ids) {
    if (!config.contains(setting) || !config.at(setting).is_boolean()) return;
    ids.clear();
    const auto named = parts.named_tokens.find(token);
    if (!config.at(setting).get<bool>() || named == parts.named_tokens.end()) return;
    for (const AddedToken& present : parts.added)
      if (present.content == named->second) ids = {present.id};
  };
  const bool overruled = flag(config, "add_bos_token", false) || flag(config, "add_eos_token", false) ||
                         config.contains("add_bos_token") || config.contains("add_eos_token");
  if (overruled) {
    parts.begin_ids.clear();
    parts.end_ids.clear();
    set_ids("add_bos_token", "bos_token", parts.begin_ids);
    set_ids("add_eos_token", "eos_token", parts.end_ids);
  }
}

// What QWenTokenizer knows by itself.
void add_qwen_tokens(BpeTokenizerParts& parts) {
  parts.normalizer.push_back({});  // NFC
  TokenMerger tokens(parts);
  for (const char* token : {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}) tokens.add(token, -1, true);
  for (int i = 0; i < 205; ++i) tokens.add(fmt::format("<|extra_{}|>", i), -1, true);
}

// A tiktoken file is lines of base64; a sentencepiece model starts with the tag of its first field.
bool is_tiktoken(const fs::path& file) {
  const std::string content = read_file(file);
  return !content.empty() && content.front() != '\n';
}

fs::path find_tiktoken(const fs::path& folder) {
  if (fs::is_directory(folder))
    for (const auto& entry : fs::directory_iterator(folder))
      if (entry.path().extension() == ".tiktoken") return entry.path();
  return {};
}

BpeTokenizerParts read_parts(const fs::path& folder, const Json& config, const std::string& kind) {
  if (fs::exists(folder / "tokenizer.json")) return read_tokenizer_json(folder / "tokenizer.json");
  if (fs::exists(folder / "vocab.json") && fs::exists(folder / "merges.txt")) {
    const bool gpt2 = kind == "GPT2Tokenizer";
    if (!gpt2 && kind != "Qwen2Tokenizer" && !kind.empty())
      throw_failure(
          "{}: vocab.json and merges.txt of the tokenizer_class '{}' are not supported; supported are "
          "Qwen2Tokenizer and GPT2Tokenizer, and every class with a tokenizer.json",
          folder.string(), kind);
    return read_vocab_and_merges(folder / "vocab.json", folder / "merges.txt", gpt2 ? kGpt2Pattern : kQwenPattern,
                                 !gpt2);
  }
  if (const fs::path model = folder / "tokenizer.model"; fs::exists(model)) {
    if (is_tiktoken(model)) return read_tiktoken(model, kLlama3Pattern);
    SentencePieceOptions options;
    options.gemma = kind == "GemmaTokenizer";
    options.legacy = flag(config, "legacy", false);
    options.add_prefix_space = flag(config, "add_prefix_space", true);
    return read_sentencepiece(model, options);
  }
  if (fs::exists(folder / "tekken.json")) return read_tekken(folder / "tekken.json");
  if (const fs::path file = find_tiktoken(folder); !file.empty()) {
    if (file.filename() != "qwen.tiktoken" && kind != "QWenTokenizer")
      throw_failure(
          "{}: the pattern that cuts words for this vocabulary is not known; supported are qwen.tiktoken, a "
          "tokenizer.model with LLaMA 3's ranks, and every vocabulary with a tokenizer.json",
          file.string());
    BpeTokenizerParts parts = read_tiktoken(file, kQwenPattern);
    add_qwen_tokens(parts);
    return parts;
  }
  throw_failure(
      "{} has no tokenizer: expected tokenizer.json, vocab.json with merges.txt, tokenizer.model (sentencepiece BPE), "
      "tekken.json or qwen.tiktoken",
      folder.string());
}

}  // namespace

std::vector<std::int64_t> Tokenizer::encode(std::string_view text, TextPlace place) const {
  return is_valid_utf8(text) ? encode_valid(text, place) : encode_valid(replace_invalid_utf8(text), place);
}

std::vector<std::vector<std::int64_t>> Tokenizer::encode_batch(std::span<const std::string> texts,
                                                               int num_threads) const {
  if (num_threads < 1) throw_invalid("encode_batch needs at least one thread, but num_threads is {}", num_threads);
  std::vector<std::vector<std::int64_t>> ids(texts.size());
  std::atomic<std::size_t> next = 0;
  const auto work = [&] {
    for (std::size_t i = next++; i < texts.size(); i = next++) ids[i] = encode(texts[i]);
  };
  std::vector<std::exception_ptr> errors(std::min(static_cast<std::size_t>(num_threads), texts.size()));
  {
    std::vector<std::jthread> threads;
    for (std::size_t t = 1; t < errors.size(); ++t)
      threads.emplace_back([&, t] {
        try {
          work();
        } catch (...) {
          errors[t] = std::current_exception();
        }
      });
    work();
  }
  for (const std::exception_ptr& error : errors)
    if (error) std::rethrow_exception(error);
  return ids;
}

std::int64_t Tokenizer::token_id(std::string_view piece) const {
  const auto id = find(piece);
  if (!id) throw_invalid("the tokenizer has no piece '{}'", piece);
  return *id;
}

std::unique_ptr<Tokenizer> load_tokenizer(const fs::path& folder) {
  const Json config = read_object(folder / "tokenizer_config.json");
  std::string kind = content_of(config.value("tokenizer_class", Json("")));
  if (kind.ends_with("Fast")) kind.resize(kind.size() - 4);
  BpeTokenizerParts parts = read_parts(folder, config, kind);
  try {
    merge_config(folder, config, parts);
  } catch (const Json::exception& error) {
    throw_failure("cannot read tokenizer_config.json of {}: {}", folder.string(), error.what());
  }
  return std::make_unique<BpeTokenizer>(std::move(parts));
}

}  // namespace thinkvg::text
