#pragma once

#include "thinkvg/grounding/box.h"

namespace thinkvg::grounding {

// Whether a box can only be converted between the two frames with the picture's size at hand. Not needed between
// letterbox frames, and between the frames of the unpadded picture (stretch, unit, hundred, thousand): they differ by a
// scale, so that any ImageGeometry gives the exact result.
bool conversion_needs_picture(const BoxFrame& from, const BoxFrame& to);

// How one picture's frames relate to its original pixels: the single place where boxes change their frame.
// Immutable, cheap to copy.
class ImageGeometry {
 public:
  // `original`: size of the picture as shown (after EXIF orientation). Throws std::invalid_argument unless positive.
  explicit ImageGeometry(ImageSize original);

  ImageSize original() const { return original_; }

  // The same rectangle in another frame. Not clipped: a box may reach outside the picture (into a letterbox's padding).
  Box convert(const Box& box, const BoxFrame& to) const;

  // The part of the box inside the picture, in the box's own frame; not valid when there is none.
  Box clip(const Box& box) const;

  // Whole numbers (steps of 0.0001 in the unit frame), clipped to the frame's extent (0..width, 0..height): how boxes
  // are written in model text. A valid box that reaches into the frame stays valid: one step wide at least.
  Box rounded(const Box& box) const;

 private:
  ImageSize original_;
};

}  // namespace thinkvg::grounding
