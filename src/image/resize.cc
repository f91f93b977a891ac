#include "thinkvg/image/resize.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "image/cpu/resize_kernel.h"
#include "image/row_resizer.h"
#include "thinkvg/core/error.h"

namespace thinkvg::image {
namespace {

// Rows that are made narrower together: few enough to stay in the cache, and sixteen at once twice.
constexpr std::int64_t kStrip = 32;

// Keys' cubic convolution with a = -0.5.
double cubic(double x) {
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1.0) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2.0) return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a;
  return 0.0;
}

double triangle(double x) { return std::max(0.0, 1.0 - std::abs(x)); }

cpu::AxisWeights axis_weights(std::int64_t input, std::int64_t output, ResizeFilter filter) {
  const double scale = static_cast<double>(input) / static_cast<double>(output);
  const double stretch = std::max(scale, 1.0);  // the filter widens where the picture shrinks
  const double support = (filter == ResizeFilter::bicubic ? 2.0 : 1.0) * stretch;
  const double inverse = scale >= 1.0 ? 1.0 / scale : 1.0;
  const std::int64_t most = static_cast<std::int64_t>(std::ceil(support)) * 2 + 1;

  cpu::AxisWeights axis;
  axis.stride = (most + 15) / 16 * 16;
  std::vector<double> weights(static_cast<std::size_t>(axis.stride * output), 0.0);
  double largest = 0;
  for (std::int64_t i = 0; i < output; ++i) {
    const double center = scale * (static_cast<double>(i) + 0.5);
    const std::int64_t first = std::max<std::int64_t>(static_cast<std::int64_t>(center - support + 0.5), 0);
    const std::int64_t last = std::min(static_cast<std::int64_t>(center + support + 0.5), input);
    const std::int64_t taps = std::clamp<std::int64_t>(last - first, 0, most);
    double* to = weights.data() + i * axis.stride;
    double total = 0;
    for (std::int64_t t = 0; t < taps; ++t) {
      const double x = (static_cast<double>(t + first) - center + 0.5) * inverse;
      to[t] = filter == ResizeFilter::bicubic ? cubic(x) : triangle(x);
      total += to[t];
    }
    for (std::int64_t t = 0; t < taps; ++t) {
      if (total != 0) to[t] /= total;
      largest = std::max(largest, to[t]);
    }
    axis.first.push_back(first);
    axis.taps.push_back(taps);
  }
  while (axis.precision < 22 && static_cast<int>(0.5 + largest * (1 << (axis.precision + 1))) < (1 << 15))
    ++axis.precision;
  const double unit = 1 << axis.precision;
  axis.weights.reserve(weights.size());
  for (const double weight : weights)
    axis.weights.push_back(static_cast<std::int16_t>(weight < 0 ? weight * unit - 0.5 : weight * unit + 0.5));
  return axis;
}

}  // namespace

RowResizer::RowResizer(grounding::ImageSize from, std::int64_t channels, grounding::ImageSize to, ResizeFilter filter)
    : from_width_(from.width), channels_(static_cast<std::size_t>(channels)) {
  if (from.width < 1 || from.height < 1 || to.width < 1 || to.height < 1) {
    throw_invalid("cannot resize {} x {} pixels to {} x {}; all sides must be positive", from.width, from.height,
                  to.width, to.height);
  }
  resized_ = {to.width, to.height, channels, {}};
  resized_.pixels.resize(static_cast<std::size_t>(to.width * to.height * channels));
  if (to.width != from.width) across_.emplace(axis_weights(from.width, to.width, filter), from.width);
  if (to.height == from.height) return;
  down_ = axis_weights(from.height, to.height, filter);
  window_rows_ = down_->stride + kStrip;
  for (Channel& channel : channels_) channel.window.resize(static_cast<std::size_t>(window_rows_ * to.width));
}

void RowResizer::narrow(const cpu::Rows& rows, std::uint8_t* out) {
  if (across_) return across_->run(rows, out);
  for (std::int64_t y = 0; y < rows.count; ++y)
    std::memcpy(out + y * from_width_, rows.values + y * rows.stride, static_cast<std::size_t>(from_width_));
}

// Where the next rows go. Rows that no output needs any more make room: those that one output needs are at most
// down_->stride, so that a strip always fits.
std::uint8_t* RowResizer::room_for(Channel& channel, std::int64_t count) {
  const std::int64_t width = resized_.width;
  if (channel.count + count > window_rows_) {
    const std::int64_t end = channel.first + channel.count;
    const std::int64_t needed =
        channel.next < resized_.height ? std::min(down_->first[static_cast<std::size_t>(channel.next)], end) : end;
    const std::int64_t unneeded = needed - channel.first;
    channel.first += unneeded;
    channel.count -= unneeded;
    std::memmove(channel.window.data(), channel.window.data() + unneeded * width,
                 static_cast<std::size_t>(channel.count * width));
  }
  return channel.window.data() + channel.count * width;
}

void RowResizer::push(std::int64_t index, const cpu::Rows& rows) {
  Channel& channel = channels_[static_cast<std::size_t>(index)];
  const std::int64_t width = resized_.width;
  for (std::int64_t at = 0; at < rows.count; at += kStrip) {
    const cpu::Rows strip{rows.values + at * rows.stride, rows.stride, std::min(kStrip, rows.count - at)};
    if (!down_) {
      narrow(strip, resized_.plane(index) + channel.next * width);
      channel.next += strip.count;
      continue;
    }
    narrow(strip, room_for(channel, strip.count));
    channel.count += strip.count;
    for (; channel.next < resized_.height; ++channel.next) {
      const auto n = static_cast<std::size_t>(channel.next);
      if (down_->first[n] + down_->taps[n] > channel.first + channel.count) break;
      const std::uint8_t* from = channel.window.data() + (down_->first[n] - channel.first) * width;
      cpu::resize_height({from, width, channel.next}, *down_, resized_.plane(index) + channel.next * width);
    }
  }
}

Raster resize(const Raster& picture, grounding::ImageSize size, ResizeFilter filter) {
  if (size == picture.size() && size.width > 0 && size.height > 0) return picture;
  RowResizer resizer(picture.size(), picture.channels, size, filter);
  for (std::int64_t c = 0; c < picture.channels; ++c)
    resizer.push(c, {picture.plane(c), picture.width, picture.height});
  return resizer.finish();
}

grounding::ImageSize smart_resize(grounding::ImageSize original, const SmartResizeOptions& options) {
  constexpr double kLargestAspect = 200;
  if (original.width <= 0 || original.height <= 0) {
    throw_invalid("picture processor: a picture of {} x {} pixels, expected positive sides", original.width,
                  original.height);
  }
  const auto width = static_cast<double>(original.width);
  const auto height = static_cast<double>(original.height);
  if (std::max(width, height) / std::min(width, height) > kLargestAspect) {
    throw_invalid("picture processor: a picture of {} x {} pixels; one side may be at most {} times the other",
                  original.width, original.height, kLargestAspect);
  }
  const std::int64_t side = options.factor;
  const auto factor = static_cast<double>(side);
  // nearbyint rounds half to even, as Python does.
  auto new_height = static_cast<std::int64_t>(std::nearbyint(height / factor)) * side;
  auto new_width = static_cast<std::int64_t>(std::nearbyint(width / factor)) * side;
  if (new_height * new_width > options.max_pixels) {
    const double beta = std::sqrt(height * width / static_cast<double>(options.max_pixels));
    new_height = std::max(side, static_cast<std::int64_t>(std::floor(height / beta / factor)) * side);
    new_width = std::max(side, static_cast<std::int64_t>(std::floor(width / beta / factor)) * side);
  } else if (new_height * new_width < options.min_pixels) {
    const double beta = std::sqrt(static_cast<double>(options.min_pixels) / (height * width));
    new_height = static_cast<std::int64_t>(std::ceil(height * beta / factor)) * side;
    new_width = static_cast<std::int64_t>(std::ceil(width * beta / factor)) * side;
  }
  return {new_width, new_height};
}

Raster cut_out(const Raster& picture, const Crop& crop) {
  if (crop.left < 0 || crop.top < 0 || crop.width < 1 || crop.height < 1 || crop.left + crop.width > picture.width ||
      crop.top + crop.height > picture.height) {
    throw_invalid("cannot cut {} x {} pixels at {}, {} out of {} x {}", crop.width, crop.height, crop.left, crop.top,
                  picture.width, picture.height);
  }
  Raster part{crop.width, crop.height, picture.channels, {}};
  part.pixels.resize(static_cast<std::size_t>(crop.width * crop.height * picture.channels));
  for (std::int64_t c = 0; c < picture.channels; ++c)
    for (std::int64_t y = 0; y < crop.height; ++y)
      std::memcpy(part.plane(c) + y * crop.width, picture.plane(c) + (y + crop.top) * picture.width + crop.left,
                  static_cast<std::size_t>(crop.width));
  return part;
}

Raster pad_to_square(Raster picture, const std::array<std::uint8_t, 3>& colour) {
  if (picture.width == picture.height) return picture;
  const std::int64_t side = std::max(picture.width, picture.height);
  const bool grey = picture.channels == 1 && colour[0] == colour[1] && colour[0] == colour[2];
  Raster square{side, side, grey ? 1 : 3, {}};
  square.pixels.resize(static_cast<std::size_t>(side * side * square.channels));
  const std::int64_t left = (side - picture.width) / 2, top = (side - picture.height) / 2;
  for (std::int64_t c = 0; c < square.channels; ++c) {
    std::memset(square.plane(c), colour[static_cast<std::size_t>(c)], static_cast<std::size_t>(side * side));
    for (std::int64_t y = 0; y < picture.height; ++y)
      std::memcpy(square.plane(c) + (y + top) * side + left,
                  picture.plane(picture.channels == 1 ? 0 : c) + y * picture.width,
                  static_cast<std::size_t>(picture.width));
  }
  return square;
}

}  // namespace thinkvg::image
