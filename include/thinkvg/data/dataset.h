#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "thinkvg/data/sample.h"

namespace thinkvg::data {

// A row that could not be read: kept and reported, never replaced.
struct BadRow {
  std::int64_t row = 0;  // counted from 0 in the file; in a folder of files counted on from file to file
  std::string reason;
};

// What a bad row still says, for those who mend it: its boxes may be reversed or outside, its answer may be empty.
struct SalvagedRow {
  Sample sample;
  std::vector<std::string> lost;  // parts that could not be read, each with its reason
};

// Questions by index. All methods are const and may be called from several threads.
class Dataset {
 public:
  virtual ~Dataset() = default;
  virtual std::int64_t size() const = 0;
  // Throws std::out_of_range unless 0 <= index < size().
  virtual Sample get(std::int64_t index) const = 0;
  // Rows of the source that are not among the size() good ones.
  virtual const std::vector<BadRow>& bad_rows() const = 0;
  // The encoded file of the sample's picture where the set itself holds the pictures (parquet of the Hugging Face hub);
  // empty where pictures are files of their own. unpack_pictures() writes them all.
  virtual std::string embedded_picture(std::int64_t /*index*/) const { return {}; }
  // What is left of bad_rows()[bad_index]; nothing where the row says nothing, or the set keeps no bad rows.
  virtual std::optional<SalvagedRow> salvage(std::int64_t /*bad_index*/) const { return std::nullopt; }
};

// One known layout of files.
struct FormatInfo {
  std::string name;
  std::string summary;
};
// In the order in which they are tried.
std::vector<FormatInfo> known_formats();

struct OpenOptions {
  std::string format;  // one of known_formats(); empty: found out from the content
  std::string frame;   // frame of the boxes; empty: the one that the format or the row names
};

// Opens a data set. Its format is found out from the content (parquet columns, JSON keys, CSV header; never from the
// file's name), or named. `path`: a file, also compressed with gzip; a folder with GEMeX's four *_question.jsonl files;
// a folder with parquet files of one format (read in the order of their names), or whose folder data/ holds them. Rows
// stay packed in memory and are parsed when they are asked for.
// Throws std::runtime_error naming file and reason, std::invalid_argument for an unknown name of a format or frame.
std::unique_ptr<Dataset> open_dataset(const std::filesystem::path& path, const OpenOptions& options = {});

// The name of the format that open_dataset would choose.
std::string detect_format(const std::filesystem::path& path);

// Writes the pictures that the set holds itself to folder/<sample.image>, each once. Returns how many. Throws
// std::runtime_error when it holds none.
std::int64_t unpack_pictures(const Dataset& dataset, const std::filesystem::path& folder);

// Samples that are already in memory.
std::unique_ptr<Dataset> make_dataset(std::vector<Sample> samples, std::vector<BadRow> bad_rows = {});

// The rows `indices` of `source`, in that order.
std::unique_ptr<Dataset> select(std::shared_ptr<const Dataset> source, std::vector<std::int64_t> indices);

// A share of the patients, chosen by seed: the patients of a smaller fraction are among those of a larger one, and
// fraction f with `complement` gives exactly the patients that f without it leaves out. Patients that are unknown
// count one per picture.
std::unique_ptr<Dataset> patient_fraction(std::shared_ptr<const Dataset> source, double fraction, std::uint64_t seed,
                                          bool complement = false);

}  // namespace thinkvg::data
