#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "data/row_file.h"
#include "thinkvg/data/dataset.h"

namespace thinkvg::data {

// What a format makes of one row: usually one sample, several where a row is a conversation.
struct ParsedRow {
  std::vector<Sample> samples;
  std::string problem;            // what makes the row unusable, besides what problem_of finds in the samples
  std::vector<std::string> lost;  // parts that could not be read
};

struct RowPlace {
  std::int64_t row = 0;          // over all files
  std::int64_t row_in_file = 0;  // from 0
  std::size_t file = 0;
};

// How the rows of a format are read.
struct RowFormat {
  // What parquet and CSV files are asked for; JSON rows have one cell, their text.
  std::vector<std::string> columns;
  // Must be pure: rows are parsed again whenever they are asked for. May throw std::invalid_argument where nothing can
  // be made of the row. Called from several threads.
  std::function<ParsedRow(const std::vector<std::string_view>& cells, const RowPlace& place)> parse;
  // Place among `columns` of embedded pictures; in their cells `parse` finds names made of the pictures' hashes.
  std::size_t picture_column = static_cast<std::size_t>(-1);
  // What an id that came before does: the row is bad, or the id is completed by "#" and the row's number.
  bool repeated_ids_are_bad = true;
};

// `frame`: overrides that of the format, unless empty.
std::unique_ptr<Dataset> read_rows(const std::vector<Preview>& files, RowFormat format, const std::string& frame);

}  // namespace thinkvg::data
