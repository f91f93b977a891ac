#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace thinkvg::text {

// One character of valid UTF-8.
struct Character {
  char32_t value = 0;
  std::size_t size = 0;  // bytes
};
Character character_at(std::string_view text, std::size_t at);
// The last character before `end`.
Character character_before(std::string_view text, std::size_t end);
std::string to_utf8(char32_t character);

bool is_valid_utf8(std::string_view text);
// Each maximal part of a character that is not complete, and each byte that can start none, becomes U+FFFD (Unicode's
// recommendation; the same as Rust's from_utf8_lossy).
std::string replace_invalid_utf8(std::string_view text);
// How many bytes at the end of `text` may still become a character when more bytes follow (0 to 3).
std::size_t unfinished_bytes(std::string_view text);

bool is_whitespace(char32_t character);  // White_Space
bool is_numeric(char32_t character);     // general category N
bool is_word(char32_t character);        // \w: letters, marks, digits, connectors

// Canonical composition as Hugging Face's NFC normalizer does it (Unicode 10).
std::string to_nfc(std::string_view text);

// For pattern matching: a character of the same class that PCRE2 knows, with the same length; mostly itself.
char32_t stand_in_of(char32_t character);
// Replaces such characters in place; returns false, and leaves `buffer` alone, where there is none in `text`.
bool with_stand_ins(std::string_view text, std::string& buffer);

// The visible stand-ins for bytes in byte-level vocabularies (GPT-2): "Ġ" is a space.
char32_t byte_level_character(std::uint8_t byte);
// Back to bytes; false where some character stands for no byte.
bool from_byte_level(std::string_view piece, std::string& bytes);

}  // namespace thinkvg::text
