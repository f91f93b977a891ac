#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace thinkvg::text {

// Text to ids and back. Immutable after loading; all methods may be called from several threads.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  virtual std::int64_t vocab_size() const = 0;
  // Special tokens that stand in the text ("<|im_end|>") become their one id. No begin or end token is added.
  virtual std::vector<std::int64_t> encode(std::string_view text) const = 0;
  // Chat and image markers are left out of the text unless `keep_special`; response tags are ordinary text. Bytes that
  // make no valid UTF-8 become U+FFFD.
  virtual std::string decode(std::span<const std::int64_t> ids, bool keep_special = false) const = 0;
  // The id of a piece such as "<|im_end|>". Throws std::invalid_argument when the vocabulary has none.
  virtual std::int64_t token_id(std::string_view piece) const = 0;
};

// Reads the tokenizer of a model folder: tokenizer.model (sentencepiece). Throws std::runtime_error naming what was
// looked for.
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
