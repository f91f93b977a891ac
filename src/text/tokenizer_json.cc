#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "text/readers.h"
#include "text/unicode.h"
#include "thinkvg/core/error.h"
#include "thinkvg/core/files.h"

namespace thinkvg::text {
namespace fs = std::filesystem;
namespace {

// Reads tokenizer.json in one pass: model.vocab and model.merges, which hold nearly all of it, go straight to where
// they are used, the rest becomes a small document.
class FileHandler final : public nlohmann::json_sax<Json> {
 public:
  Json document;
  Vocabulary vocabulary;
  std::vector<std::pair<std::string, std::string>> merges;
  std::string error;

  bool null() override { return value(nullptr); }
  bool boolean(bool v) override { return value(v); }
  bool number_integer(number_integer_t v) override { return number(static_cast<std::int64_t>(v)); }
  bool number_unsigned(number_unsigned_t v) override { return number(static_cast<std::int64_t>(v)); }
  bool number_float(number_float_t v, const string_t&) override { return value(v); }
  bool binary(binary_t&) override { return value(nullptr); }

  bool string(string_t& v) override {
    if (place_ == Place::kMerges) {
      if (depth_ == 2) {
        (merges.back().first.empty() ? merges.back().first : merges.back().second) = v;
        return true;
      }
      const std::size_t cut = v.find(' ');
      if (cut == std::string::npos || cut == 0 || cut + 1 == v.size()) return fail("the merge '" + v + "' is no pair");
      merges.emplace_back(v.substr(0, cut), v.substr(cut + 1));
      return true;
    }
    return value(v);
  }

  bool key(string_t& v) override {
    keys_.back() = v;
    return true;
  }

  bool start_object(std::size_t) override { return open(Json::object()); }
  bool end_object() override { return close(); }
  bool start_array(std::size_t) override { return open(Json::array()); }
  bool end_array() override { return close(); }

  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception& e) override {
    return fail(std::string("at byte ") + std::to_string(position) + ": " + e.what());
  }

 private:
  enum class Place { kDocument, kVocabulary, kMerges };

  bool fail(const std::string& why) {
    error = why;
    return false;
  }

  bool number(std::int64_t v) {
    if (place_ != Place::kVocabulary) return value(v);
    if (depth_ == 1) vocabulary.add(v, keys_.back());
    return true;
  }

  template <class Value>
  bool value(Value&& v) {
    if (place_ == Place::kDocument) put(std::forward<Value>(v));
    return true;
  }

  Json* put(Json v) {
    if (open_.empty()) {
      document = std::move(v);
      return &document;
    }
    Json& parent = *open_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(v));
      return &parent.back();
    }
    return &(parent[keys_.back()] = std::move(v));
  }

  bool open(Json container) {
    if (place_ == Place::kDocument && keys_.size() == 2 && keys_[0] == "model" &&
        (keys_[1] == "vocab" || keys_[1] == "merges") && container.is_object() == (keys_[1] == "vocab")) {
      place_ = keys_[1] == "vocab" ? Place::kVocabulary : Place::kMerges;
      depth_ = 1;
    } else if (place_ != Place::kDocument) {
      ++depth_;
      if (place_ == Place::kMerges && depth_ == 2) merges.emplace_back();
    } else {
      open_.push_back(put(std::move(container)));
    }
    keys_.emplace_back();
    return true;
  }

  bool close() {
    keys_.pop_back();
    if (place_ == Place::kDocument)
      open_.pop_back();
    else if (--depth_ == 0)
      place_ = Place::kDocument;
    return true;
  }

  std::vector<Json*> open_;
  std::vector<std::string> keys_;
  Place place_ = Place::kDocument;
  int depth_ = 0;
};

std::string type_of(const Json& object) { return object.is_object() ? object.value("type", "without a type") : "null"; }

[[noreturn]] void unsupported(const std::string& file, const std::string& what, const std::string& name,
                              const std::string& known) {
  throw_failure("{}: the {} '{}' is not supported; supported are {}", file, what, name, known);
}

// A field that may be missing or null.
template <class Value>
Value field(const Json& object, const char* name, const Value& otherwise) {
  const auto found = object.find(name);
  return found == object.end() || found->is_null() ? otherwise : found->get<Value>();
}

// {"String": ".."} or {"Regex": ".."}.
std::shared_ptr<const Pattern> pattern_of(const Json& object, std::string* literal = nullptr) {
  const Json& pattern = object.at("pattern");
  if (pattern.contains("Regex")) return std::make_shared<const Pattern>(pattern.at("Regex").get<std::string>());
  const auto text = pattern.at("String").get<std::string>();
  if (literal != nullptr) *literal = text;
  return std::make_shared<const Pattern>(Pattern::literal(text));
}

void add_normalizers(const std::string& file, const Json& object, std::vector<NormalizerStep>& steps) {
  if (object.is_null()) return;
  const std::string type = type_of(object);
  NormalizerStep step;
  if (type == "Sequence") {
    for (const Json& part : object.at("normalizers")) add_normalizers(file, part, steps);
    return;
  }
  if (type == "NFC") {
    step.kind = NormalizerStep::Kind::kNfc;
  } else if (type == "Prepend") {
    step.kind = NormalizerStep::Kind::kPrepend;
    step.content = object.at("prepend").get<std::string>();
  } else if (type == "Replace") {
    step.kind = NormalizerStep::Kind::kReplace;
    step.pattern = pattern_of(object, &step.literal);
    step.content = object.at("content").get<std::string>();
  } else {
    unsupported(file, "normalizer", type, "NFC, Prepend, Replace, Sequence");
  }
  steps.push_back(std::move(step));
}

SplitBehavior behavior_of(const std::string& file, const std::string& name) {
  if (name == "Removed") return SplitBehavior::kRemoved;
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  unsupported(file, "split behavior", name, "Removed, Isolated, MergedWithPrevious, MergedWithNext, Contiguous");
}

// Returns whether bytes are written by their visible stand-ins from here on.
bool add_pre_tokenizers(const std::string& file, const Json& object, std::vector<PreTokenizerStep>& steps) {
  if (object.is_null()) return false;
  const std::string type = type_of(object);
  PreTokenizerStep step;
  if (type == "Sequence") {
    bool bytes = false;
    for (const Json& part : object.at("pretokenizers")) {
      if (bytes) throw_failure("{}: a pre-tokenizer behind ByteLevel is not supported", file);
      bytes = add_pre_tokenizers(file, part, steps);
    }
    return bytes;
  }
  if (type == "Split") {
    step.pattern = pattern_of(object);
    step.behavior = behavior_of(file, object.at("behavior").get<std::string>());
    step.invert = field(object, "invert", false);
    steps.push_back(std::move(step));
    return false;
  }
  if (type == "Digits") {
    step.kind = PreTokenizerStep::Kind::kDigits;
    step.behavior = field(object, "individual_digits", false) ? SplitBehavior::kIsolated : SplitBehavior::kContiguous;
    steps.push_back(std::move(step));
    return false;
  }
  if (type == "Metaspace") {
    step.kind = PreTokenizerStep::Kind::kMetaspace;
    step.replacement = object.at("replacement").get<std::string>();
    step.split = field(object, "split", true);
    const std::string scheme = field<std::string>(object, "prepend_scheme", "always");
    step.prepend = scheme == "first"   ? PrependScheme::kFirst
                   : scheme == "never" ? PrependScheme::kNever
                                       : PrependScheme::kAlways;
    if (!field(object, "add_prefix_space", true)) step.prepend = PrependScheme::kNever;
    steps.push_back(std::move(step));
    return false;
  }
  if (type == "ByteLevel") {
    for (PreTokenizerStep& part : byte_level_steps(field(object, "use_regex", true) ? kGpt2Pattern : "",
                                                   field(object, "add_prefix_space", true)))
      steps.push_back(std::move(part));
    return true;
  }
  unsupported(file, "pre-tokenizer", type, "Split, Digits, Metaspace, ByteLevel, Sequence");
}

void add_decoders(const std::string& file, const Json& object, DecoderSteps& steps) {
  const std::string type = type_of(object);
  if (type == "Sequence") {
    for (const Json& part : object.at("decoders")) add_decoders(file, part, steps);
  } else if (type == "ByteLevel") {
    steps.byte_level = true;
  } else if (type == "ByteFallback") {
    steps.byte_fallback = true;
  } else if (type == "Fuse") {
    // Pieces are put together anyway.
  } else if (type == "Replace" && object.at("pattern").contains("String") && object.at("content") == " ") {
    steps.space = object.at("pattern").at("String").get<std::string>();
  } else if (type == "Strip" && object.at("content") == " " && field<std::int64_t>(object, "stop", 0) == 0) {
    steps.strip_spaces = static_cast<std::size_t>(field<std::int64_t>(object, "start", 0));
  } else if (type == "Metaspace") {
    steps.space = object.at("replacement").get<std::string>();
    steps.strip_first =
        field<std::string>(object, "prepend_scheme", "always") != "never" && field(object, "add_prefix_space", true);
  } else {
    unsupported(file, "decoder", type,
                "ByteLevel, Metaspace, and sequences of Replace (by a space), ByteFallback, Fuse and Strip (spaces at "
                "the start)");
  }
}

void add_template(const Json& object, BpeTokenizerParts& parts) {
  const std::string type = type_of(object);
  if (type == "Sequence")
    for (const Json& part : object.at("processors")) add_template(part, parts);
  if (type != "TemplateProcessing") return;
  parts.begin_ids.clear();
  parts.end_ids.clear();
  bool behind = false;
  for (const Json& piece : object.at("single")) {
    if (piece.contains("Sequence")) behind = true;
    if (!piece.contains("SpecialToken")) continue;
    const auto name = piece.at("SpecialToken").at("id").get<std::string>();
    for (const Json& id : object.at("special_tokens").at(name).at("ids"))
      (behind ? parts.end_ids : parts.begin_ids).push_back(id.get<std::int64_t>());
  }
}

BpeTokenizerParts parts_of(const std::string& file, FileHandler& handler) {
  const Json& document = handler.document;
  const Json none;
  const auto section = [&](const char* name) -> const Json& {
    const auto found = document.find(name);
    return found == document.end() ? none : *found;
  };
  const Json& model = section("model");
  // Old files name no type.
  const std::string type =
      model.is_object() && !model.contains("type") && !handler.merges.empty() ? "BPE" : type_of(model);
  if (type != "BPE") unsupported(file, "model", type, "BPE");
  for (const char* name : {"continuing_subword_prefix", "end_of_word_suffix"})
    if (!field<std::string>(model, name, "").empty()) unsupported(file, "model setting", name, "models without it");
  if (field(model, "dropout", 0.0) != 0.0) unsupported(file, "model setting", "dropout", "models without it");

  BpeTokenizerParts parts;
  parts.vocabulary = std::move(handler.vocabulary);
  const auto id_of = [&](const std::string& piece) {
    const std::int64_t id = parts.vocabulary.id_of(piece);
    if (id < 0) throw_failure("{}: the merges name '{}', which the vocabulary lacks", file, piece);
    return id;
  };
  parts.merges.reserve(handler.merges.size());
  for (const auto& [left, right] : handler.merges)
    parts.merges.push_back(
        {id_of(left), id_of(right), id_of(left + right), static_cast<std::int64_t>(parts.merges.size())});
  parts.options.byte_fallback = field(model, "byte_fallback", false);
  parts.options.fuse_unknown = field(model, "fuse_unk", false);
  parts.options.ignore_merges = field(model, "ignore_merges", false);
  if (const auto unknown = field<std::string>(model, "unk_token", ""); !unknown.empty())
    parts.options.unknown = parts.vocabulary.id_of(unknown);

  for (const Json& token : section("added_tokens")) {
    parts.added.push_back({token.at("id").get<std::int64_t>(), token.at("content").get<std::string>(),
                           field(token, "single_word", false), field(token, "lstrip", false),
                           field(token, "rstrip", false), field(token, "normalized", true),
                           field(token, "special", false)});
  }
  add_normalizers(file, section("normalizer"), parts.normalizer);
  const bool bytes = add_pre_tokenizers(file, section("pre_tokenizer"), parts.pre_tokenizer);
  add_decoders(file, section("decoder"), parts.decoder);
  if (bytes != parts.decoder.byte_level)
    throw_failure("{}: pre-tokenizer and decoder must both be of the kind ByteLevel, or none of them", file);
  add_template(section("post_processor"), parts);
  return parts;
}

}  // namespace

std::vector<PreTokenizerStep> byte_level_steps(const std::string& pattern, bool add_prefix_space) {
  std::vector<PreTokenizerStep> steps;
  if (add_prefix_space) {
    PreTokenizerStep step;
    step.kind = PreTokenizerStep::Kind::kPrefixSpace;
    steps.push_back(std::move(step));
  }
  if (!pattern.empty()) {
    PreTokenizerStep step;
    step.pattern = std::make_shared<const Pattern>(pattern);
    steps.push_back(std::move(step));
  }
  return steps;
}

BpeTokenizerParts read_tokenizer_json(const fs::path& file) {
  FileHandler handler;
  const std::string content = read_file(file);
  if (!Json::sax_parse(content, &handler)) throw_failure("cannot read {}: {}", file.string(), handler.error);
  try {
    return parts_of(file.string(), handler);
  } catch (const Json::exception& error) {
    throw_failure("cannot read {}: {}", file.string(), error.what());
  }
}

}  // namespace thinkvg::text
