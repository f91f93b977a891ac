#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace thinkvg::data {

// The texts of one column, end to end. A null is an empty text.
class TextColumn {
 public:
  void append(std::string_view text) {
    bytes_.append(text);
    ends_.push_back(bytes_.size());
  }
  std::int64_t size() const { return static_cast<std::int64_t>(ends_.size()); }
  std::string_view at(std::int64_t row) const {
    const auto i = static_cast<std::size_t>(row);
    const std::size_t begin = i == 0 ? 0 : ends_[i - 1];
    return std::string_view(bytes_).substr(begin, ends_[i] - begin);
  }
  void reserve(std::size_t rows, std::size_t bytes) {
    ends_.reserve(rows);
    bytes_.reserve(bytes);
  }

 private:
  std::string bytes_;
  std::vector<std::size_t> ends_;
};

// Reads text columns by name, one after the other, so that only one is in memory twice. A name in `optional` that the
// file lacks gives a column of empty texts. Throws std::runtime_error naming file and reason.
struct TextColumnNames {
  std::vector<std::string> required;
  std::vector<std::string> optional;
};
// In the order required, optional.
std::vector<TextColumn> read_text_columns(const std::filesystem::path& file, const TextColumnNames& names);

// All columns must have the same length.
void write_text_columns(const std::filesystem::path& file,
                        const std::vector<std::pair<std::string, TextColumn>>& columns);

}  // namespace thinkvg::data
