#pragma once

#include <cstdint>
#include <vector>

#include "thinkvg/grounding/box.h"

// Which part of a picture, at which size, the processors of transformers hand to their models; for pixel values see the
// processors themselves. Qwen-VL's rule is ImageProcessor::resized().

namespace thinkvg::image {

// A part of a picture, in its pixels.
struct Crop {
  std::int64_t left = 0, top = 0, width = 0, height = 0;
  bool operator==(const Crop&) const = default;
};

// CLIP's and LLaVA's resizing (get_resize_output_image_size): the shorter side becomes `side`, the longer one keeps the
// shape, rounded down. Throws std::invalid_argument unless all are positive.
grounding::ImageSize resize_shortest_edge(grounding::ImageSize original, std::int64_t side);

// What a centred crop of `size` keeps; odd margins are smaller at the left and the top. Throws std::invalid_argument
// where `crop` is larger than `size` (transformers pads then).
Crop center_crop(grounding::ImageSize size, grounding::ImageSize crop);

// Gemma 3's pan and scan: parts of a long picture that the model sees beside the whole one.
struct PanAndScanOptions {
  std::int64_t min_crop_size = 256;
  std::int64_t max_num_crops = 4;
  double min_ratio = 1.2;  // longer over shorter side from which it is done
};
// In reading order; empty where the picture is not long enough or its parts would be too small. The last part is
// smaller where the side does not divide. Throws std::invalid_argument for sizes or options that are not positive.
std::vector<Crop> pan_and_scan(grounding::ImageSize original, const PanAndScanOptions& options);

}  // namespace thinkvg::image
