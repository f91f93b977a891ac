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
#include "thinkvg/models/llava.h"

namespace thinkvg::models {
namespace {

using Kind = ProcessorOptions::Kind;

constexpr const char* kFileName = "preprocessor_config.json";
constexpr int kBilinear = 2, kBicubic = 3;  // as Pillow numbers them

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
  void read(const char* key, std::string& value) const {
    if (has(key)) value = get<std::string>(key, object_.at(key).is_string(), "a text");
  }
  // {"height", "width"}, {"shortest_edge"}, or one number.
  void read(const char* key, grounding::ImageSize& value) const {
    if (!has(key)) return;
    if (object_.at(key).is_object()) {
      const FileReader part(object_.at(key), file_ + ": " + key);
      std::int64_t side = 0;
      part.read("shortest_edge", side);
      if (side > 0) value = {side, side};
      part.read("width", value.width);
      part.read("height", value.height);
    } else {
      read(key, value.width);
      value.height = value.width;
    }
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
  if (options.kind == Kind::qwen) return;
  if (options.size.width < options.patch_size || options.size.height < options.patch_size) {
    throw_invalid("picture processor: size {} x {} is below one patch of {} pixels", options.size.width,
                  options.size.height, options.patch_size);
  }
  if (options.kind == Kind::fixed && options.pad_to_square && options.size.width != options.size.height) {
    throw_invalid("picture processor: pad_to_square needs a square size, not {} x {}", options.size.width,
                  options.size.height);
  }
  if (options.kind != Kind::clip) return;
  if (options.crop.width != options.crop.height || options.crop.width < options.patch_size) {
    throw_invalid("picture processor: crop_size is {} x {}; only the square that a tower sees is supported",
                  options.crop.width, options.crop.height);
  }
  if (options.crop.width > options.size.width) {
    throw_invalid("picture processor: crop_size {} is above the shorter side, {}", options.crop.width,
                  options.size.width);
  }
}

std::array<float, 3> per_channel(const std::vector<double>& values) {
  std::array<float, 3> scaled{};
  for (std::size_t c = 0; c < 3; ++c) scaled[c] = static_cast<float>(values[c]) * 255.0f;
  return scaled;
}

Json read_object(const std::filesystem::path& file) {
  const Json object = read_json_file(file);
  if (!object.is_object()) throw_failure("{}: expected a JSON object", file.string());
  return object;
}

// The processor's file of a model folder, and where it lies.
struct Source {
  std::filesystem::path file;
  Json content;
};
Source find_source(const std::filesystem::path& folder, const Json& model) {
  if (std::filesystem::exists(folder / kFileName)) return {folder / kFileName, read_object(folder / kFileName)};
  if (const auto file = folder / "processor_config.json"; std::filesystem::exists(file)) {
    Json content = read_object(file);
    if (content.contains("image_processor") && content.at("image_processor").is_object())
      return {file, content.at("image_processor")};
  }
  if (!is_released_llava(model)) return {folder / kFileName, read_object(folder / kFileName)};
  // Its code pads with the mean colour ("pad"), or takes CLIP's middle.
  const std::filesystem::path clip = find_clip_folder(model, folder);
  Source source{folder / "config.json", Json::object()};
  if (!clip.empty() && std::filesystem::exists(clip / kFileName))
    source = {clip / kFileName, read_object(clip / kFileName)};
  if (!clip.empty() && !source.content.contains("size")) {
    const Json tower = read_object(clip / "config.json");
    const Json& vision = tower.contains("vision_config") ? tower.at("vision_config") : tower;
    source.content["size"] = {{"shortest_edge", vision.value("image_size", 336)}};
    source.content["crop_size"] = vision.value("image_size", 336);
    source.content["patch_size"] = vision.value("patch_size", 14);
  }
  if (clip.empty()) {
    source.content["size"] = {{"shortest_edge", 336}};
    source.content["crop_size"] = 336;
    source.content["patch_size"] = 14;
  }
  source.content["image_processor_type"] = "LlavaImageProcessor";
  source.content["do_pad"] = model.value("image_aspect_ratio", "pad") == "pad";
  source.content["processor_class"] = "LlavaProcessor";
  return source;
}

// The defaults of a kind of processor: by its name, else by the model's family.
ProcessorOptions defaults_of(std::string type, const Json& model, const std::string& file) {
  if (type.ends_with("Fast")) type.resize(type.size() - 4);
  const std::string family = model.value("model_type", "");
  if (type.empty()) {
    type = family.starts_with("llava")    ? "CLIPImageProcessor"
           : family.starts_with("gemma3") ? "Gemma3ImageProcessor"
                                          : "Qwen2VLImageProcessor";
  }
  ProcessorOptions options;
  options.pad_to_square = false;  // what a file without the key means
  options.relative_boxes = family == "qwen2_vl" || family == "qwen3_vl" || family == "gemma3";
  if (type == "Qwen2VLImageProcessor") {
    if (family == "qwen2_vl") options.processor_class = "Qwen2VLProcessor";
    if (family == "qwen3_vl") options.processor_class = "Qwen3VLProcessor";
    return options;
  }
  options.merge_size = 1;
  options.temporal_patch_size = 1;
  options.patch_size = 0;  // has no default
  if (type == "CLIPImageProcessor" || type == "LlavaImageProcessor") {
    options.kind = Kind::clip;
    options.size = options.crop = {224, 224};
    options.processor_class = "LlavaProcessor";
    return options;
  }
  if (type == "Gemma3ImageProcessor" || type == "SiglipImageProcessor") {
    options.kind = Kind::fixed;
    options.size = {224, 224};
    options.image_mean = options.image_std = {0.5, 0.5, 0.5};
    options.processor_class = "LlavaProcessor";
    if (type == "Gemma3ImageProcessor") {
      options.filter = image::ResizeFilter::bilinear;
      options.processor_class = "Gemma3Processor";
    }
    return options;
  }
  throw_failure(
      "{}: image_processor_type is {}; supported are Qwen2VLImageProcessor, CLIPImageProcessor, LlavaImageProcessor, "
      "Gemma3ImageProcessor, SiglipImageProcessor",
      file, type);
}

}  // namespace

ImageProcessor::ImageProcessor(ProcessorOptions options) : options_(std::move(options)) { check(options_); }

ImageProcessor ImageProcessor::load(const std::filesystem::path& folder) {
  const Json model =
      std::filesystem::exists(folder / "config.json") ? read_object(folder / "config.json") : Json::object();
  const Source source = find_source(folder, model);
  const std::string file = source.file.string();
  const FileReader reader(source.content, file);
  for (const char* key : {"do_resize", "do_rescale", "do_normalize"}) {
    bool on = true;
    reader.read(key, on);
    if (!on) throw_failure("{}: {} is off; only the full processing is supported", file, key);
  }
  bool pan_and_scan = false;
  reader.read("do_pan_and_scan", pan_and_scan);
  if (pan_and_scan) throw_failure("{}: do_pan_and_scan is on, which is not supported", file);
  std::string type;
  reader.read("feature_extractor_type", type);
  reader.read("image_processor_type", type);
  ProcessorOptions options = defaults_of(type, model, file);
  if (reader.has("resample")) {
    const Json& filter = source.content.at("resample");
    if (filter != kBilinear && filter != kBicubic) {
      throw_failure("{}: resample is {}; supported are 2 (bilinear) and 3 (bicubic)", file, filter.dump());
    }
    options.filter = filter == kBilinear ? image::ResizeFilter::bilinear : image::ResizeFilter::bicubic;
  }
  if (options.kind == Kind::qwen) {
    if (reader.has("size") && source.content.at("size").is_object()) {
      const FileReader size(source.content.at("size"), file + ": size");
      size.read("shortest_edge", options.min_pixels);
      size.read("longest_edge", options.max_pixels);
      size.read("min_pixels", options.min_pixels);
      size.read("max_pixels", options.max_pixels);
    }
    reader.read("min_pixels", options.min_pixels);
    reader.read("max_pixels", options.max_pixels);
    reader.read("merge_size", options.merge_size);
    reader.read("temporal_patch_size", options.temporal_patch_size);
  } else {
    if (model.contains("vision_config") && model.at("vision_config").is_object())
      FileReader(model.at("vision_config"), (folder / "config.json").string()).read("patch_size", options.patch_size);
    reader.read("size", options.size);
    if (options.kind == Kind::clip) {
      reader.read("crop_size", options.crop);
      bool do_crop = true;
      reader.read("do_center_crop", do_crop);
      if (!do_crop) throw_failure("{}: do_center_crop is off; a tower needs one square size", file);
      reader.read("do_pad", options.pad_to_square);
    }
  }
  reader.read("patch_size", options.patch_size);
  if (options.patch_size == 0) {
    throw_failure("{}: the patch size is neither there nor in config.json's vision_config", file);
  }
  reader.read("image_mean", options.image_mean);
  reader.read("image_std", options.image_std);
  reader.read("pad_to_square", options.pad_to_square);
  reader.read("relative_boxes", options.relative_boxes);
  reader.read("processor_class", options.processor_class);
  try {
    return ImageProcessor(std::move(options));
  } catch (const std::invalid_argument& error) {
    throw_failure("{}: {}", file, error.what());
  }
}

void ImageProcessor::save(const std::filesystem::path& folder) const {
  write_file_atomically(folder / kFileName, to_json().dump(2) + "\n");
}

Json ImageProcessor::to_json() const {
  Json json = {{"image_processor_type", "Qwen2VLImageProcessor"},
               {"processor_class", options_.processor_class},
               {"do_convert_rgb", true},
               {"do_resize", true},
               {"do_rescale", true},
               {"do_normalize", true},
               {"resample", options_.filter == image::ResizeFilter::bilinear ? kBilinear : kBicubic},
               {"rescale_factor", 1.0 / 255},
               {"patch_size", options_.patch_size},
               {"image_mean", options_.image_mean},
               {"image_std", options_.image_std},
               {"relative_boxes", options_.relative_boxes}};
  // transformers' LLaVA processor has a function of that name: do_pad says it there.
  if (options_.kind != Kind::clip) json["pad_to_square"] = options_.pad_to_square;
  switch (options_.kind) {
    case Kind::qwen:
      json["size"] = {{"shortest_edge", options_.min_pixels}, {"longest_edge", options_.max_pixels}};
      json["min_pixels"] = options_.min_pixels;
      json["max_pixels"] = options_.max_pixels;
      json["merge_size"] = options_.merge_size;
      json["temporal_patch_size"] = options_.temporal_patch_size;
      break;
    case Kind::clip:
      json["image_processor_type"] = "LlavaImageProcessor";
      json["size"] = {{"shortest_edge", options_.size.width}};
      json["crop_size"] = {{"height", options_.crop.height}, {"width", options_.crop.width}};
      json["do_center_crop"] = true;
      json["do_pad"] = options_.pad_to_square;
      break;
    case Kind::fixed:
      json["image_processor_type"] =
          options_.filter == image::ResizeFilter::bilinear ? "Gemma3ImageProcessor" : "SiglipImageProcessor";
      json["size"] = {{"height", options_.size.height}, {"width", options_.size.width}};
      break;
  }
  return json;
}

grounding::ImageSize ImageProcessor::resized(grounding::ImageSize original) const {
  return options_.kind == Kind::clip ? options_.crop : rule().target(original);
}

ImageGrid ImageProcessor::grid(grounding::ImageSize original) const {
  const grounding::ImageSize size = resized(original);
  return {1, size.height / options_.patch_size, size.width / options_.patch_size};
}

grounding::BoxFrame ImageProcessor::frame(grounding::ImageSize original) const {
  constexpr std::int64_t kParts = 1000;
  const grounding::ImageSize size = resized(original);
  if (options_.pad_to_square) return grounding::BoxFrame::letterbox(options_.relative_boxes ? kParts : size.width);
  if (options_.relative_boxes) return grounding::BoxFrame::thousand();
  return options_.kind == Kind::clip ? grounding::BoxFrame::crop(size.width)
                                     : grounding::BoxFrame::stretch(size.width, size.height);
}

image::ResizeRule ImageProcessor::rule() const {
  image::ResizeRule rule;
  rule.pad_to_square = options_.pad_to_square;
  rule.filter = options_.filter;
  rule.target = [options = options_](grounding::ImageSize original) {
    if (options.pad_to_square && original.width > 0 && original.height > 0)
      original.width = original.height = std::max(original.width, original.height);
    if (options.kind == Kind::clip) return image::resize_shortest_edge(original, options.size.width);
    if (options.kind == Kind::fixed) return options.size;
    return image::smart_resize(original,
                               {options.patch_size * options.merge_size, options.min_pixels, options.max_pixels});
  };
  if (options_.kind == Kind::clip) {
    rule.crop = options_.crop;
    for (std::size_t c = 0; c < 3; ++c)
      rule.colour[c] = static_cast<std::uint8_t>(std::clamp(options_.image_mean[c] * 255, 0.0, 255.0));
  }
  return rule;
}

ProcessedPicture ImageProcessor::process(const image::Picture& picture) const {
  image::Raster raster = image::to_raster(picture);
  const grounding::ImageSize original = raster.size();
  const image::ResizeRule how = rule();
  return process_prepared({image::apply_rule(std::move(raster), how, how.target(original)), original});
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
  const ImageGrid grid = this->grid(picture.original);
  // Towers leave out a margin that makes no patch.
  const image::Crop seen{0, 0, grid.w * options_.patch_size, grid.h * options_.patch_size};
  const bool whole = seen.width == size.width && seen.height == size.height;
  image::PatchValues patches = image::cut_patches(whole ? picture.pixels : image::cut_out(picture.pixels, seen), cut);
  at::Tensor values = at::from_blob(
      patches.values.release(), {patches.rows, patches.columns},
      [](void* block) { std::unique_ptr<float[]>(static_cast<float*>(block)).reset(); }, at::TensorOptions(at::kFloat));
  return {{std::move(values), {grid}}, frame(picture.original)};
}

}  // namespace thinkvg::models
