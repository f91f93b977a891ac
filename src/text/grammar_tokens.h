#pragma once

#include <bitset>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "thinkvg/text/tokenizer.h"

namespace thinkvg::text {

// Texts in one block, by id.
class TextsById {
 public:
  explicit TextsById(const std::vector<std::string>& texts);
  std::string_view operator[](std::int64_t id) const {
    const auto i = static_cast<std::size_t>(id);
    return i + 1 < begins_.size() ? std::string_view(block_).substr(begins_[i], begins_[i + 1] - begins_[i])
                                  : std::string_view();
  }

 private:
  std::string block_;
  std::vector<std::size_t> begins_;
};

// The texts of tokens as a tree of bytes, laid out in the order of a walk.
struct TokenTree {
  struct Node {
    std::uint32_t behind;  // the first node behind this one's own
    std::uint32_t first;   // in `ids`, of the tokens that end here or behind
    std::uint32_t count;   // of those that end here
    std::uint16_t depth;   // bytes so far
    std::uint8_t byte;
    bool plain;  // all that follows is made of plain bytes
  };
  // Letters and spaces, which most of the tokens are made of.
  static bool is_plain(std::uint8_t byte) {
    return byte == ' ' || (byte >= 'A' && byte <= 'Z') || (byte >= 'a' && byte <= 'z');
  }
  // Where in `ids` the tokens of a node and of those behind it end.
  std::uint32_t end_of(const Node& node) const {
    return node.behind < nodes.size() ? nodes[node.behind].first : static_cast<std::uint32_t>(ids.size());
  }
  explicit TokenTree(const std::vector<std::string>& texts);

  std::vector<Node> nodes;
  std::vector<std::int64_t> ids;
  std::size_t max_depth = 0;
};

// What grammars need to know of a vocabulary. Immutable.
class TokenTable {
 public:
  TokenTable(const Tokenizer& tokenizer, const std::vector<std::int64_t>& end_ids, std::int64_t vocab_size);

  std::int64_t vocab_size() const { return vocab_size_; }
  const std::vector<std::int64_t>& end_ids() const { return end_ids_; }  // sorted
  bool is_end(std::int64_t id) const;
  // The bytes that a token of free text adds; empty where it never stands there.
  std::string_view text(std::int64_t id) const { return texts_[id]; }
  const TokenTree& tree() const { return tree_; }
  // The same where the token is the first of a text and decode() takes a space off.
  bool first_differs() const { return !first_trees_.empty(); }
  std::string_view first_text(std::int64_t id) const { return first_texts_[id]; }
  const TokenTree& first_tree() const { return first_trees_.front(); }
  // Tokens that give nothing but the space that is taken off.
  const std::vector<std::int64_t>& first_spaces() const { return first_spaces_; }
  bool has_byte(std::uint8_t byte) const { return has_byte_[byte]; }

  // The longest added token whose content stands at this place of a text.
  struct Named {
    std::int64_t id = -1;
    std::size_t size = 0;
  };
  Named named_at(std::string_view text, std::size_t at) const;

 private:
  struct Texts {
    std::vector<std::string> inside, first;
  };
  TokenTable(const Tokenizer& tokenizer, const std::vector<std::int64_t>& end_ids, std::int64_t vocab_size,
             const Texts& texts);
  static Texts texts_of(const Tokenizer& tokenizer, const std::vector<std::int64_t>& end_ids, std::int64_t vocab_size);

  std::int64_t vocab_size_;
  std::vector<std::int64_t> end_ids_;
  TextsById texts_, first_texts_;
  TokenTree tree_;
  std::vector<TokenTree> first_trees_;  // none or one
  std::vector<std::int64_t> first_spaces_;
  std::bitset<256> has_byte_;
  std::map<std::string, std::int64_t, std::less<>> named_;
  std::bitset<256> named_starts_;
  std::size_t longest_name_ = 0;
};

}  // namespace thinkvg::text
