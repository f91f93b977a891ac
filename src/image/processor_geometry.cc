#include "thinkvg/image/processor_geometry.h"

#include <algorithm>
#include <cmath>

#include "thinkvg/core/error.h"

namespace thinkvg::image {
namespace {

void check(const char* what, grounding::ImageSize size) {
  if (size.width <= 0 || size.height <= 0)
    throw_invalid("{}: the size {} x {} is not positive", what, size.width, size.height);
}

}  // namespace

grounding::ImageSize resize_shortest_edge(grounding::ImageSize original, std::int64_t side) {
  check("resize_shortest_edge", original);
  if (side <= 0) throw_invalid("resize_shortest_edge: the side {} is not positive", side);
  const auto [shorter, longer] = std::minmax(original.width, original.height);
  const auto scaled = static_cast<std::int64_t>(static_cast<double>(side * longer) / static_cast<double>(shorter));
  return original.width <= original.height ? grounding::ImageSize{side, scaled} : grounding::ImageSize{scaled, side};
}

Crop center_crop(grounding::ImageSize size, grounding::ImageSize crop) {
  check("center_crop", size);
  check("center_crop", crop);
  if (crop.width > size.width || crop.height > size.height)
    throw_invalid("center_crop: cannot crop {} x {} out of {} x {}", crop.width, crop.height, size.width, size.height);
  return {(size.width - crop.width) / 2, (size.height - crop.height) / 2, crop.width, crop.height};
}

std::vector<Crop> pan_and_scan(grounding::ImageSize original, const PanAndScanOptions& options) {
  check("pan_and_scan", original);
  if (options.min_crop_size <= 0 || options.max_num_crops <= 0 || !(options.min_ratio > 0))
    throw_invalid("pan_and_scan: min_crop_size {}, max_num_crops {} and min_ratio {} must be positive",
                  options.min_crop_size, options.max_num_crops, options.min_ratio);
  const bool wide = original.width >= original.height;
  const std::int64_t longer = wide ? original.width : original.height;
  const std::int64_t shorter = wide ? original.height : original.width;
  const double ratio = static_cast<double>(longer) / static_cast<double>(shorter);
  if (ratio < options.min_ratio) return {};
  auto count = static_cast<std::int64_t>(std::floor(ratio + 0.5));
  count = std::min(longer / options.min_crop_size, count);
  count = std::min(options.max_num_crops, std::max<std::int64_t>(2, count));
  const std::int64_t part = (longer + count - 1) / count;
  if (std::min(part, shorter) < options.min_crop_size) return {};
  std::vector<Crop> crops;
  for (std::int64_t begin = 0; begin < std::min(part * count, longer); begin += part) {
    const std::int64_t length = std::min(part, longer - begin);
    crops.push_back(wide ? Crop{begin, 0, length, shorter} : Crop{0, begin, shorter, length});
  }
  return crops;
}

}  // namespace thinkvg::image
