#include "data/row_file.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <unordered_map>

#include "data/byte_source.h"
#include "data/parquet_table.h"
#include "data/rows.h"
#include "thinkvg/core/error.h"

namespace thinkvg::data {
namespace {

constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
constexpr std::string_view kBlank = " \t\r\n";

// Splits CSV text that comes in pieces into records.
class CsvReader {
 public:
  explicit CsvReader(const std::filesystem::path& file) : source_(file) {}

  // False at the end. Blank lines are passed over.
  bool next() {
    do {
      if (!read_record()) return false;
    } while (cells_.size() == 1 && cells_[0].empty() && !quoted_);
    return true;
  }
  const std::vector<std::string>& cells() const { return cells_; }
  // The last record ended inside quotes.
  bool open_quote() const { return open_quote_; }

 private:
  int get() {
    if (position_ == piece_.size()) {
      piece_ = source_.next();
      position_ = 0;
      if (first_) {
        if (piece_.starts_with(kByteOrderMark)) position_ = kByteOrderMark.size();
        first_ = false;
      }
      if (position_ >= piece_.size()) return -1;
    }
    return static_cast<unsigned char>(piece_[position_++]);
  }
  int peek() {
    const int c = get();
    if (c >= 0) --position_;
    return c;
  }

  bool read_record() {
    cells_.clear();
    quoted_ = open_quote_ = false;
    int c = get();
    if (c < 0) return false;
    std::string cell;
    for (;; c = get()) {
      if (c < 0 || c == '\n') {
        if (!cell.empty() && cell.back() == '\r') cell.pop_back();
        cells_.push_back(std::move(cell));
        return true;
      }
      if (c == ',') {
        cells_.push_back(std::move(cell));
        cell.clear();
      } else if (c == '"' && cell.empty()) {
        quoted_ = true;
        read_quoted(cell);
      } else {
        cell += static_cast<char>(c);
      }
    }
  }

  // Behind the opening quote, up to the closing one; a doubled quote stands for one.
  void read_quoted(std::string& cell) {
    for (int c = get();; c = get()) {
      if (c < 0) {
        open_quote_ = true;
        return;
      }
      if (c != '"') {
        cell += static_cast<char>(c);
      } else if (peek() == '"') {
        cell += '"';
        get();
      } else {
        return;
      }
    }
  }

  ByteSource source_;
  std::string_view piece_;
  std::size_t position_ = 0;
  bool first_ = true;
  std::vector<std::string> cells_;
  bool quoted_ = false, open_quote_ = false;
};

std::vector<std::string> csv_header(CsvReader& reader) {
  if (!reader.next()) return {};
  std::vector<std::string> columns = reader.cells();
  for (std::string& column : columns) column = trimmed(column);
  while (!columns.empty() && columns.back().empty()) columns.pop_back();
  return columns;
}

// Cuts JSON text that comes in pieces into the elements of its outermost list.
class JsonListSplitter {
 public:
  explicit JsonListSplitter(const RowCallback& call) : call_(call) {}

  void feed(std::string_view piece) {
    std::size_t begin = 0;  // of what belongs to the open element
    for (std::size_t i = 0; i < piece.size(); ++i) {
      const char c = piece[i];
      if (in_text_) {
        if (escaped_) {
          escaped_ = false;
        } else if (c == '\\') {
          escaped_ = true;
        } else if (c == '"') {
          in_text_ = false;
        }
        continue;
      }
      if (c == '"') {
        in_text_ = true;
      } else if (c == '[' || c == '{') {
        if (++depth_ == 1) begin = i + 1;
      } else if ((c == ']' || c == '}') && depth_ > 0) {
        if (--depth_ == 0) {
          element_ += piece.substr(begin, i - begin);
          finish_element(true);
          begin = i + 1;
        }
      } else if (c == ',' && depth_ == 1) {
        element_ += piece.substr(begin, i - begin);
        finish_element(false);
        begin = i + 1;
      }
    }
    if (depth_ > 0) element_ += piece.substr(begin);
  }

  void finish() {
    if (depth_ > 0) {
      RawRow row;
      row.problem = "the file ends inside this row: it was cut off, or a bracket or a quote is missing before";
      call_(row);
    }
  }

 private:
  void finish_element(bool last) {
    const bool blank = element_.find_first_not_of(kBlank) == std::string::npos;
    if (!(blank && last)) {  // a list may be empty, or end in a comma
      RawRow row;
      if (blank) row.problem = "two commas without a row between";
      row.cells = {element_};
      call_(row);
    }
    element_.clear();
  }

  const RowCallback& call_;
  std::string element_;
  std::int64_t depth_ = 0;
  bool in_text_ = false, escaped_ = false;
};

std::vector<std::string> keys_of(const Json& value) {
  std::vector<std::string> keys;
  if (value.is_object()) {
    for (const auto& item : value.items()) keys.push_back(item.key());
  }
  return keys;
}

// The first JSON row of the file; null when it has none or when that is no JSON.
Json first_json_row(const std::filesystem::path& file, FileKind kind) {
  struct Found {
    std::string text;
  };
  try {
    for_each_json_row(file, kind, [](const RawRow& row) {
      if (row.problem.empty()) throw Found{std::string(row.cells[0])};
    });
  } catch (const Found& found) {
    Json value = Json::parse(found.text, nullptr, /*allow_exceptions=*/false);
    if (!value.is_discarded()) return value;
  }
  return nullptr;
}

}  // namespace

bool Preview::has(std::string_view field) const {
  return std::find(fields.begin(), fields.end(), field) != fields.end();
}

bool Preview::has_all(std::initializer_list<std::string_view> names) const {
  return std::all_of(names.begin(), names.end(), [this](std::string_view name) { return has(name); });
}

Preview preview_file(const std::filesystem::path& file) {
  Preview preview;
  preview.file = file;
  std::string head = read_head(file, 1 << 16);
  if (head.starts_with("PAR1")) {
    preview.kind = FileKind::parquet;
    preview.fields = parquet_columns(file);
    return preview;
  }
  if (head.starts_with(kByteOrderMark)) head.erase(0, kByteOrderMark.size());
  if (head.find('\0') != std::string::npos) {
    const bool utf16 = head.starts_with("\xFF\xFE") || head.starts_with("\xFE\xFF");
    throw_failure("{}: {}", file.string(),
                  utf16 ? "the text is UTF-16; convert it to UTF-8"
                        : "the file is neither parquet nor text; of compressed files those of gzip are read");
  }
  const std::size_t begin = head.find_first_not_of(kBlank);
  if (begin == std::string::npos) throw_failure("{}: the file is empty", file.string());
  if (head[begin] == '[') {
    preview.kind = FileKind::json_list;
    preview.first = first_json_row(file, preview.kind);
    preview.fields = keys_of(preview.first);
    return preview;
  }
  if (head[begin] == '{') {
    preview.kind = FileKind::json_lines;
    preview.first = first_json_row(file, preview.kind);
    const bool one_row_a_line = preview.first.is_object();
    preview.fields = keys_of(preview.first);
    // One object, on one line or on many; or JSON lines with a first line that is broken.
    const std::size_t newline = head.find('\n', begin);
    const bool first_line_ends_row = newline != std::string::npos && trimmed(head.substr(0, newline)).ends_with('}');
    if (preview.has("annotations") || (!one_row_a_line && !first_line_ends_row)) {
      const Json whole = Json::parse(read_unpacked(file), nullptr, false);
      if (whole.is_object()) {
        preview.kind = FileKind::json_object;
        preview.fields = keys_of(whole);
      }
    }
    if (preview.kind == FileKind::json_lines && !one_row_a_line) {
      // The format shows in the first line that can be read.
      struct Found {
        Json value;
      };
      try {
        for_each_json_row(file, preview.kind, [](const RawRow& row) {
          Json value = Json::parse(row.cells[0], nullptr, false);
          if (value.is_object()) throw Found{std::move(value)};
        });
      } catch (Found& found) {
        preview.first = std::move(found.value);
        preview.fields = keys_of(preview.first);
      }
    }
    return preview;
  }
  preview.kind = FileKind::csv;
  CsvReader reader(file);
  preview.fields = csv_header(reader);
  return preview;
}

void for_each_csv_row(const std::filesystem::path& file, const std::vector<std::string>& columns,
                      const RowCallback& call) {
  CsvReader reader(file);
  const std::vector<std::string> header = csv_header(reader);
  std::vector<std::size_t> places;
  for (const std::string& column : columns) {
    const auto at = std::find(header.begin(), header.end(), column);
    if (at == header.end()) {
      throw_failure("{}: expected a column '{}'; it has {}", file.string(), column, fmt::join(header, ", "));
    }
    places.push_back(static_cast<std::size_t>(at - header.begin()));
  }
  while (reader.next()) {
    std::vector<std::string> cells = reader.cells();
    while (cells.size() > header.size() && cells.back().empty()) cells.pop_back();
    RawRow row;
    if (reader.open_quote()) {
      row.problem = "a quote is not closed: the file ends inside this row";
    } else if (cells.size() != header.size()) {
      row.problem = fmt::format("{} cells for {} columns", cells.size(), header.size());
    }
    cells.resize(header.size());
    for (const std::size_t place : places) row.cells.push_back(cells[place]);
    call(row);
  }
}

void for_each_json_row(const std::filesystem::path& file, FileKind kind, const RowCallback& call) {
  ByteSource source(file);
  bool first = true;
  const auto next = [&] {
    std::string_view piece = source.next();
    if (first && piece.starts_with(kByteOrderMark)) piece.remove_prefix(kByteOrderMark.size());
    first = false;
    return piece;
  };
  if (kind == FileKind::json_list) {
    JsonListSplitter splitter(call);
    for (std::string_view piece = next(); !piece.empty(); piece = next()) splitter.feed(piece);
    splitter.finish();
    return;
  }
  std::string line;
  const auto finish_line = [&] {
    if (line.find_first_not_of(kBlank) != std::string::npos) {
      RawRow row;
      row.cells = {line};
      call(row);
    }
    line.clear();
  };
  for (std::string_view piece = next(); !piece.empty(); piece = next()) {
    for (std::size_t begin = 0; begin < piece.size();) {
      const std::size_t end = piece.find('\n', begin);
      line += piece.substr(begin, end == std::string_view::npos ? end : end - begin);
      if (end == std::string_view::npos) break;
      finish_line();
      begin = end + 1;
    }
  }
  finish_line();
}

}  // namespace thinkvg::data
