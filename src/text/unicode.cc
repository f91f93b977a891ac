#include "text/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <iterator>
#include <memory>

#include "text/unicode_tables.h"
#include "thinkvg/core/error.h"

namespace thinkvg::text {
namespace {

struct Decoded {
  char32_t value = 0;
  std::size_t size = 0;  // bytes; where not valid, those of the maximal part
  bool valid = false;
  bool unfinished = false;  // not valid, but only because the text ends
};

// Table 3-7 of the Unicode standard.
Decoded decode(std::string_view text, std::size_t at) {
  const auto byte = [&](std::size_t i) { return static_cast<std::uint8_t>(text[i]); };
  const std::uint8_t first = byte(at);
  if (first < 0x80) return {first, 1, true, false};
  std::size_t length = 0;
  std::uint8_t low = 0x80, high = 0xBF;
  if (first >= 0xC2 && first <= 0xDF) {
    length = 2;
  } else if (first >= 0xE0 && first <= 0xEF) {
    length = 3;
    if (first == 0xE0) low = 0xA0;
    if (first == 0xED) high = 0x9F;
  } else if (first >= 0xF0 && first <= 0xF4) {
    length = 4;
    if (first == 0xF0) low = 0x90;
    if (first == 0xF4) high = 0x8F;
  } else {
    return {0, 1, false, false};
  }
  char32_t value = first & (0x7Fu >> length);
  for (std::size_t i = 1; i < length; ++i) {
    if (at + i == text.size()) return {0, i, false, true};
    const std::uint8_t next = byte(at + i);
    if (next < low || next > high) return {0, i, false, false};
    low = 0x80;
    high = 0xBF;
    value = value << 6 | (next & 0x3Fu);
  }
  return {value, length, true, false};
}

template <class Range, std::size_t N>
const Range* find_range(const Range (&ranges)[N], char32_t character) {
  const Range* found = std::upper_bound(std::begin(ranges), std::end(ranges), character,
                                        [](char32_t c, const Range& range) { return c < range.first; });
  if (found == std::begin(ranges)) return nullptr;
  --found;
  return character <= found->last ? found : nullptr;
}

utf8proc_category_t category_of(char32_t character) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(stand_in_of(character)));
}

// Characters that no normalization changes and that combine with nothing before them.
bool is_plain(char32_t c) {
  return c < 0x300 || (c >= 0x400 && c < 0x483) || (c >= 0x2010 && c < 0x2027) || (c >= 0x3001 && c < 0x302A) ||
         (c >= 0x3400 && c < 0xA000) || (c >= 0xAC00 && c < 0xD7A4) || (c >= 0xFF01 && c < 0xFF61) ||
         (c >= 0x1F000 && c < 0x1FB00);
}

void append_nfc(std::string_view text, std::string& out) {
  utf8proc_uint8_t* raw = nullptr;
  const auto size =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()), static_cast<utf8proc_ssize_t>(text.size()),
                   &raw, static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owned(raw, &std::free);
  if (size < 0) throw_failure("cannot normalize text: {}", utf8proc_errmsg(size));
  out.append(reinterpret_cast<const char*>(raw), static_cast<std::size_t>(size));
}

struct ByteLevelMap {
  std::array<char32_t, 256> characters{};
  std::array<std::int16_t, 512> bytes{};
  ByteLevelMap() {
    bytes.fill(-1);
    char32_t next = 256;
    for (char32_t byte = 0; byte < 256; ++byte) {
      const bool visible = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
      characters[byte] = visible ? byte : next++;
      bytes[characters[byte]] = static_cast<std::int16_t>(byte);
    }
  }
};

const ByteLevelMap& byte_level_map() {
  static const ByteLevelMap kMap;
  return kMap;
}

}  // namespace

Character character_at(std::string_view text, std::size_t at) {
  const Decoded decoded = decode(text, at);
  return {decoded.valid ? decoded.value : 0xFFFD, decoded.size};
}

Character character_before(std::string_view text, std::size_t end) {
  std::size_t begin = end - 1;
  while (begin > 0 && (static_cast<std::uint8_t>(text[begin]) & 0xC0) == 0x80) --begin;
  return character_at(text, begin);
}

std::string to_utf8(char32_t character) {
  utf8proc_uint8_t bytes[4];
  const auto size = utf8proc_encode_char(static_cast<utf8proc_int32_t>(character), bytes);
  return {reinterpret_cast<const char*>(bytes), static_cast<std::size_t>(size)};
}

bool is_valid_utf8(std::string_view text) {
  for (std::size_t at = 0; at < text.size();) {
    if (static_cast<std::uint8_t>(text[at]) < 0x80) {
      ++at;
      continue;
    }
    const Decoded decoded = decode(text, at);
    if (!decoded.valid) return false;
    at += decoded.size;
  }
  return true;
}

std::string replace_invalid_utf8(std::string_view text) {
  std::string valid;
  valid.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) {
    const Decoded decoded = decode(text, at);
    if (decoded.valid)
      valid.append(text, at, decoded.size);
    else
      valid += "\uFFFD";
    at += decoded.size;
  }
  return valid;
}

std::size_t unfinished_bytes(std::string_view text) {
  for (std::size_t count = 1; count <= std::min<std::size_t>(3, text.size()); ++count) {
    const std::size_t at = text.size() - count;
    if ((static_cast<std::uint8_t>(text[at]) & 0xC0) == 0x80) continue;
    const Decoded decoded = decode(text, at);
    return decoded.unfinished && decoded.size == count ? count : 0;
  }
  return 0;
}

bool is_whitespace(char32_t c) {
  return (c >= 9 && c <= 13) || c == 32 || c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) ||
         c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

bool is_numeric(char32_t c) {
  if (c < 0x80) return c >= '0' && c <= '9';
  const auto category = category_of(c);
  return category == UTF8PROC_CATEGORY_ND || category == UTF8PROC_CATEGORY_NL || category == UTF8PROC_CATEGORY_NO;
}

bool is_word(char32_t c) {
  if (c == 0x200C || c == 0x200D || (c >= 0x24B6 && c <= 0x24E9)) return true;
  switch (category_of(c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      return (c >= 0x1F130 && c <= 0x1F149) || (c >= 0x1F150 && c <= 0x1F169) || (c >= 0x1F170 && c <= 0x1F189);
  }
}

std::string to_nfc(std::string_view text) {
  bool plain = true;
  for (std::size_t at = 0; plain && at < text.size();) {
    const Character character = character_at(text, at);
    plain = is_plain(character.value);
    at += character.size;
  }
  if (plain) return std::string(text);
  std::string out;
  out.reserve(text.size() + 16);
  std::size_t begin = 0;
  for (std::size_t at = 0; at < text.size();) {
    const Character character = character_at(text, at);
    if (find_range(kUnknownToNormalizer, character.value) != nullptr) {
      append_nfc(text.substr(begin, at - begin), out);
      out.append(text, at, character.size);
      begin = at + character.size;
    }
    at += character.size;
  }
  append_nfc(text.substr(begin), out);
  return out;
}

char32_t stand_in_of(char32_t character) {
  const StandIn* found = find_range(kStandIns, character);
  return found != nullptr ? found->stand_in : character;
}

bool with_stand_ins(std::string_view text, std::string& buffer) {
  bool any = false;
  for (std::size_t at = 0; at < text.size();) {
    // The first one is U+0897: 0xE0 0xA2 0x97.
    if (static_cast<std::uint8_t>(text[at]) < 0xE0) {
      ++at;
      continue;
    }
    const Character character = character_at(text, at);
    const char32_t stand_in = stand_in_of(character.value);
    if (stand_in != character.value) {
      if (!any) buffer.assign(text);
      any = true;
      buffer.replace(at, character.size, to_utf8(stand_in));
    }
    at += character.size;
  }
  return any;
}

char32_t byte_level_character(std::uint8_t byte) { return byte_level_map().characters[byte]; }

bool from_byte_level(std::string_view piece, std::string& bytes) {
  bytes.clear();
  for (std::size_t at = 0; at < piece.size();) {
    const Character character = character_at(piece, at);
    if (character.value >= 512 || byte_level_map().bytes[character.value] < 0) return false;
    bytes += static_cast<char>(byte_level_map().bytes[character.value]);
    at += character.size;
  }
  return true;
}

}  // namespace thinkvg::text
