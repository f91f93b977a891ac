#pragma once

#include "thinkvg/grounding/box.h"

namespace thinkvg::grounding {

// Whether a box can only be converted between the two frames with the picture's size at hand. Not needed between
// letterbox frames, between crop frames, and between the frames of the unpadded picture (stretch, unit, hundred,
// thousand): they differ by a scale, so that any ImageGeometry gives the exact result.
bool conversion_needs_picture(const BoxFrame& from, const BoxFrame& to);

// A box cut to its picture, with what that did to it.
struct FittedBox {
  Box box;  // in the frame of the box that came; not valid where `problem` says something
  bool clipped = false;
  double kept = 0;      // share of the area that lies inside the picture, in [0, 1]
  std::string problem;  // why no box is left: a coordinate that is no number, reversed, empty, outside the picture
};

// How one picture's frames relate to its original pixels: the single place where boxes change their frame.
// Immutable, cheap to copy.
//
//   const ImageGeometry geometry = ImageGeometry({3056, 2544}).padded({0, 256, 0, 256}).resized({336, 336});
//   const Box seen = geometry.convert(box, BoxFrame::view());
class ImageGeometry {
 public:
  // `original`: size of the picture as shown (after EXIF orientation). Throws std::invalid_argument unless positive.
  // `exif_orientation`: 1 to 8, how the file stores the picture; only the frame `stored` depends on it.
  explicit ImageGeometry(ImageSize original, int exif_orientation = 1);

  ImageSize original() const { return original_; }
  // The picture as the file stores it: width and height change places where the orientation turns by a quarter.
  ImageSize stored() const;
  // The picture behind the chain of the steps below; the original's size where there is none.
  ImageSize view() const { return view_; }

  // The chain: each gives the geometry with one more step behind the ones before. Sizes are pixels of the picture as it
  // comes out of the step before. Throw std::invalid_argument where nothing would be left.
  struct Sides {
    double left = 0, top = 0, right = 0, bottom = 0;
  };
  ImageGeometry cropped(const Sides& removed) const;
  ImageGeometry padded(const Sides& added) const;
  ImageGeometry resized(ImageSize size) const;

  // The same rectangle in another frame. Not clipped: a box may reach outside the picture (into a letterbox's padding).
  // There and back gives the same numbers within 1e-9 pixels for pictures of up to 5000 pixels a side.
  Box convert(const Box& box, const BoxFrame& to) const;

  // The part of the box inside the picture, in the box's own frame; not valid when there is none.
  Box clip(const Box& box) const;
  // The same with a report.
  FittedBox fit(const Box& box) const;

  // Whole numbers (steps of 0.0001 in the unit frame), clipped to the frame's extent (0..width, 0..height): how boxes
  // are written in model text. A valid box that reaches into the frame stays valid: one step wide at least.
  Box rounded(const Box& box) const;

  // Width and height of a frame for this picture: of the padded square for a letterbox, 1 x 1 for unit, and so on.
  ImageSize extent(const BoxFrame& frame) const;

 private:
  struct Axis {  // view = original * scale + shift
    double scale = 1, shift = 0;
  };
  Box to_original(const Box& box) const;
  Box from_original(const Box& box, const BoxFrame& to) const;

  ImageSize original_;
  int orientation_;
  ImageSize view_;
  Axis view_x_, view_y_;
};

}  // namespace thinkvg::grounding
