#pragma once

// Shape letters: I image tokens, D width.

#include <condition_variable>
#include <filesystem>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "thinkvg/models/bundle.h"

namespace thinkvg::models {

// A picture ready for the tower, with the size it had on disk.
struct LoadedPicture {
  ProcessedPicture processed;
  grounding::ImageSize original;

  grounding::ImageGeometry geometry() const { return grounding::ImageGeometry(original); }
};

// Reads, resizes and cuts pictures, several at a time on threads of its own; keeps the latest ones up to a memory
// limit. Thread-safe.
class PictureCache {
 public:
  struct Options {
    std::int64_t memory_bytes = std::int64_t{1} << 30;
    std::int64_t num_threads = 2;
  };
  PictureCache(std::shared_ptr<const ImageProcessor> processor, const Options& options);

  // In the order of `files`. An unreadable picture throws the reader's std::runtime_error.
  std::vector<std::shared_ptr<const LoadedPicture>> get(const std::vector<std::filesystem::path>& files);

 private:
  struct Entry {
    std::shared_ptr<const LoadedPicture> picture;
    std::list<std::string>::iterator place;
  };
  std::shared_ptr<const LoadedPicture> find(const std::string& key);
  void insert(const std::string& key, std::shared_ptr<const LoadedPicture> picture);

  std::shared_ptr<const ImageProcessor> processor_;
  Options options_;
  std::mutex mutex_;
  std::list<std::string> order_;  // latest first
  std::unordered_map<std::string, Entry> entries_;
  std::int64_t bytes_ = 0;
};

// A picture as the language model sees it.
struct EncodedPicture {
  at::Tensor features;  // [I, D], no gradient
  ImageGrid grid;
  grounding::BoxFrame frame;  // of the boxes in the model's text
  grounding::ImageSize original;

  grounding::ImageGeometry geometry() const { return grounding::ImageGeometry(original); }
};

// Features of a tower that is not being trained: each picture passes the tower once, then comes from memory. Not
// thread-safe.
class ImageEncoder {
 public:
  ImageEncoder(const ModelBundle& bundle, const PictureCache::Options& options);

  std::vector<std::shared_ptr<const EncodedPicture>> encode(const std::vector<std::filesystem::path>& files);
  // Forgets all features: after the tower's weights changed.
  void clear() { features_.clear(); }
  PictureCache& pictures() { return *pictures_; }
  // Shows every picture to the model as a uniform grey of this value (0..255) instead; -1: as it is. For blind
  // baselines; frames and sizes stay those of the real picture.
  void set_blank(int grey);

 private:
  ModelBundle bundle_;
  std::shared_ptr<PictureCache> pictures_;
  std::unordered_map<std::string, std::shared_ptr<const EncodedPicture>> features_;
  int blank_ = -1;
};

}  // namespace thinkvg::models
