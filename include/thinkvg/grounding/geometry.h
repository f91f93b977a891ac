#pragma once

#include "thinkvg/grounding/box.h"

namespace thinkvg::grounding {

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

  // Whole numbers, clipped to the frame's extent (0..width, 0..height): how boxes are written in model text.
  Box rounded(const Box& box) const;

 private:
  ImageSize original_;
};

}  // namespace thinkvg::grounding
