#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "thinkvg/data/sample.h"

namespace thinkvg::data {

// A row that could not be read: kept and reported, never replaced.
struct BadRow {
  std::int64_t row = 0;  // counted from 0 in the file
  std::string reason;
};

// Questions by index. get() is const and may be called from several threads.
class Dataset {
 public:
  virtual ~Dataset() = default;
  virtual std::int64_t size() const = 0;
  // Throws std::out_of_range unless 0 <= index < size().
  virtual Sample get(std::int64_t index) const = 0;
  // Rows of the source that are not among the size() good ones.
  virtual const std::vector<BadRow>& bad_rows() const = 0;
};

// Opens a data set by its content: *.parquet with the ThinkVG columns; *.jsonl / *.json of GEMeX; a folder with
// GEMeX's four *_question.jsonl files. Throws std::runtime_error naming file and reason.
std::unique_ptr<Dataset> open_dataset(const std::filesystem::path& path);

// The rows `indices` of `source`, in that order.
std::unique_ptr<Dataset> select(std::shared_ptr<const Dataset> source, std::vector<std::int64_t> indices);

// A share of the patients, chosen by seed: the patients of a smaller fraction are among those of a larger one, and
// fraction f with `complement` gives exactly the patients that f without it leaves out. Patients that are unknown
// count one per picture.
std::unique_ptr<Dataset> patient_fraction(std::shared_ptr<const Dataset> source, double fraction, std::uint64_t seed,
                                          bool complement = false);

}  // namespace thinkvg::data
