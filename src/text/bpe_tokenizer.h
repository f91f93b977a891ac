#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "text/added_tokens.h"
#include "text/bpe.h"
#include "text/pre_tokenizer.h"
#include "thinkvg/text/tokenizer.h"

namespace thinkvg::text {

struct NormalizerStep {
  enum class Kind { kNfc, kPrepend, kReplace };
  Kind kind = Kind::kNfc;
  std::shared_ptr<const Pattern> pattern;  // what kReplace looks for
  std::string literal;                     // the same as a text; used where not empty
  std::string content;                     // put in front, or in place
};

struct DecoderSteps {
  bool byte_level = false;       // pieces are bytes
  std::string space;             // becomes a space; empty: nothing does
  bool byte_fallback = false;    // "<0x..>" is a byte
  std::size_t strip_spaces = 0;  // so many leading spaces are taken off the text
  bool strip_first = false;      // leading spaces of the first piece are taken off (Metaspace)
};

// Everything that a tokenizer's files say.
struct BpeTokenizerParts {
  Vocabulary vocabulary;  // of the model, without added tokens; bytes by their visible stand-ins where byte_level
  std::vector<BpeMerge> merges;
  BpeOptions options;
  std::vector<AddedToken> added;
  std::vector<NormalizerStep> normalizer;
  std::vector<PreTokenizerStep> pre_tokenizer;
  DecoderSteps decoder;
  std::vector<std::int64_t> begin_ids, end_ids;
  std::map<std::string, std::string> named_tokens;  // "bos_token" to its content
};

// The tokenizer of all families: added tokens, normalizer, pre-tokenizer, byte-pair encoding, decoder.
class BpeTokenizer final : public Tokenizer {
 public:
  explicit BpeTokenizer(BpeTokenizerParts parts);
  ~BpeTokenizer() override;

  std::int64_t vocab_size() const override { return parts_.vocabulary.size(); }
  std::string decode(std::span<const std::int64_t> ids, bool keep_special) const override;
  std::unique_ptr<StreamingDecoder> decode_stream(bool keep_special) const override;
  std::optional<std::int64_t> find(std::string_view piece) const override;
  std::string piece(std::int64_t id) const override;
  std::string bytes(std::int64_t id, TextPlace place) const override;
  bool is_special(std::int64_t id) const override;
  bool is_added(std::int64_t id) const override;
  const std::vector<std::int64_t>& begin_ids() const override { return parts_.begin_ids; }
  const std::vector<std::int64_t>& end_ids() const override { return parts_.end_ids; }
  std::optional<std::int64_t> named_token(std::string_view name) const override;

 protected:
  std::vector<std::int64_t> encode_valid(std::string_view text, TextPlace place) const override;

 private:
  friend class BpeDecodeStream;
  struct Workspace;
  struct Decoded {
    enum class Kind : std::uint8_t { kNothing, kText, kByte };
    Kind kind = Kind::kNothing;
    bool special = false;
    bool added = false;
    std::string_view text;  // of kText
    std::uint8_t byte = 0;  // of kByte
  };

  void normalize(std::string_view text, TextPlace place, Workspace& work) const;
  void encode_text(std::string_view text, TextPlace place, Workspace& work, std::vector<std::int64_t>& ids) const;
  std::unique_ptr<Workspace> take_workspace() const;
  void give_back(std::unique_ptr<Workspace> workspace) const;
  const Decoded& decoded(std::int64_t id) const;

  BpeTokenizerParts parts_;
  std::unique_ptr<BpeModel> model_;
  AddedTokenFinder raw_, normalized_;
  std::vector<Decoded> decoded_;
  TextArena decoded_texts_;  // where the vocabulary's own text does not serve
  mutable std::mutex workspaces_mutex_;
  mutable std::vector<std::unique_ptr<Workspace>> workspaces_;
};

}  // namespace thinkvg::text
