#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "text/bpe.h"

namespace thinkvg::text {

// A token beside the vocabulary's pieces, found in the text as it stands. The flags are Hugging Face's.
struct AddedToken {
  std::int64_t id = 0;
  std::string content;
  bool single_word = false;  // only between characters that make no word
  bool lstrip = false;       // takes the white space before it
  bool rstrip = false;       // and behind it
  bool normalized = false;   // looked for in normalized text
  bool special = false;      // left out of decoded text
};

// Finds added tokens, leftmost first, of several at one place the longest. Immutable, thread-safe.
class AddedTokenFinder {
 public:
  struct Part {
    const AddedToken* token = nullptr;  // nullptr: text between tokens
    std::size_t begin = 0, end = 0;     // bytes
  };
  AddedTokenFinder() = default;
  // `contents`: what to look for, one a token. The tokens must outlive the finder.
  void add(const AddedToken& token, std::string_view content);
  bool empty() const { return tokens_.empty(); }
  // The whole text in parts, in order; text parts are never empty.
  void split(std::string_view text, std::vector<Part>& parts) const;

 private:
  std::vector<const AddedToken*> tokens_;
  std::vector<std::int32_t> token_at_;  // by trie node: place in tokens_, or -1
  NumberTable<std::int32_t> edges_;     // (node, byte) to node
  bool starts_[256] = {};
};

}  // namespace thinkvg::text
