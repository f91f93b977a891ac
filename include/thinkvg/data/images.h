#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "thinkvg/data/dataset.h"
#include "thinkvg/image/picture.h"

namespace thinkvg::data {

// Finds the pictures of a data set under one or several folders, however MIMIC-CXR was copied there: by relative path,
// with or without "files/", or flat in the folder; with the extension that the data set names, else .jpg, .jpeg, .png,
// .dcm, .dicom; else by file name anywhere below. A name that is unique by its making (MIMIC-CXR's dicom_id,
// VinDr-CXR's image_id: 16 letters and digits or more, 4 of them digits) is enough by itself. Another one ("source",
// "view1_frontal") is found where the folders that the data set names stand before it, too, or where it is the only
// file of that name and no folder is named: a picture of someone else is never taken.
//
// The first folder that has the picture wins, and in it the earlier of those rules; among several files of a name the
// one with most of the named folders, then the alphabetically first. Resized copies may stand in for the originals as
// long as they keep the shape of the picture: boxes in the letterbox, unit, hundred and thousand frames still fit,
// boxes in pixels of the original do not.
//
// The list of stems is made when a picture is asked for that the other rules do not find, and kept in
// <folder>/.thinkvg/pictures.index, or below $XDG_CACHE_HOME (~/.cache) where the folder cannot be written. Later only
// those folders are read again whose modification time changed. Cheap to copy. Thread-safe.
class ImageFinder {
 public:
  // One folder, or several separated by commas. Throws std::runtime_error naming a folder that does not exist.
  explicit ImageFinder(const std::string& folders);

  const std::vector<std::filesystem::path>& folders() const { return folders_; }
  // The file, or an empty path when there is none.
  std::filesystem::path find(const std::string& relative_path) const;
  // As find, but throws std::runtime_error naming the sample and the places looked at.
  std::filesystem::path require(const Sample& sample) const;

 private:
  class StemIndex;
  std::vector<std::filesystem::path> folders_;
  std::vector<std::shared_ptr<StemIndex>> indices_;  // one a folder, shared by copies
};

// A row of a data set whose picture is not there.
struct MissingPicture {
  std::int64_t index = 0;  // in the data set
  std::string id;          // Sample::id
  std::string image;
};

// Whether two names of pictures that are found in the same file can be the same picture: they are, but for leading
// folders, or their file name is unique by its making. "a/source.jpg" and "b/source.jpg" in a flat folder are not.
bool may_share_a_file(const std::string& a, const std::string& b);

// How much of a data set has its pictures.
struct PictureCheck {
  std::int64_t num_rows = 0;
  std::int64_t num_pictures = 0;  // distinct ones
  std::int64_t num_missing_pictures = 0;
  std::vector<MissingPicture> missing;  // every row without its picture

  // Share of the rows whose picture is there; 1 for a set without rows.
  double hit_rate() const;
  // "1,187 of 1,199 rows have their picture (99.0 %; 109 of 110 files)".
  std::string summary() const;
};
// Throws std::runtime_error where two pictures would be one file (see may_share_a_file).
PictureCheck check_pictures(const Dataset& dataset, const ImageFinder& finder);

// The rows of `dataset` that have their picture, after the summary was logged. Throws std::runtime_error with the first
// missing rows when the hit rate is below `min_hit_rate`; std::invalid_argument unless that lies in 0 .. 1. No other
// picture ever stands in for a missing one.
std::shared_ptr<const Dataset> with_pictures(std::shared_ptr<const Dataset> dataset, const ImageFinder& finder,
                                             double min_hit_rate);

}  // namespace thinkvg::data
