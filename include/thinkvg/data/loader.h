#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "thinkvg/data/dataset.h"

namespace thinkvg::data {

// The rows of batch `step`: a permutation of the set a pass, seeded by (seed, pass), without repeats inside a pass; a
// batch may span two passes. A function of its arguments alone, so that a position in the data is just a number.
// Throws std::invalid_argument unless size and batch_size are at least 1 and step at least 0.
class EpochOrder {
 public:
  EpochOrder(std::int64_t size, std::int64_t batch_size, std::uint64_t seed);
  // Keeps the permutation of the last pass it was asked for. Not thread-safe.
  std::vector<std::int64_t> batch(std::int64_t step);

 private:
  std::int64_t size_, batch_size_;
  std::uint64_t seed_;
  std::int64_t pass_ = -1;
  std::vector<std::int64_t> permutation_;
};

struct LoaderOptions {
  std::int64_t batch_size = 8;
  std::uint64_t seed = 0;
  std::int64_t batches_ahead = 2;  // rows that are read, and pictures that are announced, before they are asked for
  std::int64_t first_step = 0;     // where a resumed run goes on
};

struct Batch {
  std::int64_t step = 0;
  std::vector<std::int64_t> indices;  // rows of the data set
  std::vector<Sample> samples;
};

// Gives the batches of a run one after the other, and works ahead: a background thread reads the rows of the next
// batches and announces them, so that their pictures are decoded (image::PictureStore::prefetch) while the model
// computes. What comes out depends on data set, batch size and seed only. One thread may call it.
//
//   const auto announce = [&](const std::vector<Sample>& samples) { builder.prefetch(samples); };
//   BatchLoader loader(dataset, {batch_size, seed}, announce);
//
//   loader.seek(checkpoint_step);  // a resumed run
//
//   const Batch batch = loader.next();  // batch.step == checkpoint_step
class BatchLoader {
 public:
  // Called on the background thread with the samples of each batch, in order, once after each seek.
  using Announce = std::function<void(const std::vector<Sample>&)>;

  // `announce` may be empty. Throws std::invalid_argument for an empty data set or options below 1 (batches_ahead 0
  // works without a thread).
  BatchLoader(std::shared_ptr<const Dataset> dataset, const LoaderOptions& options, Announce announce = {});
  ~BatchLoader();
  BatchLoader(const BatchLoader&) = delete;
  BatchLoader& operator=(const BatchLoader&) = delete;

  // The batch at position(), which moves on by one. A failure of the data set, or of `announce`, that belongs to this
  // batch is thrown here, naming the row.
  Batch next();

  // The step of the batch that next() will give: all that a checkpoint has to keep.
  std::int64_t position() const { return position_; }
  void seek(std::int64_t step);

 private:
  struct Slot {
    Batch batch;
    std::exception_ptr failure;
  };
  void work();
  Slot load(std::int64_t step);

  const std::shared_ptr<const Dataset> dataset_;
  const LoaderOptions options_;
  const Announce announce_;
  EpochOrder order_;  // of the thread that loads
  std::int64_t position_ = 0;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Slot> ready_;
  std::int64_t loading_ = 0;     // step that is loaded next
  std::int64_t generation_ = 0;  // counts seeks: what was begun before one is thrown away
  bool stopping_ = false;
  std::jthread thread_;
};

}  // namespace thinkvg::data
