#pragma once

#include <cstdint>
#include <filesystem>

#include "thinkvg/core/json.h"
#include "thinkvg/grounding/geometry.h"
#include "thinkvg/image/picture.h"
#include "thinkvg/image/picture_store.h"
#include "thinkvg/models/vision_language_model.h"

namespace thinkvg::models {

// What a picture becomes on its way into a model.
struct ProcessedPicture {
  PixelPatches patches;       // one picture
  grounding::BoxFrame frame;  // frame of the boxes in the model's text: the model's native convention
};

// Qwen2-VL's processor (Qwen2VLImageProcessor of transformers, torchvision back end): sides rounded to multiples of
// patch_size * merge_size (half to even, as Python rounds) between min_pixels and max_pixels; bicubic resize with
// antialias on 8-bit values; (x / 255 - mean) / std; patches in the order (h / merge, w / merge, merge, merge), each
// flattened as channel, frame, row, column.
struct ProcessorOptions {
  std::int64_t patch_size = 14;
  std::int64_t merge_size = 2;
  std::int64_t temporal_patch_size = 2;
  std::int64_t min_pixels = 3136;
  std::int64_t max_pixels = 1003520;  // 1,280 image tokens; released configs say 12,845,056
  std::vector<double> image_mean = {0.48145466, 0.4578275, 0.40821073};
  std::vector<double> image_std = {0.26862954, 0.26130258, 0.27577711};
  bool pad_to_square = true;  // letterbox before resizing, as GEMeX's frame does
};

class ImageProcessor {
 public:
  explicit ImageProcessor(ProcessorOptions options);
  // Reads preprocessor_config.json of a model folder (keys as transformers writes them, and `pad_to_square`).
  static ImageProcessor load(const std::filesystem::path& folder);
  void save(const std::filesystem::path& folder) const;
  // preprocessor_config.json's content.
  Json to_json() const;

  const ProcessorOptions& options() const { return options_; }
  // Size after resizing for a picture of this size (after padding, where that is on).
  grounding::ImageSize resized(grounding::ImageSize original) const;
  // Thread-safe. process_prepared() takes a picture that image::prepare_picture() brought to its size by rule() and
  // only cuts it.
  ProcessedPicture process(const image::Picture& picture) const;
  ProcessedPicture process_prepared(const image::PreparedPicture& picture) const;
  image::ResizeRule rule() const;

 private:
  ProcessorOptions options_;
};

}  // namespace thinkvg::models
