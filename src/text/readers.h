#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include "text/bpe_tokenizer.h"
#include "thinkvg/core/json.h"

namespace thinkvg::text {

inline constexpr const char* kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
inline constexpr const char* kQwenPattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
inline constexpr const char* kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

// Each reads one kind of file. All throw std::runtime_error naming the file and what is wrong or not supported.
BpeTokenizerParts read_tokenizer_json(const std::filesystem::path& file);
// `pattern`, `nfc`: as the tokenizer's class has them.
BpeTokenizerParts read_vocab_and_merges(const std::filesystem::path& vocab, const std::filesystem::path& merges,
                                        const std::string& pattern, bool nfc);
BpeTokenizerParts read_tiktoken(const std::filesystem::path& file, const std::string& pattern);
BpeTokenizerParts read_tekken(const std::filesystem::path& file);

struct SentencePieceOptions {
  bool gemma = false;  // GemmaTokenizer: no space in front, unknown characters become <unk>
  bool legacy = false;
  bool add_prefix_space = true;
};
BpeTokenizerParts read_sentencepiece(const std::filesystem::path& file, const SentencePieceOptions& options);

// Pre-tokenizer steps of byte-level vocabularies.
std::vector<PreTokenizerStep> byte_level_steps(const std::string& pattern, bool add_prefix_space);

}  // namespace thinkvg::text
