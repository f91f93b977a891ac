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
  const auto own_family = [](Kind kind) { return kind == Kind::letterbox || kind == Kind::crop; };
  if (own_family(from.kind()) || own_family(to.kind())) return from.kind() != to.kind();
  const auto of_the_picture = [](Kind kind) {
    return kind == Kind::original || kind == Kind::stored || kind == Kind::view;
  };
  return of_the_picture(from.kind()) || of_the_picture(to.kind());
}

ImageGeometry::ImageGeometry(ImageSize original, int exif_orientation)
    : original_(original), orientation_(exif_orientation), view_(original) {
  if (original.width < 1 || original.height < 1) {
    throw_invalid("a picture must have a positive size, but it is {} x {} pixels", original.width, original.height);
  }
  if (exif_orientation < 1 || exif_orientation > 8) {
    throw_invalid("an EXIF orientation is 1 to 8, but it is {}", exif_orientation);
  }
}

ImageSize ImageGeometry::stored() const {
  return orientation_ >= 5 ? ImageSize{original_.height, original_.width} : original_;
}

ImageGeometry ImageGeometry::padded(const Sides& added) const {
  ImageGeometry next = *this;
  const double width = static_cast<double>(view_.width) + added.left + added.right;
  const double height = static_cast<double>(view_.height) + added.top + added.bottom;
  if (!(width >= 1 && height >= 1)) {
    throw_invalid("a step of the picture's chain leaves {} x {} pixels of {} x {}", width, height, view_.width,
                  view_.height);
  }
  next.view_ = {static_cast<std::int64_t>(std::llround(width)), static_cast<std::int64_t>(std::llround(height))};
  next.view_x_.shift += added.left;
  next.view_y_.shift += added.top;
  return next;
}

ImageGeometry ImageGeometry::cropped(const Sides& removed) const {
  return padded({-removed.left, -removed.top, -removed.right, -removed.bottom});
}

ImageGeometry ImageGeometry::resized(ImageSize size) const {
  if (size.width < 1 || size.height < 1) {
    throw_invalid("a picture cannot be resized to {} x {} pixels", size.width, size.height);
  }
  ImageGeometry next = *this;
  next.view_ = size;
  const auto scale = [](Axis& axis, std::int64_t to, std::int64_t from) {
    const double factor = static_cast<double>(to) / static_cast<double>(from);
    axis.scale *= factor;
    axis.shift *= factor;
  };
  scale(next.view_x_, size.width, view_.width);
  scale(next.view_y_, size.height, view_.height);
  return next;
}

ImageSize ImageGeometry::extent(const BoxFrame& frame) const {
  switch (frame.kind()) {
    case BoxFrame::Kind::original:
      return original_;
    case BoxFrame::Kind::stored:
      return stored();
    case BoxFrame::Kind::view:
      return view_;
    default:
      return {frame.width(), frame.height()};
  }
}

Box ImageGeometry::to_original(const Box& box) const {
  const auto width = static_cast<double>(original_.width), height = static_cast<double>(original_.height);
  switch (box.frame.kind()) {
    case BoxFrame::Kind::crop: {
      const double n = static_cast<double>(box.frame.width()), s = n / std::min(width, height);
      const auto x = [&](double v) { return (v - n / 2) / s + width / 2; };
      const auto y = [&](double v) { return (v - n / 2) / s + height / 2; };
      return {x(box.x1), y(box.y1), x(box.x2), y(box.y2), BoxFrame::original()};
    }
    case BoxFrame::Kind::view: {
      const auto x = [&](double v) { return (v - view_x_.shift) / view_x_.scale; };
      const auto y = [&](double v) { return (v - view_y_.shift) / view_y_.scale; };
      return {x(box.x1), y(box.y1), x(box.x2), y(box.y2), BoxFrame::original()};
    }
    case BoxFrame::Kind::stored: {
      // Undoes what the file stores: 2-4 mirror or turn by half, 5-8 also exchange the axes (EXIF 2.32, tag 0x0112).
      Box b = box;
      b.frame = BoxFrame::original();
      if (orientation_ >= 5) {
        std::swap(b.x1, b.y1);
        std::swap(b.x2, b.y2);
      }
      const bool mirror_x = orientation_ == 2 || orientation_ == 3 || orientation_ == 6 || orientation_ == 7;
      const bool mirror_y = orientation_ == 3 || orientation_ == 4 || orientation_ == 7 || orientation_ == 8;
      if (mirror_x) b = {width - b.x2, b.y1, width - b.x1, b.y2, b.frame};
      if (mirror_y) b = {b.x1, height - b.y2, b.x2, height - b.y1, b.frame};
      return b;
    }
    default:
      return convert(box, BoxFrame::original());
  }
}

Box ImageGeometry::from_original(const Box& box, const BoxFrame& to) const {
  const auto width = static_cast<double>(original_.width), height = static_cast<double>(original_.height);
  switch (to.kind()) {
    case BoxFrame::Kind::crop: {
      const double n = static_cast<double>(to.width()), s = n / std::min(width, height);
      const auto x = [&](double v) { return (v - width / 2) * s + n / 2; };
      const auto y = [&](double v) { return (v - height / 2) * s + n / 2; };
      return {x(box.x1), y(box.y1), x(box.x2), y(box.y2), to};
    }
    case BoxFrame::Kind::view: {
      const auto x = [&](double v) { return v * view_x_.scale + view_x_.shift; };
      const auto y = [&](double v) { return v * view_y_.scale + view_y_.shift; };
      return {x(box.x1), y(box.y1), x(box.x2), y(box.y2), to};
    }
    case BoxFrame::Kind::stored: {
      // The same mirrors, then the exchange of the axes.
      Box b = box;
      const bool mirror_x = orientation_ == 2 || orientation_ == 3 || orientation_ == 6 || orientation_ == 7;
      const bool mirror_y = orientation_ == 3 || orientation_ == 4 || orientation_ == 7 || orientation_ == 8;
      if (mirror_x) b = {width - b.x2, b.y1, width - b.x1, b.y2, b.frame};
      if (mirror_y) b = {b.x1, height - b.y2, b.x2, height - b.y1, b.frame};
      if (orientation_ >= 5) {
        std::swap(b.x1, b.y1);
        std::swap(b.x2, b.y2);
      }
      b.frame = to;
      return b;
    }
    default:
      return convert(box, to);
  }
}

Box ImageGeometry::convert(const Box& box, const BoxFrame& to) const {
  if (box.frame == to) return box;
  using Kind = BoxFrame::Kind;
  const auto width = static_cast<double>(original_.width), height = static_cast<double>(original_.height);
  const auto by_original = [](const BoxFrame& frame) {
    return frame.kind() == Kind::crop || frame.kind() == Kind::stored || frame.kind() == Kind::view;
  };
  if (box.frame.kind() == Kind::crop && to.kind() == Kind::crop) {
    const double s = static_cast<double>(to.width()) / static_cast<double>(box.frame.width());
    return {box.x1 * s, box.y1 * s, box.x2 * s, box.y2 * s, to};
  }
  if (by_original(box.frame) || by_original(to)) return from_original(to_original(box), to);
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

FittedBox ImageGeometry::fit(const Box& box) const {
  FittedBox fitted{.box = box, .problem = box.problem()};
  if (!fitted.problem.empty()) return fitted;
  fitted.box = clip(box);
  fitted.clipped = !(fitted.box == box);
  if (!fitted.box.is_valid()) {
    fitted.problem =
        fmt::format("the box lies outside the picture of {} x {} pixels", original_.width, original_.height);
    return fitted;
  }
  fitted.kept = fitted.box.area() / box.area();
  return fitted;
}

Box ImageGeometry::rounded(const Box& box) const {
  const ImageSize size = extent(box.frame);
  const double step = text_step(box.frame);
  const Interval x = round_interval({box.x1, box.x2}, static_cast<double>(size.width), step);
  const Interval y = round_interval({box.y1, box.y2}, static_cast<double>(size.height), step);
  return {x.low, y.low, x.high, y.high, box.frame};
}

}  // namespace thinkvg::grounding
