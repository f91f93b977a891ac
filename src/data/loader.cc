#include "thinkvg/data/loader.h"

#include <numeric>

#include "thinkvg/core/error.h"
#include "thinkvg/core/random.h"

namespace thinkvg::data {

EpochOrder::EpochOrder(std::int64_t size, std::int64_t batch_size, std::uint64_t seed)
    : size_(size), batch_size_(batch_size), seed_(seed) {
  if (size < 1 || batch_size < 1) {
    throw_invalid("loader: {} rows in batches of {}; both must be at least 1", size, batch_size);
  }
}

std::vector<std::int64_t> EpochOrder::batch(std::int64_t step) {
  if (step < 0) throw_invalid("loader: step {} is below 0", step);
  std::vector<std::int64_t> indices;
  for (std::int64_t i = step * batch_size_; i < (step + 1) * batch_size_; ++i) {
    const std::int64_t pass = i / size_;
    if (pass != pass_) {
      permutation_.resize(static_cast<std::size_t>(size_));
      std::iota(permutation_.begin(), permutation_.end(), 0);
      RandomStream({hash_key("data order"), seed_, static_cast<std::uint64_t>(pass)}).shuffle(permutation_);
      pass_ = pass;
    }
    indices.push_back(permutation_[static_cast<std::size_t>(i % size_)]);
  }
  return indices;
}

BatchLoader::BatchLoader(std::shared_ptr<const Dataset> dataset, const LoaderOptions& options, Announce announce)
    : dataset_(std::move(dataset)),
      options_(options),
      announce_(std::move(announce)),
      order_(dataset_->size(), options.batch_size, options.seed) {
  if (options_.batches_ahead < 0 || options_.first_step < 0) {
    throw_invalid("loader: batches_ahead {} and first_step {}; neither may be below 0", options_.batches_ahead,
                  options_.first_step);
  }
  position_ = loading_ = options_.first_step;
  if (options_.batches_ahead > 0) thread_ = std::jthread([this] { work(); });
}

BatchLoader::~BatchLoader() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
}

BatchLoader::Slot BatchLoader::load(std::int64_t step) {
  Slot slot;
  slot.batch.step = step;
  try {
    slot.batch.indices = order_.batch(step);
    for (const std::int64_t index : slot.batch.indices) {
      try {
        slot.batch.samples.push_back(dataset_->get(index));
      } catch (const std::exception& error) {
        throw_failure("row {}: {}", index, error.what());
      }
    }
    if (announce_) announce_(slot.batch.samples);
  } catch (...) {
    slot.failure = std::current_exception();
  }
  return slot;
}

void BatchLoader::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return stopping_ || static_cast<std::int64_t>(ready_.size()) < options_.batches_ahead; });
    if (stopping_) return;
    const std::int64_t step = loading_++;
    const std::int64_t generation = generation_;
    lock.unlock();
    Slot slot = load(step);
    lock.lock();
    if (generation != generation_) continue;
    ready_.push_back(std::move(slot));
    changed_.notify_all();
  }
}

Batch BatchLoader::next() {
  Slot slot;
  if (options_.batches_ahead == 0) {
    slot = load(position_);
  } else {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return !ready_.empty(); });
    slot = std::move(ready_.front());
    ready_.pop_front();
    changed_.notify_all();
  }
  if (slot.failure) {
    seek(position_);  // who tries again gets the same batch
    std::rethrow_exception(slot.failure);
  }
  ++position_;
  return std::move(slot.batch);
}

void BatchLoader::seek(std::int64_t step) {
  if (step < 0) throw_invalid("loader: step {} is below 0", step);
  {
    const std::lock_guard lock(mutex_);
    ready_.clear();
    loading_ = step;
    position_ = step;
    ++generation_;
  }
  changed_.notify_all();
}

}  // namespace thinkvg::data
