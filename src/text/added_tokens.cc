#include "text/added_tokens.h"

#include <algorithm>

#include "text/unicode.h"

namespace thinkvg::text {

void AddedTokenFinder::add(const AddedToken& token, std::string_view content) {
  if (content.empty()) return;
  if (token_at_.empty()) token_at_.push_back(-1);
  std::int32_t node = 0;
  for (const char c : content) {
    const std::uint64_t edge = static_cast<std::uint64_t>(node) << 8 | static_cast<std::uint8_t>(c);
    if (const std::int32_t* next = edges_.find(edge)) {
      node = *next;
      continue;
    }
    node = static_cast<std::int32_t>(token_at_.size());
    edges_.insert(edge, node);
    token_at_.push_back(-1);
  }
  token_at_[static_cast<std::size_t>(node)] = static_cast<std::int32_t>(tokens_.size());
  tokens_.push_back(&token);
  starts_[static_cast<std::uint8_t>(content.front())] = true;
}

void AddedTokenFinder::split(std::string_view text, std::vector<Part>& parts) const {
  parts.clear();
  std::size_t done = 0;
  for (std::size_t at = 0; at < text.size();) {
    if (!starts_[static_cast<std::uint8_t>(text[at])]) {
      ++at;
      continue;
    }
    std::int32_t found = -1;
    std::size_t found_end = at;
    std::int32_t node = 0;
    for (std::size_t i = at; i < text.size(); ++i) {
      const std::int32_t* next =
          edges_.find(static_cast<std::uint64_t>(node) << 8 | static_cast<std::uint8_t>(text[i]));
      if (next == nullptr) break;
      node = *next;
      if (token_at_[static_cast<std::size_t>(node)] >= 0) {
        found = token_at_[static_cast<std::size_t>(node)];
        found_end = i + 1;
      }
    }
    if (found < 0) {
      ++at;
      continue;
    }
    const AddedToken& token = *tokens_[static_cast<std::size_t>(found)];
    std::size_t begin = at, end = found_end;
    at = found_end;
    if (token.single_word && ((begin > 0 && is_word(character_before(text, begin).value)) ||
                              (end < text.size() && is_word(character_at(text, end).value))))
      continue;
    if (token.lstrip) {
      while (begin > done) {
        const Character before = character_before(text, begin);
        if (!is_whitespace(before.value)) break;
        begin -= before.size;
      }
      begin = std::max(begin, done);
    }
    if (token.rstrip) {
      while (end < text.size()) {
        const Character after = character_at(text, end);
        if (!is_whitespace(after.value)) break;
        end += after.size;
      }
    }
    if (done < begin) parts.push_back({nullptr, done, begin});
    parts.push_back({&token, begin, end});
    done = end;
  }
  if (done < text.size()) parts.push_back({nullptr, done, text.size()});
}

}  // namespace thinkvg::text
