#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "image/cpu/resize_kernel.h"
#include "thinkvg/image/resize.h"

namespace thinkvg::image {

// resize() for rows that come from top to bottom, some at a time, so that the large picture is never held: a decoder's
// rows are still in the cache when they are made smaller. Equal to resize() to the bit. One thread may use an object.
class RowResizer {
 public:
  // Throws std::invalid_argument unless all sides are positive.
  RowResizer(grounding::ImageSize from, std::int64_t channels, grounding::ImageSize to, ResizeFilter filter);

  // The next rows of a channel; from.height of each channel in all.
  void push(std::int64_t channel, const cpu::Rows& rows);
  // The picture, once all rows were pushed.
  Raster finish() { return std::move(resized_); }

 private:
  struct Channel {
    std::vector<std::uint8_t> window;  // rows of the new width, of the old height
    std::int64_t first = 0, count = 0;
    std::int64_t next = 0;  // row of the result
  };
  void narrow(const cpu::Rows& rows, std::uint8_t* out);
  std::uint8_t* room_for(Channel& channel, std::int64_t count);

  Raster resized_;
  std::int64_t from_width_;
  std::optional<cpu::WidthResizer> across_;
  std::optional<cpu::AxisWeights> down_;
  std::int64_t window_rows_ = 0;
  std::vector<Channel> channels_;
};

}  // namespace thinkvg::image
