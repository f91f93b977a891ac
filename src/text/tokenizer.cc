#include "thinkvg/text/tokenizer.h"

#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <set>
#include <unordered_map>

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

class SentencePieceTokenizer final : public Tokenizer {
 public:
  explicit SentencePieceTokenizer(const fs::path& file) {
    const auto status = processor_.Load(file.string());
    if (!status.ok()) throw_failure("cannot read {}: {}", file.string(), status.ToString());
    for (const std::string& marker : chat_markers()) {
      const int id = processor_.PieceToId(marker);
      if (processor_.IdToPiece(id) == marker) special_.insert(id);
    }
  }

  std::int64_t vocab_size() const override { return processor_.GetPieceSize(); }

  std::vector<std::int64_t> encode(std::string_view text) const override {
    std::vector<int> ids;
    const auto status = processor_.Encode({text.data(), text.size()}, &ids);
    if (!status.ok()) throw_failure("cannot tokenize: {}", status.ToString());
    return {ids.begin(), ids.end()};
  }

  std::string decode(std::span<const std::int64_t> ids, bool keep_special) const override {
    std::string text;
    std::vector<std::string> pieces;
    for (const std::int64_t id : ids) {
      if (id < 0 || id >= vocab_size())
        throw_invalid("cannot decode id {}: the vocabulary has {} pieces", id, vocab_size());
      if (!keep_special && special_.count(static_cast<int>(id))) continue;
      pieces.push_back(processor_.IdToPiece(static_cast<int>(id)));
    }
    const auto status = processor_.Decode(pieces, &text);
    if (!status.ok()) throw_failure("cannot decode: {}", status.ToString());
    return text;
  }

  std::int64_t token_id(std::string_view piece) const override {
    const int id = processor_.PieceToId({piece.data(), piece.size()});
    if (processor_.IdToPiece(id) != piece) throw_invalid("the tokenizer has no piece '{}'", piece);
    return id;
  }

 private:
  sentencepiece::SentencePieceProcessor processor_;
  std::set<int> special_;
};

}  // namespace

std::unique_ptr<Tokenizer> load_tokenizer(const fs::path& folder) {
  const fs::path file = folder / "tokenizer.model";
  if (!fs::exists(file))
    throw_failure("{} has no tokenizer: expected tokenizer.model (sentencepiece)", folder.string());
  return std::make_unique<SentencePieceTokenizer>(file);
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
