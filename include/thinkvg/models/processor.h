#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

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

// The picture processors of transformers 5 with its default back end, torchvision, to the bit, for every family. Its
// other back end, Pillow, which the released code of LLaVA and LLaVA-Med and CLIPImageProcessor of transformers 4 use,
// resizes with other rounding: bilinear values (Gemma 3) differ by at most 1 of 255, bicubic ones (all others) mostly
// by as much, at hard edges and noise by up to 15 (tests/parity/write_square_processors.py prints it). In all of them:
// (x / 255 - mean) / std, patches flattened as channel, frame, row, column.
//   qwen   Qwen2VLImageProcessor: sides rounded to multiples of patch_size * merge_size (half to even, as Python
//   rounds)
//          between min_pixels and max_pixels; patches in the order (h / merge, w / merge, merge, merge)
//   clip   CLIPImageProcessor, LlavaImageProcessor: the shorter side to `size`, then the middle of `crop`; patches in
//          rows
//   fixed  Gemma3ImageProcessor without pan and scan, SiglipImageProcessor: both sides to `size`; patches in rows
struct ProcessorOptions {
  enum class Kind { qwen, clip, fixed };
  Kind kind = Kind::qwen;
  std::int64_t patch_size = 14;
  std::int64_t merge_size = 2;           // of qwen; others have no merging
  std::int64_t temporal_patch_size = 2;  // of qwen; others have one frame
  std::int64_t min_pixels = 3136;        // of qwen, as max_pixels
  std::int64_t max_pixels = 1003520;     // 1,280 image tokens; released configs say 12,845,056
  grounding::ImageSize size = {};        // of clip (its shorter side is width) and fixed
  grounding::ImageSize crop = {};        // of clip; 0 x 0: none
  image::ResizeFilter filter = image::ResizeFilter::bicubic;
  std::vector<double> image_mean = {0.48145466, 0.4578275, 0.40821073};
  std::vector<double> image_std = {0.26862954, 0.26130258, 0.27577711};
  // Letterbox before resizing, as GEMeX's frame does: with black, clip with the mean colour (LlavaImageProcessor's
  // do_pad).
  bool pad_to_square = true;
  // Boxes in the model's text count to 1000 (Qwen2-VL, Qwen3-VL, MedGemma) instead of in pixels that the model sees.
  bool relative_boxes = false;
  std::string processor_class = "Qwen2_5_VLProcessor";  // of transformers
};

class ImageProcessor {
 public:
  explicit ImageProcessor(ProcessorOptions options);
  // Reads preprocessor_config.json of a model folder, or the part image_processor of processor_config.json (keys as
  // transformers writes them, `pad_to_square` and `relative_boxes`). What these do not say comes from config.json: the
  // patch size of CLIP's and SigLIP's towers, the boxes' convention of the family. Folders of LLaVA's own code have
  // neither file: theirs comes from the CLIP folder that config.json names, and image_aspect_ratio.
  static ImageProcessor load(const std::filesystem::path& folder);
  void save(const std::filesystem::path& folder) const;
  // preprocessor_config.json's content.
  Json to_json() const;

  const ProcessorOptions& options() const { return options_; }
  // Size that the model sees of a picture of this size (after padding, where that is on).
  grounding::ImageSize resized(grounding::ImageSize original) const;
  ImageGrid grid(grounding::ImageSize original) const;
  // Of the boxes in the model's text.
  grounding::BoxFrame frame(grounding::ImageSize original) const;
  // Thread-safe. process_prepared() takes a picture that image::prepare_picture() brought to its size by rule() and
  // only cuts it.
  ProcessedPicture process(const image::Picture& picture) const;
  ProcessedPicture process_prepared(const image::PreparedPicture& picture) const;
  image::ResizeRule rule() const;

 private:
  ProcessorOptions options_;
};

}  // namespace thinkvg::models
