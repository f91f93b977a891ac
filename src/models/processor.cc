#include "thinkvg/models/processor.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "thinkvg/core/error.h"
#include "thinkvg/core/files.h"

namespace thinkvg::models {
namespace {

constexpr const char* kFileName = "preprocessor_config.json";
constexpr double kLargestAspect = 200;

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

at::Tensor per_channel(const std::vector<double>& values) {
  return (at::tensor(values, at::kFloat) * 255.0).view({1, 3, 1, 1});
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
  if (original.width <= 0 || original.height <= 0) {
    throw_invalid("picture processor: a picture of {} x {} pixels, expected positive sides", original.width,
                  original.height);
  }
  if (options_.pad_to_square) original.width = original.height = std::max(original.width, original.height);
  const auto width = static_cast<double>(original.width);
  const auto height = static_cast<double>(original.height);
  if (std::max(width, height) / std::min(width, height) > kLargestAspect) {
    throw_invalid("picture processor: a picture of {} x {} pixels; one side may be at most {} times the other",
                  original.width, original.height, kLargestAspect);
  }
  const std::int64_t side = options_.patch_size * options_.merge_size;
  const auto factor = static_cast<double>(side);
  // nearbyint rounds half to even, as Python does.
  auto new_height = static_cast<std::int64_t>(std::nearbyint(height / factor)) * side;
  auto new_width = static_cast<std::int64_t>(std::nearbyint(width / factor)) * side;
  if (new_height * new_width > options_.max_pixels) {
    const double beta = std::sqrt(height * width / static_cast<double>(options_.max_pixels));
    new_height = std::max(side, static_cast<std::int64_t>(std::floor(height / beta / factor)) * side);
    new_width = std::max(side, static_cast<std::int64_t>(std::floor(width / beta / factor)) * side);
  } else if (new_height * new_width < options_.min_pixels) {
    const double beta = std::sqrt(static_cast<double>(options_.min_pixels) / (height * width));
    new_height = static_cast<std::int64_t>(std::ceil(height * beta / factor)) * side;
    new_width = static_cast<std::int64_t>(std::ceil(width * beta / factor)) * side;
  }
  return {new_width, new_height};
}

ProcessedPicture ImageProcessor::process(const image::Picture& picture) const {
  if (static_cast<std::int64_t>(picture.pixels.size()) != picture.width * picture.height * 3) {
    throw_invalid("picture processor: {} bytes for {} x {} RGB pixels", picture.pixels.size(), picture.width,
                  picture.height);
  }
  const at::NoGradGuard no_grad;
  const grounding::ImageSize size = resized({picture.width, picture.height});
  const bool pad = options_.pad_to_square && picture.width != picture.height;
  const image::Picture padded = pad ? image::pad_to_square(picture) : image::Picture{};
  const image::Picture& source = pad ? padded : picture;

  // Only read from; from_blob asks for a mutable pointer.
  auto* bytes = const_cast<std::uint8_t*>(source.pixels.data());
  at::Tensor pixels = at::from_blob(bytes, {source.height, source.width, 3}, at::TensorOptions(at::kByte))
                          .permute({2, 0, 1})
                          .unsqueeze(0);
  if (source.height != size.height || source.width != size.width) {
    pixels = at::_upsample_bicubic2d_aa(pixels, {size.height, size.width}, false);
  }
  const at::Tensor values =
      pixels.to(at::kFloat).sub_(per_channel(options_.image_mean)).div_(per_channel(options_.image_std));

  const std::int64_t patch = options_.patch_size;
  const std::int64_t merge = options_.merge_size;
  const std::int64_t frames = options_.temporal_patch_size;
  const ImageGrid grid{1, size.height / patch, size.width / patch};
  at::Tensor patches = values.view({3, grid.h / merge, merge, patch, grid.w / merge, merge, patch})
                           .permute({1, 4, 2, 5, 0, 3, 6})
                           .unsqueeze(5)
                           .expand({-1, -1, -1, -1, -1, frames, -1, -1})
                           .reshape({grid.h * grid.w, 3 * frames * patch * patch});
  const grounding::BoxFrame frame = options_.pad_to_square ? grounding::BoxFrame::letterbox(size.width)
                                                           : grounding::BoxFrame::stretch(size.width, size.height);
  return {{std::move(patches), {grid}}, frame};
}

}  // namespace thinkvg::models
