#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "thinkvg/core/json.h"

namespace thinkvg::data {

enum class FileKind {
  parquet,
  csv,          // a header, then rows; RFC 4180 quotes
  json_lines,   // one value a line
  json_list,    // one list of values
  json_object,  // one object
};

// What a file shows before it is read: enough to tell its format.
struct Preview {
  std::filesystem::path file;
  FileKind kind = FileKind::csv;
  std::vector<std::string> fields;  // columns; keys of the first row or of the one object
  Json first;                       // the first row of JSON lines or of a list, null when it is no JSON

  bool has(std::string_view field) const;
  bool has_all(std::initializer_list<std::string_view> names) const;
  bool is_json_rows() const { return kind == FileKind::json_lines || kind == FileKind::json_list; }
};

// Throws std::runtime_error naming file and reason: an empty file, a damaged one.
Preview preview_file(const std::filesystem::path& file);

// One row as it stands in the file. Views live during the call that shows them.
struct RawRow {
  std::vector<std::string_view> cells;  // by column; a single cell with the JSON text for JSON rows
  std::string problem;                  // why the row cannot be read at all; empty when it can
};
using RowCallback = std::function<void(const RawRow&)>;

// Every row of a CSV file behind its header, cells in the order of `columns` (the file's own names). A row whose number
// of cells differs from the header's is a problem; empty cells and column names at the end do not count.
void for_each_csv_row(const std::filesystem::path& file, const std::vector<std::string>& columns,
                      const RowCallback& call);
// Every line that is not blank (the last one counts without a newline, too), or every element of the list. The texts
// are not parsed; only the list's own commas and brackets are checked. Memory: one row at a time.
void for_each_json_row(const std::filesystem::path& file, FileKind kind, const RowCallback& call);

}  // namespace thinkvg::data
