#pragma once

#include <functional>
#include <string>

#include "thinkvg/core/error.h"
#include "thinkvg/core/files.h"
#include "thinkvg/core/json.h"

namespace thinkvg::eval {

// Calls `use(line, place)` with each line's object; `place` is "file, line 3". Empty lines are passed over; a last line
// without a newline counts. Throws std::runtime_error where a line is no JSON object.
template <class Use>
void for_each_json_line(const std::filesystem::path& file, const Use& use) {
  const std::string text = read_file(file);
  std::int64_t number = 0;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view content = std::string_view(text).substr(begin, end - begin);
    begin = end + 1;
    ++number;
    if (content.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string place = fmt::format("{}, line {}", file.string(), number);
    Json line;
    try {
      line = Json::parse(content);
    } catch (const Json::parse_error& error) {
      throw_failure("{}: not JSON ({}); was the file cut off?", place, error.what());
    }
    if (!line.is_object()) throw_failure("{}: expected an object, but it is {}", place, line.type_name());
    use(line, place);
  }
}

// Takes a last line without its newline off the file: what a process wrote when it was killed.
inline void drop_cut_line(const std::filesystem::path& file) {
  const std::string text = read_file(file);
  const std::size_t last = text.rfind('\n');
  const std::size_t size = last == std::string::npos ? 0 : last + 1;
  if (size < text.size()) write_file_atomically(file, std::string_view(text).substr(0, size));
}

// A sample id as text: ids may be written as text or whole numbers.
inline std::string json_id(const Json& id, const std::string& place) {
  if (id.is_string()) return id.get<std::string>();
  if (id.is_number_integer()) return std::to_string(id.get<std::int64_t>());
  throw_failure("{}: an id must be text or a whole number, but is {}", place, id.dump());
}

}  // namespace thinkvg::eval
