#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "data/row_file.h"

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

 private:
  std::string bytes_;
  std::vector<std::size_t> ends_;
};

// Names of the columns. All functions here throw std::runtime_error naming file and reason.
std::vector<std::string> parquet_columns(const std::filesystem::path& file);

// Every row, cells in the order of `columns`: text as it is, numbers and truth values in JSON's form, lists of them as
// JSON lists, a null as an empty text. A name that the file lacks gives empty cells. Reads in batches, so that little
// is in memory at a time whatever the size of the file's row groups.
// Of a column of pictures (a struct with "bytes" and "path", as the Hugging Face hub has them) the cell is the bytes,
// or the path where there are none.
void for_each_parquet_row(const std::filesystem::path& file, const std::vector<std::string>& columns,
                          const RowCallback& call);

// Single cells by row: for the pictures that a parquet file holds. Keeps the row group that was read last. Thread-safe.
class ParquetColumn {
 public:
  ParquetColumn(std::filesystem::path file, std::string column);
  ~ParquetColumn();
  std::string at(std::int64_t row) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// All columns must have the same length.
void write_text_columns(const std::filesystem::path& file,
                        const std::vector<std::pair<std::string, TextColumn>>& columns);

}  // namespace thinkvg::data
