#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace thinkvg::text {

// Where a text stands: some tokenizers put a space before the first word of a text, or behind each special token.
enum class TextPlace {
  kStart,       // nothing before it
  kAfterToken,  // directly behind an added token, such as an image marker
  kInside,      // goes on with text that was encoded before; no space is put in front
};

// Ids to text, one by one, for showing an answer while it is written. Not thread-safe; the tokenizer must outlive it.
class StreamingDecoder {
 public:
  virtual ~StreamingDecoder() = default;
  // The text that became certain with this id: whole characters only, possibly none.
  virtual std::string add(std::int64_t id) = 0;
  // The rest: bytes that have made no character become U+FFFD. The decoder then starts afresh.
  virtual std::string finish() = 0;
};

// Text to ids and back, as Hugging Face's tokenizers do it. Immutable after loading; all methods may be called from
// several threads.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  // The largest id and one. Models may have a larger embedding table.
  virtual std::int64_t vocab_size() const = 0;
  // Added tokens that stand in the text ("<|im_end|>") become their one id. No begin or end token is added. Bytes that
  // make no valid UTF-8 count as U+FFFD, one for each maximal part of a character.
  std::vector<std::int64_t> encode(std::string_view text, TextPlace place = TextPlace::kStart) const;
  // Each text as encode() does it, shared out to up to `num_threads` threads.
  std::vector<std::vector<std::int64_t>> encode_batch(std::span<const std::string> texts, int num_threads) const;
  // Special tokens, such as chat and image markers, are left out of the text unless `keep_special`; response tags are
  // ordinary text. Bytes that make no valid UTF-8 become U+FFFD. Ids without a piece, which padded embedding tables
  // allow a model to choose, give no text; negative ids throw std::invalid_argument.
  virtual std::string decode(std::span<const std::int64_t> ids, bool keep_special = false) const = 0;
  // The same bit by bit. All texts together are decode()'s, but for one case: where pieces "<0x..>" make characters and
  // then one that is broken off, decode() gives U+FFFD for the whole run, as Hugging Face's does.
  virtual std::unique_ptr<StreamingDecoder> decode_stream(bool keep_special = false) const = 0;
  // The id of a piece such as "<|im_end|>", as the vocabulary writes it ("Ġthe" in byte-level vocabularies).
  virtual std::optional<std::int64_t> find(std::string_view piece) const = 0;
  // The same. Throws std::invalid_argument when the vocabulary has none.
  std::int64_t token_id(std::string_view piece) const;
  // The piece of an id as the vocabulary writes it; empty where there is none.
  virtual std::string piece(std::int64_t id) const = 0;
  // What decode() makes of an id (a special one is kept), byte for byte: possibly a part of a character. At kStart
  // without the space that decode() takes off the beginning of a text.
  virtual std::string bytes(std::int64_t id, TextPlace place) const = 0;
  virtual bool is_special(std::int64_t id) const = 0;
  // Whether the id is an added token's, special or not.
  virtual bool is_added(std::int64_t id) const = 0;
  // What Hugging Face puts before and behind a text with add_special_tokens=True; <s> for LLaMA.
  virtual const std::vector<std::int64_t>& begin_ids() const = 0;
  virtual const std::vector<std::int64_t>& end_ids() const = 0;
  // "bos_token", "eos_token", "pad_token" or "unk_token" of tokenizer_config.json.
  virtual std::optional<std::int64_t> named_token(std::string_view name) const = 0;

 protected:
  virtual std::vector<std::int64_t> encode_valid(std::string_view text, TextPlace place) const = 0;
};

// Reads the tokenizer of a model folder, from the first of these that is there:
//   tokenizer.json         Hugging Face's, model BPE: byte-level (Qwen, LLaMA 3) or sentencepiece-like (LLaMA, Gemma)
//   vocab.json, merges.txt byte-level BPE of Qwen2Tokenizer or GPT2Tokenizer
//   tokenizer.model        a sentencepiece BPE model, as transformers 5 reads it for LlamaTokenizer (settings `legacy`,
//                          `add_prefix_space`) or GemmaTokenizer, or a tiktoken file of that name (LLaMA 3)
//   tekken.json            Mistral's
//   *.tiktoken             ranks; Qwen's pattern for qwen.tiktoken
// tokenizer_config.json, added_tokens.json and special_tokens_map.json beside it add their tokens. Throws
// std::runtime_error naming what was looked for, or what in a file is not supported and what is.
std::unique_ptr<Tokenizer> load_tokenizer(const std::filesystem::path& folder);

// Trains a sentencepiece BPE model on `texts` (any order, deterministic) and writes tokenizer.model and
// tokenizer_config.json, which transformers opens as a LlamaTokenizer with the same ids. Digits are single pieces,
// unknown characters fall back to bytes, response tags and chat markers (Qwen's) are pieces of their own.
struct TokenizerTraining {
  std::int64_t vocab_size = 768;
};
void train_tokenizer(const std::vector<std::string>& texts, const TokenizerTraining& options,
                     const std::filesystem::path& folder);

}  // namespace thinkvg::text
