#pragma once

#include <filesystem>
#include <memory>

#include "thinkvg/data/dataset.h"
#include "thinkvg/image/picture.h"

namespace thinkvg::data {

// Finds the pictures of a data set under a root: by relative path, with or without "files/", as .jpg, .jpeg or .png,
// else by file stem anywhere under the root (the stem of MIMIC-CXR is the dicom_id, which is unique). Cheap to copy.
class ImageFinder {
 public:
  // Throws std::runtime_error unless root is a folder.
  explicit ImageFinder(std::filesystem::path root);

  // The file, or an empty path when there is none. Thread-safe.
  std::filesystem::path find(const std::string& relative_path) const;
  // As find, but throws std::runtime_error naming the sample and the places looked at.
  std::filesystem::path require(const Sample& sample) const;

 private:
  struct StemIndex;
  std::filesystem::path root_;
  // All picture files under the root by stem, filled when the usual places fail for the first time; shared by copies.
  std::shared_ptr<StemIndex> index_;
};

}  // namespace thinkvg::data
