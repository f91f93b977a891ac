#include "data/parquet_table.h"

#include <arrow/api.h>
#include <arrow/io/file.h>
#include <parquet/arrow/reader.h>
#include <parquet/arrow/writer.h>
#include <parquet/exception.h>
#include <spdlog/fmt/fmt.h>

#include <memory>

#include "thinkvg/core/error.h"

namespace thinkvg::data {
namespace {

void check(const arrow::Status& status, const std::filesystem::path& file, std::string_view what) {
  if (!status.ok()) throw_failure("{}: cannot {}: {}", file.string(), what, status.message());
}

template <class T>
T take(arrow::Result<T> result, const std::filesystem::path& file, std::string_view what) {
  check(result.status(), file, what);
  return std::move(result).ValueUnsafe();
}

template <class Array>
void append_all(const Array& array, TextColumn& column) {
  for (std::int64_t i = 0; i < array.length(); ++i) {
    column.append(array.IsNull(i) ? std::string_view() : std::string_view(array.GetView(i)));
  }
}

TextColumn to_text(const arrow::ChunkedArray& chunks, const std::filesystem::path& file, const std::string& name) {
  TextColumn column;
  column.reserve(static_cast<std::size_t>(chunks.length()), 0);
  for (const auto& chunk : chunks.chunks()) {
    switch (chunk->type_id()) {
      case arrow::Type::STRING:
      case arrow::Type::BINARY:
        append_all(static_cast<const arrow::BinaryArray&>(*chunk), column);
        break;
      case arrow::Type::LARGE_STRING:
      case arrow::Type::LARGE_BINARY:
        append_all(static_cast<const arrow::LargeBinaryArray&>(*chunk), column);
        break;
      default:
        throw_failure("{}: column '{}' should hold text, but its type is {}", file.string(), name,
                      chunk->type()->ToString());
    }
  }
  return column;
}

}  // namespace

std::vector<TextColumn> read_text_columns(const std::filesystem::path& file, const TextColumnNames& names) {
  try {
    const auto input = take(arrow::io::ReadableFile::Open(file.string()), file, "open it");
    const auto reader = take(parquet::arrow::OpenFile(input, arrow::system_memory_pool()), file, "read it as parquet");
    std::shared_ptr<arrow::Schema> schema;
    check(reader->GetSchema(&schema), file, "read its columns");

    std::vector<std::string> missing;
    for (const std::string& name : names.required) {
      if (schema->GetFieldIndex(name) < 0) missing.push_back(name);
    }
    if (!missing.empty()) {
      throw_failure("{}: expected the columns {}; it lacks {} and has {}", file.string(),
                    fmt::join(names.required, ", "), fmt::join(missing, ", "), fmt::join(schema->field_names(), ", "));
    }
    const std::int64_t num_rows = reader->parquet_reader()->metadata()->num_rows();
    std::vector<TextColumn> columns;
    for (const auto* list : {&names.required, &names.optional}) {
      for (const std::string& name : *list) {
        TextColumn column;
        if (const int index = schema->GetFieldIndex(name); index >= 0) {
          std::shared_ptr<arrow::ChunkedArray> chunks;
          check(reader->ReadColumn(index, &chunks), file, "read column '" + name + "'");
          column = to_text(*chunks, file, name);
        } else {
          for (std::int64_t row = 0; row < num_rows; ++row) column.append({});
        }
        if (column.size() != num_rows) {
          throw_failure("{}: column '{}' has {} values for {} rows", file.string(), name, column.size(), num_rows);
        }
        columns.push_back(std::move(column));
      }
    }
    return columns;
  } catch (const parquet::ParquetException& error) {
    throw_failure("{}: cannot read it as parquet: {}", file.string(), error.what());
  }
}

void write_text_columns(const std::filesystem::path& file,
                        const std::vector<std::pair<std::string, TextColumn>>& columns) {
  std::vector<std::shared_ptr<arrow::Field>> fields;
  std::vector<std::shared_ptr<arrow::Array>> arrays;
  for (const auto& [name, column] : columns) {
    arrow::StringBuilder builder;
    for (std::int64_t row = 0; row < column.size(); ++row) {
      check(builder.Append(column.at(row)), file, "build column '" + name + "'");
    }
    fields.push_back(arrow::field(name, arrow::utf8()));
    arrays.push_back(take(builder.Finish(), file, "build column '" + name + "'"));
  }
  const auto table = arrow::Table::Make(arrow::schema(fields), arrays);
  check(table->Validate(), file, "make a table");
  const auto output = take(arrow::io::FileOutputStream::Open(file.string()), file, "create it");
  check(parquet::arrow::WriteTable(*table, arrow::default_memory_pool(), output, 1 << 16), file, "write it");
  check(output->Close(), file, "write it");
}

}  // namespace thinkvg::data
