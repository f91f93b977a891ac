#pragma once

#include <array>
#include <cstdint>
#include <memory>

#include "thinkvg/image/raster.h"

namespace thinkvg::image {

// How a resized picture is cut for a vision tower of the Qwen-VL kind.
struct PatchOptions {
  std::int64_t patch_size = 14;
  std::int64_t merge_size = 2;           // cells of merge_size x merge_size patches lie together
  std::int64_t temporal_patch_size = 2;  // a still picture is repeated
  std::array<float, 3> mean{};           // of values 0..255, a channel
  std::array<float, 3> deviation{};
};

// P patches of C * frames * patch * patch values, as one block.
struct PatchValues {
  std::int64_t rows = 0;     // P
  std::int64_t columns = 0;  // values a patch
  std::unique_ptr<float[]> values;
};

// (v - mean) / deviation, patches in the order (h / merge, w / merge, merge, merge), each as channel, frame, row,
// column; a grey picture stands for three equal channels. Equal to the bit to the same steps on float tensors. Throws
// std::invalid_argument unless both sides are multiples of patch_size * merge_size. Thread-safe.
PatchValues cut_patches(const Raster& picture, const PatchOptions& options);

}  // namespace thinkvg::image
