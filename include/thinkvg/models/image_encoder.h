#pragma once

// Shape letters: I image tokens, D width.

#include <cstdint>
#include <filesystem>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "thinkvg/image/picture_store.h"
#include "thinkvg/models/bundle.h"
#include "thinkvg/models/picture_options.h"

namespace thinkvg::models {

// A picture ready for the tower, with the size it had on disk.
struct LoadedPicture {
  ProcessedPicture processed;
  grounding::ImageSize original;

  grounding::ImageGeometry geometry() const { return grounding::ImageGeometry(original); }
};

// Pictures as a processor wants them: an image::PictureStore that keeps them resized, in 8 bits, and cuts their patches
// when they are asked for. Thread-safe.
class PictureCache {
 public:
  struct Options {
    std::int64_t memory_bytes = std::int64_t{1} << 30;
    std::int64_t num_threads = 2;
    PictureOptions pictures;
  };
  PictureCache(std::shared_ptr<const ImageProcessor> processor, const Options& options);

  // Reads, decodes and resizes pictures in the background that get() will be called for soon. Returns at once.
  void prefetch(const std::vector<std::filesystem::path>& files) { store_.prefetch(files); }
  // In the order of the requests. An unreadable picture throws the reader's std::runtime_error, led by the request's
  // row where it names one.
  std::vector<std::shared_ptr<const LoadedPicture>> get(const std::vector<image::PictureRequest>& requests);
  std::vector<std::shared_ptr<const LoadedPicture>> get(const std::vector<std::filesystem::path>& files);

 private:
  std::shared_ptr<const ImageProcessor> processor_;
  std::int64_t num_threads_;
  image::PictureStore store_;
};

// A picture as the language model sees it.
struct EncodedPicture {
  at::Tensor features;  // [I, D], no gradient
  ImageGrid grid;
  grounding::BoxFrame frame;  // of the boxes in the model's text
  grounding::ImageSize original;

  grounding::ImageGeometry geometry() const { return grounding::ImageGeometry(original); }
};

// Features of a tower that is not being trained: each picture passes the tower once, then comes from memory, up to
// PictureOptions::feature_cache_mb, or from the folder PictureOptions::feature_cache. A file there is named by the
// hashes of the tower's weights, of the picture's bytes, and of all settings that the pixels depend on: one of these
// changed is another name, so that nothing old is ever taken for new. encode() and prefetch() may be called at the same
// time, each by one thread.
class ImageEncoder {
 public:
  ImageEncoder(const ModelBundle& bundle, const PictureCache::Options& options);

  std::vector<std::shared_ptr<const EncodedPicture>> encode(const std::vector<image::PictureRequest>& requests);
  std::vector<std::shared_ptr<const EncodedPicture>> encode(const std::vector<std::filesystem::path>& files);
  // Starts reading those pictures whose features are not in memory.
  void prefetch(const std::vector<std::filesystem::path>& files);
  // Forgets all features, and that of the tower: after its weights changed.
  void clear();
  PictureCache& pictures() { return *pictures_; }
  // Shows every picture to the model as a uniform grey of this value (0..255) instead; -1: as it is. For blind
  // baselines; frames and sizes stay those of the real picture. Blind features are never written to the folder.
  void set_blank(int grey);

 private:
  struct Entry {
    std::shared_ptr<const EncodedPicture> picture;
    std::list<std::string>::iterator place;
  };
  using Found = std::unordered_map<std::string, std::shared_ptr<const EncodedPicture>>;

  void insert(const std::string& file, std::shared_ptr<const EncodedPicture> picture);
  // The name of a picture's file in the folder; empty where there is no folder.
  std::filesystem::path stored_file(const std::filesystem::path& picture);
  std::shared_ptr<const EncodedPicture> load_stored(const std::filesystem::path& picture,
                                                    const std::filesystem::path& stored) const;
  void pass_tower(const std::vector<image::PictureRequest>& requests, Found& found);

  ModelBundle bundle_;
  PictureCache::Options options_;
  std::shared_ptr<PictureCache> pictures_;
  std::mutex mutex_;  // of the three below
  std::unordered_map<std::string, Entry> features_;
  std::list<std::string> order_;  // latest first
  std::int64_t bytes_ = 0;
  std::string tower_;  // hash of weights and settings; empty: not computed yet
  int blank_ = -1;
};

}  // namespace thinkvg::models
