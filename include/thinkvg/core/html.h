#pragma once

#include <cstdint>
#include <string>
#include <string_view>

// Text for HTML pages and for SVG inside them.
namespace thinkvg::html {

// Safe between tags and inside quoted attributes. Characters that HTML does not allow become U+FFFD.
std::string escape(std::string_view text);
// At most about `max_bytes` of a UTF-8 text, cut between characters, with a note of how much is left out.
std::string shorten(std::string_view text, std::size_t max_bytes);
std::string base64(std::string_view bytes);
// "single_choice" -> "single choice".
std::string spaced(std::string_view name);
// "1 question", "1,200 questions".
std::string plural(std::int64_t count, const std::string& noun);
// A cell without a value.
inline constexpr const char* kMissing = "<span class=\"muted\">\u2013</span>";
// Shortest usual form of a measured number: "0.0123", "12.3k", "1.5e-05".
std::string number(double value);

}  // namespace thinkvg::html
