#pragma once

#include "thinkvg/image/raster.h"

namespace thinkvg::image {

// Bicubic resize with antialias on 8-bit values, equal to the bit to torchvision's (at::_upsample_bicubic2d_aa on
// uint8), which the processors of transformers call: weights in double (a = -0.5), each axis' weights scaled to the
// largest power of 2 that keeps them in 16 bits, width first, rounded to 8 bits between the axes. Pillow's BICUBIC
// keeps more bits of the weights and differs by at most 1. Throws std::invalid_argument unless both sizes are positive.
// Thread-safe.
Raster resize_bicubic(const Raster& picture, grounding::ImageSize size);

// Pads to a centred square with black, as a letterbox frame describes. The left and upper margins are the smaller ones
// where the padding is odd.
Raster pad_to_square(Raster picture);

}  // namespace thinkvg::image
