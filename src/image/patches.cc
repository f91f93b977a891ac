#include "thinkvg/image/patches.h"

#include <cstring>
#include <vector>

#include "image/cpu/patch_kernel.h"
#include "thinkvg/core/error.h"

namespace thinkvg::image {

PatchValues cut_patches(const Raster& picture, const PatchOptions& options) {
  const std::int64_t patch = options.patch_size, merge = options.merge_size, frames = options.temporal_patch_size;
  const std::int64_t cell = patch * merge;
  if (cell < 1 || frames < 1 || picture.width < 1 || picture.height < 1 || picture.width % cell != 0 ||
      picture.height % cell != 0 || (picture.channels != 1 && picture.channels != 3)) {
    throw_invalid("cannot cut {} x {} pixels of {} channels into patches: sides must be multiples of {}", picture.width,
                  picture.height, picture.channels, cell);
  }
  const std::int64_t area = patch * patch;
  PatchValues result;
  result.rows = picture.width / patch * (picture.height / patch);
  result.columns = 3 * frames * area;
  result.values = std::make_unique_for_overwrite<float[]>(static_cast<std::size_t>(result.rows * result.columns));
  float* out = result.values.get();
  std::vector<std::uint8_t> pixels(static_cast<std::size_t>(area));  // of one patch and channel
  for (std::int64_t top = 0; top < picture.height; top += cell) {
    for (std::int64_t left = 0; left < picture.width; left += cell) {
      for (std::int64_t y = top; y < top + cell; y += patch) {
        for (std::int64_t x = left; x < left + cell; x += patch) {
          for (std::int64_t c = 0; c < 3; ++c) {
            if (c < picture.channels) {
              const std::uint8_t* from = picture.plane(c) + y * picture.width + x;
              for (std::int64_t row = 0; row < patch; ++row, from += picture.width)
                std::memcpy(pixels.data() + row * patch, from, static_cast<std::size_t>(patch));
            }
            const auto n = static_cast<std::size_t>(c);
            cpu::normalize(pixels.data(), area, {options.mean[n], options.deviation[n]}, out);
            const float* first = out;
            out += area;
            for (std::int64_t frame = 1; frame < frames; ++frame, out += area)
              std::memcpy(out, first, static_cast<std::size_t>(area) * sizeof(float));
          }
        }
      }
    }
  }
  return result;
}

}  // namespace thinkvg::image
