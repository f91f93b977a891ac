#include "thinkvg/grounding/geometry.h"

#include <algorithm>
#include <cmath>

#include "thinkvg/core/error.h"

namespace thinkvg::grounding {
namespace {

// Finest step of a number in text: pixels and grid cells are whole, the unit frame needs decimals.
double text_step(const BoxFrame& frame) { return frame == BoxFrame::unit() ? 1e-4 : 1.0; }

struct Interval {
  double low, high;
};

// An interval that only rounding would make empty keeps one step, on the side of its centre.
Interval round_interval(Interval in, double extent, double step) {
  const double limit = std::floor(extent / step);
  const auto to_steps = [&](double value) { return std::clamp(std::round(value / step), 0.0, limit); };
  Interval out{to_steps(in.low), to_steps(in.high)};
  const bool reaches_inside = in.low < in.high && in.high > 0 && in.low < extent;
  if (reaches_inside && out.low >= out.high) {
    out.low = std::clamp(std::floor((in.low + in.high) / 2 / step), 0.0, std::max(0.0, limit - 1));
    out.high = out.low + 1;
  }
  // Division by the steps of a whole keeps 0.1234 the double nearest to 0.1234.
  const double steps_per_one = std::round(1 / step);
  return {out.low / steps_per_one, out.high / steps_per_one};
}

}  // namespace

bool conversion_needs_picture(const BoxFrame& from, const BoxFrame& to) {
  if (from == to) return false;
  using Kind = BoxFrame::Kind;
  if (from.kind() == Kind::letterbox || to.kind() == Kind::letterbox) return from.kind() != to.kind();
  return from.kind() == Kind::original || to.kind() == Kind::original;
}

ImageGeometry::ImageGeometry(ImageSize original) : original_(original) {
  if (original.width < 1 || original.height < 1) {
    throw_invalid("a picture must have a positive size, but it is {} x {} pixels", original.width, original.height);
  }
}

Box ImageGeometry::convert(const Box& box, const BoxFrame& to) const {
  if (box.frame == to) return box;
  using Kind = BoxFrame::Kind;
  const auto width = static_cast<double>(original_.width), height = static_cast<double>(original_.height);
  const double longest = std::max(width, height);
  const bool from_square = box.frame.kind() == Kind::letterbox, to_square = to.kind() == Kind::letterbox;
  // Frames come in two families, of the padded square and of the picture itself; inside a family it is only a scale.
  const auto extent = [&](const BoxFrame& frame, double frame_extent, double picture_extent) {
    return frame.kind() == Kind::original ? picture_extent : frame_extent;
  };
  const auto map_axis = [&](double value, double from_extent, double to_extent, double picture_extent) {
    const double pad = (longest - picture_extent) / 2;
    if (from_square == to_square) return value * to_extent / from_extent;
    if (from_square) return (value * longest / from_extent - pad) * to_extent / picture_extent;
    return (value * picture_extent / from_extent + pad) * to_extent / longest;
  };
  const double from_x = extent(box.frame, static_cast<double>(box.frame.width()), width);
  const double from_y = extent(box.frame, static_cast<double>(box.frame.height()), height);
  const double to_x = extent(to, static_cast<double>(to.width()), width);
  const double to_y = extent(to, static_cast<double>(to.height()), height);
  return {map_axis(box.x1, from_x, to_x, width), map_axis(box.y1, from_y, to_y, height),
          map_axis(box.x2, from_x, to_x, width), map_axis(box.y2, from_y, to_y, height), to};
}

Box ImageGeometry::clip(const Box& box) const {
  if (!box.is_valid()) return box;
  const Box picture =
      convert({0, 0, static_cast<double>(original_.width), static_cast<double>(original_.height), BoxFrame::original()},
              box.frame);
  return {std::max(box.x1, picture.x1), std::max(box.y1, picture.y1), std::min(box.x2, picture.x2),
          std::min(box.y2, picture.y2), box.frame};
}

Box ImageGeometry::rounded(const Box& box) const {
  const bool is_original = box.frame.kind() == BoxFrame::Kind::original;
  const auto width = static_cast<double>(is_original ? original_.width : box.frame.width());
  const auto height = static_cast<double>(is_original ? original_.height : box.frame.height());
  const double step = text_step(box.frame);
  const Interval x = round_interval({box.x1, box.x2}, width, step), y = round_interval({box.y1, box.y2}, height, step);
  return {x.low, y.low, x.high, y.high, box.frame};
}

}  // namespace thinkvg::grounding
