#include "thinkvg/image/picture_store.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <unordered_set>
#include <utility>

#include "image/codecs.h"
#include "image/row_resizer.h"
#include "thinkvg/core/error.h"
#include "thinkvg/core/files.h"
#include "thinkvg/image/picture_info.h"
#include "thinkvg/image/resize.h"

namespace thinkvg::image {
namespace {

constexpr std::int64_t kForgetAfter = 256;
constexpr std::int64_t kPaddedRows = 32;  // together

std::int64_t bytes_of(const PreparedPicture& picture) {
  return static_cast<std::int64_t>(picture.pixels.pixels.size());
}

Raster middle_of(Raster picture, grounding::ImageSize size) {
  if (size.width == 0 || picture.size() == size) return picture;
  return cut_out(picture, center_crop(picture.size(), size));
}

// apply_rule() for rows that come out of a decoder.
class RuleSink final : public RowSink {
 public:
  // `size`: what rule.target() says of the picture.
  RuleSink(const ResizeRule& rule, grounding::ImageSize size) : rule_(rule), size_(size) {}

  void start(grounding::ImageSize size, std::int64_t channels) override {
    inner_ = outer_ = size;
    num_in_ = num_out_ = channels;
    if (rule_.pad_to_square && size.width != size.height) {
      outer_.width = outer_.height = std::max(size.width, size.height);
      const bool grey_ground = rule_.colour[0] == rule_.colour[1] && rule_.colour[0] == rule_.colour[2];
      if (!grey_ground) num_out_ = 3;
    }
    resizer_.emplace(outer_, num_out_, size_, rule_.filter);
    padded_.resize(static_cast<std::size_t>(kPaddedRows * outer_.width));
    add_ground((outer_.height - inner_.height) / 2);
  }

  void take(std::int64_t channel, const cpu::Rows& rows) override {
    if (num_in_ == num_out_) return push(channel, rows);
    for (std::int64_t c = 0; c < num_out_; ++c) push(c, rows);
  }

  Raster finish() {
    const std::int64_t margin = outer_.height - inner_.height;
    add_ground(margin - margin / 2);
    return middle_of(resizer_->finish(), rule_.crop);
  }

 private:
  int ground(std::int64_t channel) const { return rule_.colour[static_cast<std::size_t>(channel)]; }

  void add_ground(std::int64_t count) {
    if (count == 0) return;
    for (std::int64_t c = 0; c < num_out_; ++c) {
      std::memset(padded_.data(), ground(c), static_cast<std::size_t>(outer_.width));
      resizer_->push(c, {padded_.data(), 0, count});
    }
  }

  void push(std::int64_t channel, const cpu::Rows& rows) {
    const std::int64_t margin = outer_.width - inner_.width;
    if (margin == 0) return resizer_->push(channel, rows);
    for (std::int64_t at = 0; at < rows.count; at += kPaddedRows) {
      const std::int64_t count = std::min(kPaddedRows, rows.count - at);
      std::memset(padded_.data(), ground(channel), padded_.size());
      for (std::int64_t y = 0; y < count; ++y)
        std::memcpy(padded_.data() + y * outer_.width + margin / 2, rows.values + (at + y) * rows.stride,
                    static_cast<std::size_t>(inner_.width));
      resizer_->push(channel, {padded_.data(), outer_.width, count});
    }
  }

  const ResizeRule& rule_;
  const grounding::ImageSize size_;
  grounding::ImageSize inner_, outer_;  // without and with the padding
  std::int64_t num_in_ = 0, num_out_ = 0;
  std::optional<RowResizer> resizer_;
  std::vector<std::uint8_t> padded_;
};

}  // namespace

PreparedPicture prepare_picture(std::string_view encoded, const std::string& name, const ResizeRule& rule,
                                const PictureStoreOptions& options) {
  const grounding::ImageSize shown = parse_picture_info(encoded, name).shown();
  const grounding::ImageSize target = rule.target(shown);
  RuleSink sink(rule, target);
  if (decode_rows(encoded, name, {options.read, options.reduced_jpeg ? target : grounding::ImageSize{}}, sink))
    return {sink.finish(), shown};
  return {apply_rule(decode_raster(encoded, name, options.read), rule, target), shown};
}

Raster apply_rule(Raster raster, const ResizeRule& rule, grounding::ImageSize size) {
  if (rule.pad_to_square) raster = pad_to_square(std::move(raster), rule.colour);
  return middle_of(resize(raster, size, rule.filter), rule.crop);
}

PictureStore::PictureStore(ResizeRule rule, const PictureStoreOptions& options)
    : rule_(std::move(rule)), options_(options) {
  options_.read.check();
  if (options_.memory_bytes < 0 || options_.num_threads < 0) {
    throw_invalid("picture store: {} bytes and {} threads; neither may be below 0", options_.memory_bytes,
                  options_.num_threads);
  }
}

PictureStore::~PictureStore() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    queue_.clear();
  }
  changed_.notify_all();
}

void PictureStore::prefetch(const std::vector<std::filesystem::path>& files) {
  if (options_.num_threads == 0) return;
  {
    const std::lock_guard lock(mutex_);
    ++num_calls_;
    forget_old();
    for (const std::filesystem::path& file : files) {
      const std::string key = file.string();
      const auto kept = kept_.find(key);
      if ((kept != kept_.end() && kept->second.picture) || tasks_.contains(key)) continue;
      auto task = std::make_shared<Task>();
      task->file = file;
      task->call = num_calls_;
      queue_.push_back(task);
      tasks_.emplace(key, std::move(task));
    }
    while (static_cast<std::int64_t>(threads_.size()) < options_.num_threads) threads_.emplace_back([this] { work(); });
  }
  changed_.notify_all();
}

// Who announced a picture may find that it is not needed after all; without this, such pictures would fill the memory.
void PictureStore::forget_old() {
  std::erase_if(tasks_, [&](const auto& item) {
    const Task& task = *item.second;
    if (task.state != State::done || task.call + kForgetAfter > num_calls_) return false;
    if (task.picture) ahead_bytes_ -= bytes_of(*task.picture);
    return true;
  });
}

void PictureStore::cancel() {
  const std::lock_guard lock(mutex_);
  queue_.clear();
  tasks_.clear();  // what is running now finishes for those that wait for it
  ahead_bytes_ = 0;
}

std::int64_t PictureStore::bytes() const {
  const std::lock_guard lock(mutex_);
  return kept_bytes_ + ahead_bytes_;
}

void PictureStore::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return stopping_ || (!queue_.empty() && ahead_bytes_ < options_.memory_bytes); });
    if (stopping_) return;
    const std::shared_ptr<Task> task = queue_.front();
    queue_.pop_front();
    if (task->state == State::waiting) run(task, lock);
  }
}

// Does the task's work without the lock, which is held before and after.
void PictureStore::run(const std::shared_ptr<Task>& task, std::unique_lock<std::mutex>& lock) {
  task->state = State::running;
  const std::string key = task->file.string();
  std::shared_ptr<const std::string> encoded;
  if (const auto kept = kept_.find(key); kept != kept_.end()) encoded = kept->second.encoded;
  lock.unlock();
  std::shared_ptr<const PreparedPicture> picture;
  std::exception_ptr failure;
  try {
    if (!encoded) encoded = std::make_shared<const std::string>(read_file(task->file));
    picture = std::make_shared<const PreparedPicture>(prepare_picture(*encoded, key, rule_, options_));
  } catch (...) {
    failure = std::current_exception();
  }
  lock.lock();
  task->picture = std::move(picture);
  task->failure = failure;
  task->state = State::done;
  const auto asked = tasks_.find(key);
  if (task->picture && asked != tasks_.end() && asked->second == task) ahead_bytes_ += bytes_of(*task->picture);
  if (task->picture && options_.keep_encoded) keep(key, {nullptr, std::move(encoded), {}});
  make_room();
  changed_.notify_all();
}

void PictureStore::keep(const std::string& key, Kept kept) {
  if (const auto found = kept_.find(key); found != kept_.end()) {
    order_.splice(order_.begin(), order_, found->second.place);
    return;
  }
  kept_bytes_ += kept.picture ? bytes_of(*kept.picture) : static_cast<std::int64_t>(kept.encoded->size());
  order_.push_front(key);
  kept.place = order_.begin();
  kept_.emplace(key, std::move(kept));
  make_room();
}

void PictureStore::make_room() {
  while (!order_.empty() && kept_bytes_ + ahead_bytes_ > options_.memory_bytes) {
    const auto oldest = kept_.find(order_.back());
    kept_bytes_ -= oldest->second.picture ? bytes_of(*oldest->second.picture)
                                          : static_cast<std::int64_t>(oldest->second.encoded->size());
    kept_.erase(oldest);
    order_.pop_back();
  }
}

std::shared_ptr<const PreparedPicture> PictureStore::fetch(const PictureRequest& request,
                                                           std::unique_lock<std::mutex>& lock) {
  const std::string key = request.file.string();
  if (const auto kept = kept_.find(key); kept != kept_.end() && kept->second.picture) {
    order_.splice(order_.begin(), order_, kept->second.place);
    return kept->second.picture;
  }
  std::shared_ptr<Task> task;
  if (const auto found = tasks_.find(key); found != tasks_.end()) {
    task = found->second;
  } else {
    task = std::make_shared<Task>();
    task->file = request.file;
    tasks_.emplace(key, task);
  }
  if (task->state == State::waiting) run(task, lock);
  changed_.wait(lock, [&] { return task->state == State::done; });
  // Several threads may have waited for the same task; the first one takes it off.
  if (const auto found = tasks_.find(key); found != tasks_.end() && found->second == task) {
    if (task->picture) ahead_bytes_ -= bytes_of(*task->picture);
    tasks_.erase(found);
    if (task->picture && !options_.keep_encoded) keep(key, {task->picture, nullptr, {}});
    changed_.notify_all();
  }
  if (!task->failure) return task->picture;
  try {
    std::rethrow_exception(task->failure);
  } catch (const std::exception& error) {
    if (request.row.empty()) throw;
    throw_failure("{}: {}", request.row, error.what());
  }
}

std::vector<std::shared_ptr<const PreparedPicture>> PictureStore::get(const std::vector<PictureRequest>& requests) {
  std::unique_lock lock(mutex_);
  // The threads start with what is needed now.
  if (options_.num_threads > 0 && requests.size() > 1) {
    std::vector<std::filesystem::path> files;
    std::unordered_set<std::string> wanted;
    for (const PictureRequest& request : requests) {
      files.push_back(request.file);
      wanted.insert(request.file.string());
    }
    lock.unlock();
    prefetch(files);
    lock.lock();
    std::stable_partition(queue_.begin(), queue_.end(),
                          [&](const std::shared_ptr<Task>& task) { return wanted.contains(task->file.string()); });
  }
  std::vector<std::shared_ptr<const PreparedPicture>> pictures;
  for (const PictureRequest& request : requests) pictures.push_back(fetch(request, lock));
  return pictures;
}

}  // namespace thinkvg::image
