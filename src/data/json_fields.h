#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "thinkvg/core/json.h"
#include "thinkvg/grounding/box.h"

// Fields of a JSON row. What is of another kind throws std::invalid_argument that names the field and shows the value.
namespace thinkvg::data {

// The row as an object. Throws std::invalid_argument with the parser's message where the text is none.
Json parse_json_row(std::string_view text);

// Trimmed; whole numbers and truth values as text; empty when missing or null.
std::string text_field(const Json& row, const char* key);
// The first of the keys that has a text.
std::string text_field(const Json& row, std::initializer_list<const char*> keys);
// A whole number; throws where it is missing, too.
std::int64_t whole_field(const Json& row, const char* key);
// A list of texts; a single text is a list of one; empty when missing or null.
std::vector<std::string> texts_field(const Json& row, const char* key);

// Four numbers; any other value throws.
std::array<double, 4> four_numbers(const Json& value);
// [..] or [[..], ..] or null.
std::vector<std::array<double, 4>> box_numbers(const Json& value);

// Every text, number and truth value of the row that is not among `used`, as text.
std::map<std::string, std::string> other_fields(const Json& row, std::initializer_list<std::string_view> used);

}  // namespace thinkvg::data
