#include "data/json_fields.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <stdexcept>

#include "data/rows.h"

namespace thinkvg::data {
namespace {

[[noreturn]] void bad(const std::string& reason) { throw std::invalid_argument(reason); }

std::string shown(const Json& value) {
  std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (text.size() > 80) text = text.substr(0, 80) + "..";
  return text;
}

// What is wrong with a text that is no JSON, without the parser's own words around it.
std::string json_problem(const Json::exception& error) {
  std::string what = error.what();
  if (const std::size_t end = what.find("] "); end != std::string::npos) what.erase(0, end + 2);
  for (const std::string_view words : {"parse error at line 1, ", "syntax error while parsing value - "}) {
    if (const std::size_t at = what.find(words); at != std::string::npos) what.erase(at, words.size());
  }
  if (what.find("UTF-8") != std::string::npos) what += "; the text is not UTF-8, convert the file";
  return what;
}

}  // namespace

Json parse_json_row(std::string_view text) {
  try {
    Json row = Json::parse(text);
    if (!row.is_object()) bad("the row is no JSON object, but " + shown(row));
    return row;
  } catch (const Json::exception& error) {
    bad("not JSON: " + json_problem(error));
  }
}

std::string text_field(const Json& row, const char* key) {
  const auto value = row.find(key);
  if (value == row.end() || value->is_null()) return {};
  if (value->is_string()) return trimmed(value->get_ref<const std::string&>());
  if (value->is_number() || value->is_boolean()) return value->dump();
  bad(fmt::format("'{}' should be text, but is {}", key, shown(*value)));
}

std::string text_field(const Json& row, std::initializer_list<const char*> keys) {
  for (const char* key : keys) {
    if (std::string text = text_field(row, key); !text.empty()) return text;
  }
  return {};
}

std::int64_t whole_field(const Json& row, const char* key) {
  const auto value = row.find(key);
  if (value == row.end() || !value->is_number_integer())
    bad(fmt::format("'{}' should be a whole number, but is {}", key, value == row.end() ? "missing" : shown(*value)));
  return value->get<std::int64_t>();
}

std::vector<std::string> texts_field(const Json& row, const char* key) {
  std::vector<std::string> texts;
  const auto value = row.find(key);
  if (value == row.end() || value->is_null()) return texts;
  if (value->is_string()) return {trimmed(value->get_ref<const std::string&>())};
  if (!value->is_array()) bad(fmt::format("'{}' should be a list of texts, but is {}", key, shown(*value)));
  for (const Json& item : *value) {
    if (!item.is_string()) bad(fmt::format("'{}' should be a list of texts, but holds {}", key, shown(item)));
    texts.push_back(trimmed(item.get_ref<const std::string&>()));
  }
  return texts;
}

std::array<double, 4> four_numbers(const Json& value) {
  bool good = value.is_array() && value.size() == 4;
  for (std::size_t i = 0; good && i < 4; ++i) good = value[i].is_number();
  if (!good) bad("a box is a list of four numbers, not " + shown(value));
  return {value[0].get<double>(), value[1].get<double>(), value[2].get<double>(), value[3].get<double>()};
}

std::vector<std::array<double, 4>> box_numbers(const Json& value) {
  if (value.is_null()) return {};
  if (!value.is_array()) bad("boxes are a list, not " + shown(value));
  if (!value.empty() && value[0].is_number()) return {four_numbers(value)};
  std::vector<std::array<double, 4>> boxes;
  for (const Json& item : value) {
    if (item.is_array() && !item.empty() && item[0].is_array()) {
      for (const Json& inner : item) boxes.push_back(four_numbers(inner));
    } else {
      boxes.push_back(four_numbers(item));
    }
  }
  return boxes;
}

std::map<std::string, std::string> other_fields(const Json& row, std::initializer_list<std::string_view> used) {
  std::map<std::string, std::string> fields;
  for (const auto& [key, value] : row.items()) {
    if (std::find(used.begin(), used.end(), key) != used.end()) continue;
    if (value.is_string()) {
      fields[key] = trimmed(value.get_ref<const std::string&>());
    } else if (value.is_number() || value.is_boolean()) {
      fields[key] = value.dump();
    }
  }
  return fields;
}

}  // namespace thinkvg::data
