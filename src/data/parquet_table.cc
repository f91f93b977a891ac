#include "data/parquet_table.h"

#include <arrow/api.h>
#include <arrow/io/file.h>
#include <parquet/arrow/reader.h>
#include <parquet/arrow/writer.h>
#include <parquet/exception.h>
#include <spdlog/fmt/fmt.h>

#include <memory>
#include <mutex>

#include "thinkvg/core/error.h"

namespace thinkvg::data {
namespace {

constexpr std::int64_t kBatchRows = 2048;

void check(const arrow::Status& status, const std::filesystem::path& file, std::string_view what) {
  if (!status.ok()) throw_failure("{}: cannot {}: {}", file.string(), what, status.message());
}

template <class T>
T take(arrow::Result<T> result, const std::filesystem::path& file, std::string_view what) {
  check(result.status(), file, what);
  return std::move(result).ValueUnsafe();
}

// Runs `body`, whose parquet exceptions become failures that name the file.
template <class Body>
auto with_file(const std::filesystem::path& file, const Body& body) {
  try {
    return body();
  } catch (const parquet::ParquetException& error) {
    throw_failure("{}: cannot read it as parquet: {}", file.string(), error.what());
  }
}

std::unique_ptr<parquet::arrow::FileReader> open_reader(const std::filesystem::path& file) {
  const auto input = take(arrow::io::ReadableFile::Open(file.string()), file, "open it");
  // Pages are read one by one: a column chunk of a large row group is never in memory as a whole.
  parquet::ReaderProperties properties(arrow::system_memory_pool());
  properties.enable_buffered_stream();
  parquet::ArrowReaderProperties arrow_properties(/*use_threads=*/false);
  arrow_properties.set_batch_size(kBatchRows);
  arrow_properties.set_pre_buffer(false);
  parquet::arrow::FileReaderBuilder builder;
  check(builder.Open(input, properties), file, "read it as parquet");
  return take(builder.memory_pool(arrow::system_memory_pool())->properties(arrow_properties)->Build(), file,
              "read it as parquet");
}

std::shared_ptr<arrow::Schema> schema_of(parquet::arrow::FileReader& reader, const std::filesystem::path& file) {
  std::shared_ptr<arrow::Schema> schema;
  check(reader.GetSchema(&schema), file, "read its columns");
  return schema;
}

// The places of a column's leaves among all leaves of the file, which is how the reader counts.
std::vector<int> leaf_places(const parquet::arrow::FileReader& reader, const std::string& column) {
  std::vector<int> places;
  const auto* schema = reader.parquet_reader()->metadata()->schema();
  for (int i = 0; i < schema->num_columns(); ++i) {
    if (schema->Column(i)->path()->ToDotVector().front() == column) places.push_back(i);
  }
  return places;
}

bool is_text(const arrow::Array& array) {
  switch (array.type_id()) {
    case arrow::Type::STRING:
    case arrow::Type::BINARY:
    case arrow::Type::LARGE_STRING:
    case arrow::Type::LARGE_BINARY:
      return true;
    default:
      return false;
  }
}

std::string_view text_at(const arrow::Array& array, std::int64_t row) {
  if (array.type_id() == arrow::Type::STRING || array.type_id() == arrow::Type::BINARY)
    return static_cast<const arrow::BinaryArray&>(array).GetView(row);
  return static_cast<const arrow::LargeBinaryArray&>(array).GetView(row);
}

Json json_at(const arrow::Array& array, std::int64_t row) {
  if (array.IsNull(row)) return nullptr;
  if (is_text(array)) return std::string(text_at(array, row));
  switch (array.type_id()) {
    case arrow::Type::BOOL:
      return static_cast<const arrow::BooleanArray&>(array).Value(row);
    case arrow::Type::INT8:
      return static_cast<const arrow::Int8Array&>(array).Value(row);
    case arrow::Type::INT16:
      return static_cast<const arrow::Int16Array&>(array).Value(row);
    case arrow::Type::INT32:
      return static_cast<const arrow::Int32Array&>(array).Value(row);
    case arrow::Type::INT64:
      return static_cast<const arrow::Int64Array&>(array).Value(row);
    case arrow::Type::UINT8:
      return static_cast<const arrow::UInt8Array&>(array).Value(row);
    case arrow::Type::UINT16:
      return static_cast<const arrow::UInt16Array&>(array).Value(row);
    case arrow::Type::UINT32:
      return static_cast<const arrow::UInt32Array&>(array).Value(row);
    case arrow::Type::UINT64:
      return static_cast<const arrow::UInt64Array&>(array).Value(row);
    case arrow::Type::FLOAT:
      return static_cast<const arrow::FloatArray&>(array).Value(row);
    case arrow::Type::DOUBLE:
      return static_cast<const arrow::DoubleArray&>(array).Value(row);
    case arrow::Type::DICTIONARY: {
      const auto& dictionary = static_cast<const arrow::DictionaryArray&>(array);
      return json_at(*dictionary.dictionary(), dictionary.GetValueIndex(row));
    }
    case arrow::Type::LIST: {
      const auto& list = static_cast<const arrow::ListArray&>(array);
      Json items = Json::array();
      for (std::int64_t i = list.value_offset(row); i < list.value_offset(row + 1); ++i)
        items.push_back(json_at(*list.values(), i));
      return items;
    }
    case arrow::Type::STRUCT: {
      const auto& fields = static_cast<const arrow::StructArray&>(array);
      const auto bytes = fields.GetFieldByName("bytes"), path = fields.GetFieldByName("path");
      if (bytes && is_text(*bytes)) return bytes->IsNull(row) && path ? json_at(*path, row) : json_at(*bytes, row);
      Json object = Json::object();
      for (int i = 0; i < fields.num_fields(); ++i)
        object[fields.struct_type()->field(i)->name()] = json_at(*fields.field(i), row);
      return object;
    }
    default:
      return array.type()->ToString();
  }
}

// The cell as text; `storage` holds it where it has to be made.
std::string_view cell_at(const arrow::Array& array, std::int64_t row, std::string& storage) {
  if (array.IsNull(row)) return {};
  if (is_text(array)) return text_at(array, row);
  const Json value = json_at(array, row);
  if (value.is_null()) return {};
  storage = value.is_string() ? value.get<std::string>() : value.dump();
  return storage;
}

}  // namespace

std::vector<std::string> parquet_columns(const std::filesystem::path& file) {
  return with_file(file, [&] { return schema_of(*open_reader(file), file)->field_names(); });
}

void for_each_parquet_row(const std::filesystem::path& file, const std::vector<std::string>& columns,
                          const RowCallback& call) {
  with_file(file, [&] {
    const auto reader = open_reader(file);
    std::vector<int> leaves;
    for (const std::string& column : columns) {
      for (const int place : leaf_places(*reader, column)) leaves.push_back(place);
    }
    std::vector<int> groups(static_cast<std::size_t>(reader->num_row_groups()));
    for (std::size_t i = 0; i < groups.size(); ++i) groups[i] = static_cast<int>(i);
    const auto batches = take(reader->GetRecordBatchReader(groups, leaves), file, "read its rows");
    std::vector<std::string> storage(columns.size());
    RawRow row;
    row.cells.resize(columns.size());
    std::shared_ptr<arrow::RecordBatch> batch;
    while (check(batches->ReadNext(&batch), file, "read its rows"), batch != nullptr) {
      std::vector<std::shared_ptr<arrow::Array>> arrays;
      for (const std::string& column : columns) arrays.push_back(batch->GetColumnByName(column));
      for (std::int64_t i = 0; i < batch->num_rows(); ++i) {
        for (std::size_t c = 0; c < columns.size(); ++c)
          row.cells[c] = arrays[c] ? cell_at(*arrays[c], i, storage[c]) : std::string_view();
        call(row);
      }
    }
  });
}

struct ParquetColumn::State {
  std::filesystem::path file;
  std::string column;
  std::unique_ptr<parquet::arrow::FileReader> reader;
  std::vector<int> leaves;
  std::vector<std::int64_t> group_ends;
  std::mutex mutex;
  std::size_t group = 0;
  std::shared_ptr<arrow::ChunkedArray> cells;  // of that group
};

ParquetColumn::ParquetColumn(std::filesystem::path file, std::string column) : state_(std::make_unique<State>()) {
  State& s = *state_;
  s.file = std::move(file);
  s.column = std::move(column);
  with_file(s.file, [&] {
    s.reader = open_reader(s.file);
    s.leaves = leaf_places(*s.reader, s.column);
    std::int64_t end = 0;
    for (int i = 0; i < s.reader->num_row_groups(); ++i) {
      end += s.reader->parquet_reader()->metadata()->RowGroup(i)->num_rows();
      s.group_ends.push_back(end);
    }
  });
}

ParquetColumn::~ParquetColumn() = default;

std::string ParquetColumn::at(std::int64_t row) const {
  State& s = *state_;
  const std::lock_guard lock(s.mutex);
  return with_file(s.file, [&]() -> std::string {
    std::size_t group = 0;
    while (group < s.group_ends.size() && s.group_ends[group] <= row) ++group;
    if (group == s.group_ends.size()) throw_failure("{} has no row {}", s.file.string(), row);
    if (!s.cells || s.group != group) {
      s.cells.reset();
      const auto table = take(s.reader->ReadRowGroup(static_cast<int>(group), s.leaves), s.file, "read its rows");
      s.cells = table->GetColumnByName(s.column);
      if (!s.cells) throw_failure("{} has no column '{}'", s.file.string(), s.column);
      s.group = group;
    }
    std::int64_t place = row - (group == 0 ? 0 : s.group_ends[group - 1]);
    for (const auto& chunk : s.cells->chunks()) {
      if (place < chunk->length()) {
        std::string storage;
        return std::string(cell_at(*chunk, place, storage));
      }
      place -= chunk->length();
    }
    throw_failure("{}: row {} of column '{}' is missing", s.file.string(), row, s.column);
  });
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
