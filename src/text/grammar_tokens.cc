#include "text/grammar_tokens.h"

#include <algorithm>
#include <numeric>

#include "thinkvg/core/error.h"

namespace thinkvg::text {
namespace {

bool is_end_id(const std::vector<std::int64_t>& end_ids, std::int64_t id) {
  return std::find(end_ids.begin(), end_ids.end(), id) != end_ids.end();
}

bool only_white_space(std::string_view text) { return text.find_first_not_of(" \t\r\n") == std::string_view::npos; }

}  // namespace

TextsById::TextsById(const std::vector<std::string>& texts) {
  begins_.reserve(texts.size() + 1);
  for (const std::string& text : texts) {
    begins_.push_back(block_.size());
    block_ += text;
  }
  begins_.push_back(block_.size());
}

TokenTree::TokenTree(const std::vector<std::string>& texts) {
  for (std::size_t i = 0; i < texts.size(); ++i)
    if (!texts[i].empty()) ids.push_back(static_cast<std::int64_t>(i));
  const auto text_of = [&](std::int64_t id) { return std::string_view(texts[static_cast<std::size_t>(id)]); };
  std::stable_sort(ids.begin(), ids.end(), [&](std::int64_t a, std::int64_t b) { return text_of(a) < text_of(b); });
  std::vector<std::uint32_t> open;  // nodes on the way to the latest text
  std::string_view previous;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const std::string_view text = text_of(ids[i]);
    if (text.size() > 0xFFFF) throw_failure("the vocabulary has a token of {} bytes", text.size());
    const auto shared = static_cast<std::size_t>(
        std::mismatch(text.begin(), text.end(), previous.begin(), previous.end()).first - text.begin());
    for (; open.size() > shared; open.pop_back()) nodes[open.back()].behind = static_cast<std::uint32_t>(nodes.size());
    for (std::size_t depth = shared; depth < text.size(); ++depth) {
      open.push_back(static_cast<std::uint32_t>(nodes.size()));
      nodes.push_back({0, static_cast<std::uint32_t>(i), 0, static_cast<std::uint16_t>(depth + 1),
                       static_cast<std::uint8_t>(text[depth]), true});
    }
    ++nodes[open.back()].count;
    max_depth = std::max(max_depth, text.size());
    previous = text;
  }
  for (const std::uint32_t node : open) nodes[node].behind = static_cast<std::uint32_t>(nodes.size());
  for (std::size_t i = nodes.size(); i-- > 0;)
    for (std::size_t child = i + 1; child < nodes[i].behind; child = nodes[child].behind)
      nodes[i].plain = nodes[i].plain && nodes[child].plain && is_plain(nodes[child].byte);
}

TokenTable::Texts TokenTable::texts_of(const Tokenizer& tokenizer, const std::vector<std::int64_t>& end_ids,
                                       std::int64_t vocab_size) {
  if (end_ids.empty()) throw_invalid("a grammar needs at least one id that ends a completion");
  for (const std::int64_t id : end_ids)
    if (id < 0 || id >= vocab_size) throw_invalid("the end id {} is outside of the vocabulary of {}", id, vocab_size);
  Texts texts;
  const std::int64_t size = std::min(vocab_size, tokenizer.vocab_size());
  texts.inside.resize(static_cast<std::size_t>(size));
  texts.first.resize(static_cast<std::size_t>(size));
  for (std::int64_t id = 0; id < size; ++id) {
    if (tokenizer.is_special(id) || is_end_id(end_ids, id)) continue;
    std::string text = tokenizer.bytes(id, TextPlace::kInside);
    if (tokenizer.is_added(id) && !only_white_space(text)) continue;
    texts.first[static_cast<std::size_t>(id)] = tokenizer.bytes(id, TextPlace::kStart);
    texts.inside[static_cast<std::size_t>(id)] = std::move(text);
  }
  return texts;
}

TokenTable::TokenTable(const Tokenizer& tokenizer, const std::vector<std::int64_t>& end_ids, std::int64_t vocab_size)
    : TokenTable(tokenizer, end_ids, vocab_size, texts_of(tokenizer, end_ids, vocab_size)) {}

TokenTable::TokenTable(const Tokenizer& tokenizer, const std::vector<std::int64_t>& end_ids, std::int64_t vocab_size,
                       const Texts& texts)
    : vocab_size_(vocab_size), end_ids_(end_ids), texts_(texts.inside), first_texts_(texts.first), tree_(texts.inside) {
  std::sort(end_ids_.begin(), end_ids_.end());
  end_ids_.erase(std::unique(end_ids_.begin(), end_ids_.end()), end_ids_.end());
  if (texts.first != texts.inside) first_trees_.emplace_back(texts.first);
  for (std::size_t i = 0; i < texts.inside.size(); ++i) {
    const std::string& text = texts.inside[i];
    const auto id = static_cast<std::int64_t>(i);
    if (text.size() == 1) has_byte_.set(static_cast<std::uint8_t>(text[0]));
    // Where decode() would take more off behind such a token, it is left out.
    if (!text.empty() && texts.first[i].empty() && tokenizer.decode(std::vector<std::int64_t>{id, id}) == text)
      first_spaces_.push_back(id);
    if (is_end_id(end_ids_, id) || !tokenizer.is_added(id)) continue;
    if (const std::string content = tokenizer.bytes(id, TextPlace::kInside); !only_white_space(content)) {
      named_.emplace(content, id);
      named_starts_.set(static_cast<std::uint8_t>(content[0]));
      longest_name_ = std::max(longest_name_, content.size());
    }
  }
}

bool TokenTable::is_end(std::int64_t id) const { return std::binary_search(end_ids_.begin(), end_ids_.end(), id); }

TokenTable::Named TokenTable::named_at(std::string_view text, std::size_t at) const {
  if (at >= text.size() || !named_starts_[static_cast<std::uint8_t>(text[at])]) return {};
  for (std::size_t size = std::min(longest_name_, text.size() - at); size > 0; --size)
    if (const auto found = named_.find(text.substr(at, size)); found != named_.end()) return {found->second, size};
  return {};
}

}  // namespace thinkvg::text
