#include "thinkvg/models/image_encoder.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <thread>

#include "thinkvg/core/error.h"
#include "thinkvg/core/files.h"
#include "thinkvg/core/log.h"
#include "thinkvg/image/picture_info.h"
#include "thinkvg/models/safetensors.h"
#include "thinkvg/nn/workers.h"

namespace thinkvg::models {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kPicturesPerTowerPass = 32;
constexpr std::int64_t kSmallBatch = 1 << 20;  // pixels that are not worth a thread

image::PictureStoreOptions store_options(const PictureCache::Options& options) {
  image::PictureStoreOptions store;
  store.read = options.pictures.read;
  store.reduced_jpeg = options.pictures.reduced_jpeg;
  store.keep_encoded = options.pictures.keep_encoded;
  store.memory_bytes = options.memory_bytes;
  store.num_threads = options.num_threads;
  return store;
}

std::vector<image::PictureRequest> requests_of(const std::vector<fs::path>& files) {
  std::vector<image::PictureRequest> requests;
  for (const fs::path& file : files) requests.push_back({file, ""});
  return requests;
}

// Calls work(0), .., work(count - 1) on some threads; the first failure is thrown when all have stopped.
void for_each_index(std::int64_t count, std::int64_t num_threads, const std::function<void(std::int64_t)>& work) {
  std::atomic<std::int64_t> next{0};
  std::exception_ptr failure;
  std::mutex mutex;
  const auto loop = [&] {
    for (std::int64_t i = next++; i < count; i = next++) {
      try {
        work(i);
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (!failure) failure = std::current_exception();
      }
    }
  };
  {
    std::vector<std::jthread> threads;
    for (std::int64_t i = 1; i < std::min(num_threads, count); ++i) threads.emplace_back(loop);
    loop();
  }
  if (failure) std::rethrow_exception(failure);
}

// SHA-256 of the tower's weights and of everything that a picture's pixels depend on besides the file.
std::string tower_hash(const ModelBundle& bundle, const PictureOptions& pictures) {
  std::string text = fmt::format("{} {} {} {}", bundle.processor->to_json().dump(), pictures.reduced_jpeg,
                                 pictures.read.dicom, pictures.read.dicom_window);
  text += bundle.model->config().dump();
  for (const auto& item : bundle.model->named_parameters()) {
    if (bundle.model->part_of(item.key()) == ModelPart::language) continue;
    const at::Tensor plain = item.value().detach().cpu().contiguous();
    text += item.key() + sha256_text({static_cast<const char*>(plain.const_data_ptr()), plain.nbytes()});
  }
  return sha256_text(text);
}

}  // namespace

PictureCache::PictureCache(std::shared_ptr<const ImageProcessor> processor, const Options& options)
    : processor_(std::move(processor)),
      num_threads_(options.num_threads),
      store_(processor_->rule(), store_options(options)) {}

std::vector<std::shared_ptr<const LoadedPicture>> PictureCache::get(const std::vector<fs::path>& files) {
  return get(requests_of(files));
}

std::vector<std::shared_ptr<const LoadedPicture>> PictureCache::get(
    const std::vector<image::PictureRequest>& requests) {
  const auto prepared = store_.get(requests);
  std::int64_t pixels = 0;
  for (const auto& picture : prepared) pixels += picture->pixels.width * picture->pixels.height;
  std::vector<std::shared_ptr<const LoadedPicture>> pictures(requests.size());
  for_each_index(static_cast<std::int64_t>(requests.size()), pixels < kSmallBatch ? 1 : num_threads_,
                 [&](std::int64_t i) {
                   const auto at = static_cast<std::size_t>(i);
                   pictures[at] = std::make_shared<const LoadedPicture>(
                       LoadedPicture{processor_->process_prepared(*prepared[at]), prepared[at]->original});
                 });
  return pictures;
}

ImageEncoder::ImageEncoder(const ModelBundle& bundle, const PictureCache::Options& options)
    : bundle_(bundle), options_(options), pictures_(std::make_shared<PictureCache>(bundle.processor, options)) {
  if (options.pictures.feature_cache_mb < 0) {
    throw_invalid("feature_cache_mb must be at least 0, but is {}", options.pictures.feature_cache_mb);
  }
}

void ImageEncoder::set_blank(int grey) {
  blank_ = grey;
  clear();
}

void ImageEncoder::clear() {
  const std::lock_guard lock(mutex_);
  features_.clear();
  order_.clear();
  bytes_ = 0;
  tower_.clear();
}

void ImageEncoder::insert(const std::string& file, std::shared_ptr<const EncodedPicture> picture) {
  const std::lock_guard lock(mutex_);
  if (features_.contains(file)) return;
  bytes_ += static_cast<std::int64_t>(picture->features.nbytes());
  order_.push_front(file);
  features_[file] = {std::move(picture), order_.begin()};
  while (bytes_ > options_.pictures.feature_cache_mb << 20 && !order_.empty()) {
    const auto oldest = features_.find(order_.back());
    bytes_ -= static_cast<std::int64_t>(oldest->second.picture->features.nbytes());
    features_.erase(oldest);
    order_.pop_back();
  }
}

fs::path ImageEncoder::stored_file(const fs::path& picture) {
  if (options_.pictures.feature_cache.empty() || blank_ >= 0) return {};
  if (tower_.empty()) tower_ = tower_hash(bundle_, options_.pictures);
  const std::string content = sha256_file(picture);
  return fs::path(options_.pictures.feature_cache) / tower_.substr(0, 16) / content.substr(0, 2) /
         (content + ".safetensors");
}

std::shared_ptr<const EncodedPicture> ImageEncoder::load_stored(const fs::path& picture, const fs::path& stored) const {
  if (!fs::exists(stored)) return nullptr;
  const grounding::ImageSize original = image::read_picture_info(picture).shown();
  const ImageGrid grid = bundle_.processor->grid(original);
  try {
    const auto tensors = read_safetensors(stored);
    const auto found = tensors.find("features");
    if (found == tensors.end() || found->second.dim() != 2 ||
        found->second.size(0) != bundle_.model->num_image_tokens(grid)) {
      throw_failure("{}: not the features of a picture of {} tokens", stored.string(),
                    bundle_.model->num_image_tokens(grid));
    }
    const at::Device device = bundle_.model->parameters().front().device();
    return std::make_shared<const EncodedPicture>(
        EncodedPicture{found->second.to(device, found->second.scalar_type(), false, /*copy=*/true), grid,
                       bundle_.processor->frame(original), original});
  } catch (const std::runtime_error& error) {
    spdlog::warn("the stored features are made again: {}", error.what());
    return nullptr;
  }
}

void ImageEncoder::prefetch(const std::vector<fs::path>& files) {
  std::vector<fs::path> missing;
  {
    const std::lock_guard lock(mutex_);
    for (const fs::path& file : files)
      if (!features_.contains(file.string())) missing.push_back(file);
  }
  // Whether the folder has their features is not asked here: it would take the reading of the files.
  if (options_.pictures.feature_cache.empty()) pictures_->prefetch(missing);
}

std::vector<std::shared_ptr<const EncodedPicture>> ImageEncoder::encode(const std::vector<fs::path>& files) {
  return encode(requests_of(files));
}

std::vector<std::shared_ptr<const EncodedPicture>> ImageEncoder::encode(
    const std::vector<image::PictureRequest>& requests) {
  // What this call returns is held here: the memory may be too small for all of it.
  Found found;
  std::vector<image::PictureRequest> missing;
  for (const image::PictureRequest& request : requests) {
    const std::string key = request.file.string();
    if (!found.emplace(key, nullptr).second) continue;
    {
      const std::lock_guard lock(mutex_);
      if (const auto known = features_.find(key); known != features_.end()) {
        order_.splice(order_.begin(), order_, known->second.place);
        found[key] = known->second.picture;
        continue;
      }
    }
    const fs::path stored = stored_file(request.file);
    if (!stored.empty()) found[key] = load_stored(request.file, stored);
    if (found[key])
      insert(key, found[key]);
    else
      missing.push_back(request);
  }
  for (std::size_t begin = 0; begin < missing.size(); begin += kPicturesPerTowerPass) {
    const std::size_t end = std::min(missing.size(), begin + kPicturesPerTowerPass);
    pass_tower(
        {missing.begin() + static_cast<std::ptrdiff_t>(begin), missing.begin() + static_cast<std::ptrdiff_t>(end)},
        found);
  }
  std::vector<std::shared_ptr<const EncodedPicture>> encoded;
  for (const image::PictureRequest& request : requests) encoded.push_back(found.at(request.file.string()));
  return encoded;
}

void ImageEncoder::pass_tower(const std::vector<image::PictureRequest>& requests, Found& found) {
  const at::NoGradGuard no_grad;
  const auto pictures = pictures_->get(requests);
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
    nn::run_each_alone(std::ssize(values), [&](std::int64_t i) {
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
  for (std::size_t i = 0; i < pictures.size(); ++i) {
    const auto encoded = std::make_shared<const EncodedPicture>(
        EncodedPicture{features[i], patches.grids[i], pictures[i]->processed.frame, pictures[i]->original});
    const fs::path stored = stored_file(requests[i].file);
    if (!stored.empty()) {
      fs::create_directories(stored.parent_path());
      write_safetensors({{"features", encoded->features}}, stored);
    }
    found[requests[i].file.string()] = encoded;
    insert(requests[i].file.string(), encoded);
  }
}

}  // namespace thinkvg::models
