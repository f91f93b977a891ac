#include "thinkvg/models/processor.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <utility>

#include "thinkvg/core/error.h"
#include "thinkvg/core/files.h"
#include "thinkvg/image/patches.h"
#include "thinkvg/image/resize.h"

namespace thinkvg::models {
namespace {

constexpr const char* kFileName = "preprocessor_config.json";

class FileReader {
 public:
  FileReader(const Json& object, std::string file) : object_(object), file_(std::move(file)) {}

  bool has(const char* key) const { return object_.contains(key) && !object_.at(key).is_null(); }
  void read(const char* key, std::int64_t& value) const {
    if (has(key)) value = get<std::int64_t>(key, object_.at(key).is_number_integer(), "an integer");
  }
  void read(const char* key, bool& value) const {
    if (has(key)) value = get<bool>(key, object_.at(key).is_boolean(), "true or false");
  }
  void read(const char* key, std::vector<double>& value) const {
    if (!has(key)) return;
    const Json& list = object_.at(key);
    const bool fits = list.is_array() && list.size() == 3 &&
                      std::all_of(list.begin(), list.end(), [](const Json& item) { return item.is_number(); });
    value = get<std::vector<double>>(key, fits, "three numbers");
  }

 private:
  template <class Value>
  Value get(const char* key, bool fits, const char* kind) const {
    if (!fits) throw_failure("{}: {} is {}, expected {}", file_, key, object_.at(key).dump(), kind);
    return object_.at(key).get<Value>();
  }
  const Json& object_;
  std::string file_;
};

void check(const ProcessorOptions& options) {
  for (const auto& [name, value] : {std::pair{"patch_size", options.patch_size},
                                    {"merge_size", options.merge_size},
                                    {"temporal_patch_size", options.temporal_patch_size},
                                    {"min_pixels", options.min_pixels},
                                    {"max_pixels", options.max_pixels}}) {
    if (value <= 0) throw_invalid("picture processor: {} is {}, expected a positive number", name, value);
  }
  if (options.min_pixels > options.max_pixels) {
    throw_invalid("picture processor: min_pixels {} is above max_pixels {}", options.min_pixels, options.max_pixels);
  }
  if (options.image_mean.size() != 3 || options.image_std.size() != 3 ||
      std::any_of(options.image_std.begin(), options.image_std.end(), [](double value) { return !(value > 0); })) {
    throw_invalid("picture processor: image_mean and image_std need three numbers each, the latter above 0");
  }
}

std::array<float, 3> per_channel(const std::vector<double>& values) {
  std::array<float, 3> scaled{};
  for (std::size_t c = 0; c < 3; ++c) scaled[c] = static_cast<float>(values[c]) * 255.0f;
  return scaled;
}

}  // namespace

ImageProcessor::ImageProcessor(ProcessorOptions options) : options_(std::move(options)) { check(options_); }

ImageProcessor ImageProcessor::load(const std::filesystem::path& folder) {
  const std::filesystem::path file = folder / kFileName;
  const Json config = read_json_file(file);
  if (!config.is_object()) throw_failure("{}: expected a JSON object", file.string());
  const FileReader reader(config, file.string());
  for (const char* key : {"do_resize", "do_rescale", "do_normalize"}) {
    bool on = true;
    reader.read(key, on);
    if (!on) throw_failure("{}: {} is off; only the full processing is supported", file.string(), key);
  }
  if (reader.has("resample") && config.at("resample") != 3) {
    throw_failure("{}: resample is {}; only 3 (bicubic) is supported", file.string(), config.at("resample").dump());
  }
  ProcessorOptions options;
  options.pad_to_square = false;  // what a file without the key means
  if (reader.has("size") && config.at("size").is_object()) {
    const FileReader size(config.at("size"), file.string() + ": size");
    size.read("shortest_edge", options.min_pixels);
    size.read("longest_edge", options.max_pixels);
    size.read("min_pixels", options.min_pixels);
    size.read("max_pixels", options.max_pixels);
  }
  reader.read("min_pixels", options.min_pixels);
  reader.read("max_pixels", options.max_pixels);
  reader.read("patch_size", options.patch_size);
  reader.read("merge_size", options.merge_size);
  reader.read("temporal_patch_size", options.temporal_patch_size);
  reader.read("image_mean", options.image_mean);
  reader.read("image_std", options.image_std);
  reader.read("pad_to_square", options.pad_to_square);
  try {
    return ImageProcessor(std::move(options));
  } catch (const std::invalid_argument& error) {
    throw_failure("{}: {}", file.string(), error.what());
  }
}

void ImageProcessor::save(const std::filesystem::path& folder) const {
  write_file_atomically(folder / kFileName, to_json().dump(2) + "\n");
}

Json ImageProcessor::to_json() const {
  return {{"image_processor_type", "Qwen2VLImageProcessor"},
          {"processor_class", "Qwen2_5_VLProcessor"},
          {"do_convert_rgb", true},
          {"do_resize", true},
          {"do_rescale", true},
          {"do_normalize", true},
          {"resample", 3},
          {"rescale_factor", 1.0 / 255},
          {"size", {{"shortest_edge", options_.min_pixels}, {"longest_edge", options_.max_pixels}}},
          {"min_pixels", options_.min_pixels},
          {"max_pixels", options_.max_pixels},
          {"patch_size", options_.patch_size},
          {"merge_size", options_.merge_size},
          {"temporal_patch_size", options_.temporal_patch_size},
          {"image_mean", options_.image_mean},
          {"image_std", options_.image_std},
          {"pad_to_square", options_.pad_to_square}};
}

grounding::ImageSize ImageProcessor::resized(grounding::ImageSize original) const {
  if (options_.pad_to_square && original.width > 0 && original.height > 0)
    original.width = original.height = std::max(original.width, original.height);
  return image::smart_resize(original,
                             {options_.patch_size * options_.merge_size, options_.min_pixels, options_.max_pixels});
}

image::ResizeRule ImageProcessor::rule() const {
  return {[processor = *this](grounding::ImageSize original) { return processor.resized(original); },
          options_.pad_to_square};
}

ProcessedPicture ImageProcessor::process(const image::Picture& picture) const {
  image::Raster raster = image::to_raster(picture);
  const grounding::ImageSize original = raster.size();
  if (options_.pad_to_square) raster = image::pad_to_square(std::move(raster));
  return process_prepared({image::resize_bicubic(raster, resized(original)), original});
}

ProcessedPicture ImageProcessor::process_prepared(const image::PreparedPicture& picture) const {
  const grounding::ImageSize size = picture.pixels.size();
  if (size != resized(picture.original)) {
    const grounding::ImageSize wanted = resized(picture.original);
    throw_invalid("picture processor: a prepared picture of {} x {} pixels, expected {} x {}", size.width, size.height,
                  wanted.width, wanted.height);
  }
  image::PatchOptions cut;
  cut.patch_size = options_.patch_size;
  cut.merge_size = options_.merge_size;
  cut.temporal_patch_size = options_.temporal_patch_size;
  cut.mean = per_channel(options_.image_mean);
  cut.deviation = per_channel(options_.image_std);
  image::PatchValues patches = image::cut_patches(picture.pixels, cut);
  at::Tensor values = at::from_blob(
      patches.values.release(), {patches.rows, patches.columns},
      [](void* block) { std::unique_ptr<float[]>(static_cast<float*>(block)).reset(); }, at::TensorOptions(at::kFloat));
  const ImageGrid grid{1, size.height / options_.patch_size, size.width / options_.patch_size};
  const grounding::BoxFrame frame = options_.pad_to_square ? grounding::BoxFrame::letterbox(size.width)
                                                           : grounding::BoxFrame::stretch(size.width, size.height);
  return {{std::move(values), {grid}}, frame};
}

}  // namespace thinkvg::models
