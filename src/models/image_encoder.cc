#include "thinkvg/models/image_encoder.h"

#include <atomic>
#include <exception>
#include <thread>

#include "thinkvg/nn/workers.h"

namespace thinkvg::models {
namespace {

constexpr std::int64_t kPicturesPerTowerPass = 32;

}  // namespace

PictureCache::PictureCache(std::shared_ptr<const ImageProcessor> processor, const Options& options)
    : processor_(std::move(processor)), options_(options) {}

std::shared_ptr<const LoadedPicture> PictureCache::find(const std::string& key) {
  const std::lock_guard lock(mutex_);
  const auto found = entries_.find(key);
  if (found == entries_.end()) return nullptr;
  order_.splice(order_.begin(), order_, found->second.place);
  return found->second.picture;
}

void PictureCache::insert(const std::string& key, std::shared_ptr<const LoadedPicture> picture) {
  const std::lock_guard lock(mutex_);
  if (entries_.count(key)) return;
  bytes_ += static_cast<std::int64_t>(picture->processed.patches.values.nbytes());
  order_.push_front(key);
  entries_[key] = {std::move(picture), order_.begin()};
  while (bytes_ > options_.memory_bytes && order_.size() > 1) {
    const auto oldest = entries_.find(order_.back());
    bytes_ -= static_cast<std::int64_t>(oldest->second.picture->processed.patches.values.nbytes());
    entries_.erase(oldest);
    order_.pop_back();
  }
}

std::vector<std::shared_ptr<const LoadedPicture>> PictureCache::get(const std::vector<std::filesystem::path>& files) {
  std::vector<std::shared_ptr<const LoadedPicture>> pictures(files.size());
  std::vector<std::size_t> missing;
  for (std::size_t i = 0; i < files.size(); ++i) {
    pictures[i] = find(files[i].string());
    if (!pictures[i]) missing.push_back(i);
  }
  std::atomic<std::size_t> next{0};
  std::exception_ptr failure;
  std::mutex failure_mutex;
  const auto work = [&] {
    for (std::size_t at = next++; at < missing.size(); at = next++) {
      try {
        const std::filesystem::path& file = files[missing[at]];
        const image::Picture picture = image::read_picture(file);
        auto loaded = std::make_shared<LoadedPicture>(
            LoadedPicture{processor_->process(picture), {picture.width, picture.height}});
        pictures[missing[at]] = loaded;
        insert(file.string(), std::move(loaded));
      } catch (...) {
        const std::lock_guard lock(failure_mutex);
        if (!failure) failure = std::current_exception();
      }
    }
  };
  std::vector<std::jthread> threads;
  const auto num_threads = std::min<std::size_t>(static_cast<std::size_t>(options_.num_threads), missing.size());
  for (std::size_t i = 1; i < num_threads; ++i) threads.emplace_back(work);
  if (!missing.empty()) work();
  threads.clear();
  if (failure) std::rethrow_exception(failure);
  return pictures;
}

ImageEncoder::ImageEncoder(const ModelBundle& bundle, const PictureCache::Options& options)
    : bundle_(bundle), pictures_(std::make_shared<PictureCache>(bundle.processor, options)) {}

void ImageEncoder::set_blank(int grey) {
  blank_ = grey;
  clear();
}

std::vector<std::shared_ptr<const EncodedPicture>> ImageEncoder::encode(
    const std::vector<std::filesystem::path>& files) {
  std::vector<std::filesystem::path> missing;
  for (const auto& file : files)
    if (features_.emplace(file.string(), nullptr).second) missing.push_back(file);
  try {
    const at::NoGradGuard no_grad;
    for (std::size_t begin = 0; begin < missing.size(); begin += kPicturesPerTowerPass) {
      const std::size_t end = std::min(missing.size(), begin + kPicturesPerTowerPass);
      const std::vector<std::filesystem::path> some(missing.begin() + static_cast<std::ptrdiff_t>(begin),
                                                    missing.begin() + static_cast<std::ptrdiff_t>(end));
      const auto pictures = pictures_->get(some);
      PixelPatches patches;
      std::vector<at::Tensor> values;
      for (const auto& picture : pictures) {
        at::Tensor pixels = picture->processed.patches.values;
        if (blank_ >= 0) {
          image::Picture grey{picture->original.width, picture->original.height, {}};
          grey.pixels.assign(static_cast<std::size_t>(grey.width * grey.height * 3), static_cast<std::uint8_t>(blank_));
          pixels = bundle_.processor->process(grey).patches.values;
        }
        values.push_back(pixels);
        patches.grids.push_back(picture->processed.patches.grids.front());
      }
      const at::Device device = bundle_.model->parameters().front().device();
      std::vector<at::Tensor> features;
      if (device.is_cpu()) {
        // One by one: features must not depend on which pictures happen to be missing at the same time.
        features.resize(values.size());
        nn::run_each_alone(static_cast<std::int64_t>(values.size()), [&](std::int64_t i) {
          const auto at = static_cast<std::size_t>(i);
          features[at] = bundle_.model->encode_images({values[at], {patches.grids[at]}});
        });
      } else {
        patches.values = at::cat(values, 0).to(device);
        std::vector<std::int64_t> counts;
        for (const ImageGrid& grid : patches.grids) counts.push_back(bundle_.model->num_image_tokens(grid));
        for (const at::Tensor& part : bundle_.model->encode_images(patches).split_with_sizes(counts, 0))
          features.push_back(part.clone());
      }
      for (std::size_t i = 0; i < pictures.size(); ++i)
        features_[some[i].string()] = std::make_shared<EncodedPicture>(EncodedPicture{
            features[i], patches.grids[i], pictures[i]->processed.frame, pictures[i]->original});
    }
  } catch (...) {
    for (const auto& file : missing)
      if (!features_[file.string()]) features_.erase(file.string());
    throw;
  }
  std::vector<std::shared_ptr<const EncodedPicture>> encoded;
  for (const auto& file : files) encoded.push_back(features_.at(file.string()));
  return encoded;
}

}  // namespace thinkvg::models
