#pragma once

#include <filesystem>

#include "thinkvg/data/dataset.h"
#include "thinkvg/image/picture.h"

namespace thinkvg::data {

// Finds the pictures of a data set under a root: by relative path, with or without "files/", else by file stem.
class ImageFinder {
 public:
  explicit ImageFinder(std::filesystem::path root);

  // The file, or an empty path when there is none. Thread-safe.
  std::filesystem::path find(const std::string& relative_path) const;
  // As find, but throws std::runtime_error naming the sample and the places looked at.
  std::filesystem::path require(const Sample& sample) const;

 private:
  std::filesystem::path root_;
};

}  // namespace thinkvg::data
