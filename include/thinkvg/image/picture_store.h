#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <filesystem>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "thinkvg/image/raster.h"
#include "thinkvg/image/resize.h"

namespace thinkvg::image {

// A picture at the size that a processor asks for, with the size it is shown at on disk.
struct PreparedPicture {
  Raster pixels;
  grounding::ImageSize original;
};

// How a picture comes to its size: padded to a square where that is asked for, then resized to target(shown size), then
// cut to its middle where there is a size for that.
struct ResizeRule {
  std::function<grounding::ImageSize(grounding::ImageSize)> target;
  bool pad_to_square = false;
  std::array<std::uint8_t, 3> colour = {};  // of the padding
  ResizeFilter filter = ResizeFilter::bicubic;
  grounding::ImageSize crop = {};  // 0 x 0: all of it
};
// `size`: what the rule's target() says of the picture; `raster` may be decoded smaller than that picture.
Raster apply_rule(Raster raster, const ResizeRule& rule, grounding::ImageSize size);

struct PictureStoreOptions {
  ReadOptions read;
  // Decode large JPEGs at a half, a quarter or an eighth where that still covers the target: see
  // decode_raster_reduced. Faster, not exact.
  bool reduced_jpeg = false;
  // What is kept for the next pass: the prepared pixels (8 bits, nothing to do again), or the file's bytes (less memory
  // where pictures on disk are small, decoded again each time).
  bool keep_encoded = false;
  std::int64_t memory_bytes = std::int64_t{1} << 30;
  std::int64_t num_threads = 2;  // in the background; 0: all work is done by the thread that asks
};

// Decodes and resizes one picture.
PreparedPicture prepare_picture(std::string_view encoded, const std::string& name, const ResizeRule& rule,
                                const PictureStoreOptions& options);

// A picture that somebody asks for.
struct PictureRequest {
  std::filesystem::path file;
  std::string row;  // who asks ("sample 12"), named by an error; may be empty
};

// Reads, decodes and resizes pictures ahead of their use on background threads, and keeps the latest ones. What get()
// returns depends on the files only, never on threads, on what was prefetched or on the memory limit. Thread-safe.
//
// Memory: the least recently used pictures are dropped beyond memory_bytes, and work ahead pauses while pictures that
// nobody has fetched yet reach it. On top come the pictures that callers hold, and one decoded picture a thread.
class PictureStore {
 public:
  PictureStore(ResizeRule rule, const PictureStoreOptions& options);
  ~PictureStore();
  PictureStore(const PictureStore&) = delete;
  PictureStore& operator=(const PictureStore&) = delete;

  // Starts work on pictures that will be asked for soon, in this order, and returns at once. A failure is kept for the
  // get() that asks for that picture. What was not asked for after 256 further calls is forgotten.
  void prefetch(const std::vector<std::filesystem::path>& files);
  // Forgets what prefetch() asked for and was not fetched: after a jump to another place of a data set.
  void cancel();

  // The pictures in the order of the requests. The calling thread helps. Throws std::runtime_error with the first
  // failing request's row, file and reason.
  std::vector<std::shared_ptr<const PreparedPicture>> get(const std::vector<PictureRequest>& requests);

  // Bytes that are held now for later.
  std::int64_t bytes() const;

 private:
  enum class State { waiting, running, done };
  struct Task {
    std::filesystem::path file;
    State state = State::waiting;
    std::shared_ptr<const PreparedPicture> picture;
    std::exception_ptr failure;
    std::int64_t call = 0;  // of prefetch()
  };
  struct Kept {
    std::shared_ptr<const PreparedPicture> picture;  // or
    std::shared_ptr<const std::string> encoded;
    std::list<std::string>::iterator place;
  };

  void work();
  void run(const std::shared_ptr<Task>& task, std::unique_lock<std::mutex>& lock);
  void keep(const std::string& key, Kept kept);
  void make_room();
  void forget_old();
  std::shared_ptr<const PreparedPicture> fetch(const PictureRequest& request, std::unique_lock<std::mutex>& lock);

  const ResizeRule rule_;
  const PictureStoreOptions options_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::shared_ptr<Task>> queue_;
  std::unordered_map<std::string, std::shared_ptr<Task>> tasks_;  // asked for, not fetched yet
  std::unordered_map<std::string, Kept> kept_;
  std::list<std::string> order_;  // of kept_, latest first
  std::int64_t kept_bytes_ = 0;
  std::int64_t ahead_bytes_ = 0;
  std::int64_t num_calls_ = 0;
  bool stopping_ = false;
  std::vector<std::jthread> threads_;
};

}  // namespace thinkvg::image
