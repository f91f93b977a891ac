#pragma once

#include <array>
#include <cstdint>

#include "thinkvg/image/processor_geometry.h"
#include "thinkvg/image/raster.h"

namespace thinkvg::image {

enum class ResizeFilter { bilinear, bicubic };

// Resize with antialias on 8-bit values, equal to the bit to torchvision's (at::_upsample_bicubic2d_aa and
// at::_upsample_bilinear2d_aa on uint8), which the processors of transformers call: weights in double (bicubic: a =
// -0.5), each axis' weights scaled to the largest power of 2 that keeps them in 16 bits, width first, rounded to 8 bits
// between the axes. Pillow's filters keep more bits of the weights and differ by at most 1. Throws
// std::invalid_argument unless both sizes are positive. Thread-safe.
Raster resize(const Raster& picture, grounding::ImageSize size, ResizeFilter filter);
inline Raster resize_bicubic(const Raster& picture, grounding::ImageSize size) {
  return resize(picture, size, ResizeFilter::bicubic);
}

// The part of a picture. Throws std::invalid_argument where it reaches outside.
Raster cut_out(const Raster& picture, const Crop& crop);

// The size that Qwen-VL's processors resize to (smart_resize of transformers).
struct SmartResizeOptions {
  std::int64_t factor = 28;  // sides become multiples of it: patch size times merge size
  std::int64_t min_pixels = 3136;
  std::int64_t max_pixels = 1003520;
};
// Sides rounded to multiples of `factor` (half to even, as Python rounds), then made smaller or larger together until
// the area lies between the limits. Throws std::invalid_argument unless the sides are positive and at most 200 to 1.
grounding::ImageSize smart_resize(grounding::ImageSize original, const SmartResizeOptions& options);

// Pads to a centred square with a colour, as a letterbox frame describes. The left and upper margins are the smaller
// ones where the padding is odd. A grey picture stays grey where the colour is.
Raster pad_to_square(Raster picture, const std::array<std::uint8_t, 3>& colour = {});

}  // namespace thinkvg::image
