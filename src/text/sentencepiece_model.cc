#include <sentencepiece_trainer.h>

#include <algorithm>
#include <unordered_map>

#include "text/readers.h"
#include "thinkvg/core/error.h"
#include "thinkvg/core/files.h"
#include "thinkvg/core/json.h"
#include "thinkvg/text/chat.h"

namespace thinkvg::text {
namespace fs = std::filesystem;
namespace {

const std::vector<std::string>& chat_markers() {
  static const std::vector<std::string> kMarkers = {"<|endoftext|>",    "<|im_start|>",   "<|im_end|>",
                                                    "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
                                                    "<|video_pad|>"};
  return kMarkers;
}

const std::vector<std::string>& response_tags() {
  static const std::vector<std::string> kTags = {"<think>",  "</think>",  "<response>", "</response>",
                                                 "<answer>", "</answer>", "<location>", "</location>",
                                                 "<ref>",    "</ref>",    "<box>",      "</box>"};
  return kTags;
}

class Texts final : public sentencepiece::SentenceIterator {
 public:
  explicit Texts(const std::vector<std::string>& texts) : texts_(texts) {}
  bool done() const override { return at_ == texts_.size(); }
  void Next() override { ++at_; }
  const std::string& value() const override { return texts_[at_]; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  const std::vector<std::string>& texts_;
  std::size_t at_ = 0;
};

// What is used of sentencepiece_model.proto.
struct SentencePieceModel {
  enum Type { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };
  struct Piece {
    std::string text;
    std::uint64_t type = kNormal;
  };
  std::vector<Piece> pieces;
  std::uint64_t model_type = 1;  // 1: unigram, 2: BPE, 3: words, 4: characters
};

// The fields of one message of Protocol Buffers' wire format.
class WireReader {
 public:
  explicit WireReader(std::string_view bytes) : bytes_(bytes) {}
  struct Field {
    std::uint64_t number = 0;
    std::uint64_t value = 0;   // of numbers
    std::string_view content;  // of texts and messages
  };
  bool next(Field& field) {
    if (at_ == bytes_.size()) return false;
    const std::uint64_t key = varint();
    field = {key >> 3, 0, {}};
    switch (key & 7) {
      case 0:
        field.value = varint();
        break;
      case 1:
        take(8);
        break;
      case 2:
        field.content = take(varint());
        break;
      case 5:
        take(4);
        break;
      default:
        throw_failure("byte {} starts a field of an unknown kind", at_);
    }
    return true;
  }

 private:
  std::uint64_t varint() {
    std::uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<std::uint8_t>(take(1).front());
      value |= static_cast<std::uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) return value;
    }
    throw_failure("the number before byte {} is too long", at_);
  }
  std::string_view take(std::uint64_t size) {
    if (size > bytes_.size() - at_) throw_failure("the file ends in the middle of a field");
    const std::string_view taken = bytes_.substr(at_, size);
    at_ += size;
    return taken;
  }
  std::string_view bytes_;
  std::size_t at_ = 0;
};

SentencePieceModel parse_model(std::string_view bytes) {
  SentencePieceModel model;
  WireReader::Field field, inner;
  for (WireReader reader(bytes); reader.next(field);) {
    if (field.number == 1) {
      auto& piece = model.pieces.emplace_back();
      for (WireReader piece_reader(field.content); piece_reader.next(inner);) {
        if (inner.number == 1) piece.text = inner.content;
        if (inner.number == 3) piece.type = inner.value;
      }
    } else if (field.number == 2) {
      for (WireReader trainer(field.content); trainer.next(inner);)
        if (inner.number == 3) model.model_type = inner.value;
    }
  }
  return model;
}

}  // namespace

BpeTokenizerParts read_sentencepiece(const fs::path& file, const SentencePieceOptions& options) {
  SentencePieceModel model;
  try {
    model = parse_model(read_file(file));
  } catch (const std::exception& error) {
    throw_failure("cannot read {} as a sentencepiece model: {}", file.string(), error.what());
  }
  if (model.pieces.empty()) throw_failure("{} is no sentencepiece model: it has no pieces", file.string());
  if (model.model_type != 2) {
    const char* const kNames[] = {"unknown", "unigram", "BPE", "words", "characters"};
    throw_failure("{}: sentencepiece models of the type '{}' are not supported; supported is BPE", file.string(),
                  kNames[model.model_type <= 4 ? model.model_type : 0]);
  }
  BpeTokenizerParts parts;
  std::vector<std::int64_t> order;
  for (std::size_t i = 0; i < model.pieces.size(); ++i) {
    const auto& piece = model.pieces[i];
    const auto id = static_cast<std::int64_t>(i);
    parts.vocabulary.add(id, piece.text);
    if (parts.vocabulary.id_of(piece.text) == id) order.push_back(id);
    const bool marker = std::find(chat_markers().begin(), chat_markers().end(), piece.text) != chat_markers().end();
    if (piece.type == SentencePieceModel::kUnknown || piece.type == SentencePieceModel::kControl ||
        piece.type == SentencePieceModel::kUserDefined)
      parts.added.push_back(
          {id, piece.text, false, false, false, false, piece.type != SentencePieceModel::kUserDefined || marker});
    if (piece.type == SentencePieceModel::kUnknown && options.gemma) parts.options.unknown = id;
  }
  parts.merges = all_merges(parts.vocabulary, order, true);
  parts.options.byte_fallback = true;
  parts.options.fuse_unknown = true;
  parts.decoder.space = "▁";
  parts.decoder.byte_fallback = true;
  if (options.gemma) {
    NormalizerStep step;
    step.kind = NormalizerStep::Kind::kReplace;
    step.literal = " ";
    step.content = "▁";
    parts.normalizer.push_back(std::move(step));
    return parts;
  }
  PreTokenizerStep step;
  step.kind = PreTokenizerStep::Kind::kMetaspace;
  step.prepend = !options.add_prefix_space ? PrependScheme::kNever
                 : options.legacy          ? PrependScheme::kAlways
                                           : PrependScheme::kFirst;
  parts.pre_tokenizer.push_back(std::move(step));
  parts.decoder.strip_spaces = options.add_prefix_space ? 1 : 0;
  return parts;
}

void train_tokenizer(const std::vector<std::string>& texts, const TokenizerTraining& options, const fs::path& folder) {
  const auto smallest = static_cast<std::int64_t>(256 + 3 + chat_markers().size() + response_tags().size() + 64);
  if (options.vocab_size < smallest)
    throw_invalid("a tokenizer needs at least {} pieces (256 bytes, tags, letters), but vocab_size is {}", smallest,
                  options.vocab_size);
  std::vector<std::string> markers = chat_markers();
  markers.insert(markers.end(), response_tags().begin(), response_tags().end());
  std::string symbols;
  for (const std::string& marker : markers) symbols += (symbols.empty() ? "" : ",") + marker;
  const std::unordered_map<std::string, std::string> settings = {
      {"model_type", "bpe"},
      {"vocab_size", std::to_string(options.vocab_size)},
      {"byte_fallback", "true"},
      {"split_digits", "true"},
      {"normalization_rule_name", "identity"},
      {"add_dummy_prefix", "false"},
      {"remove_extra_whitespaces", "false"},
      {"allow_whitespace_only_pieces", "true"},
      {"character_coverage", "1.0"},
      {"hard_vocab_limit", "false"},
      {"num_threads", "1"},
      {"minloglevel", "2"},
      {"user_defined_symbols", symbols},
  };
  std::string model;
  Texts sentences(texts);
  const auto status = sentencepiece::SentencePieceTrainer::Train(settings, &sentences, &model);
  if (!status.ok()) throw_failure("cannot train the tokenizer: {}", status.ToString());
  write_file_atomically(folder / "tokenizer.model", model);
  const Json config = {{"tokenizer_class", "LlamaTokenizer"},
                       {"legacy", false},
                       {"add_prefix_space", false},
                       {"add_bos_token", false},
                       {"add_eos_token", false},
                       {"clean_up_tokenization_spaces", false},
                       {"unk_token", "<unk>"},
                       {"eos_token", "<|im_end|>"},
                       {"pad_token", "<|endoftext|>"},
                       {"chat_template", chat_template_jinja()}};
  write_file_atomically(folder / "tokenizer_config.json", config.dump(2) + "\n");
}

}  // namespace thinkvg::text
