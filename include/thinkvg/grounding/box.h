#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace thinkvg::grounding {

struct ImageSize {
  std::int64_t width = 0;
  std::int64_t height = 0;
  bool operator==(const ImageSize&) const = default;
};

// The coordinate frame that a box's numbers live in. By name, everywhere a user sees one:
//   original       pixels of the picture as shown, EXIF orientation applied
//   stored         pixels of the picture as the file stores them, before EXIF orientation
//   letterbox-N    picture padded to a centred square, then resized to N x N pixels (GEMeX: 224, ThinkVG: 336)
//   crop-N         picture resized so that its shorter side is N, then the centred N x N cut out (CLIP); what the cut
//                  removed has coordinates below 0 or above N
//   stretch-N, stretch-WxH   picture resized to N x N (or W x H) without regard to its aspect (Qwen2.5-VL's resize)
//   unit, hundred, thousand  0..1 (RadVLM), 0..100 (CheXagent), 0..1000 (Qwen2-VL, Qwen3-VL, InternVL, Gemini,
//                  MedGemma) of width and height of the original picture
//   view           pixels behind the chain of crops, pads and resizes that an ImageGeometry was given
class BoxFrame {
 public:
  enum class Kind { original, letterbox, stretch, relative, crop, stored, view };

  BoxFrame() = default;  // original
  static BoxFrame original() { return {}; }
  static BoxFrame stored() { return {Kind::stored, 0, 0}; }
  static BoxFrame view() { return {Kind::view, 0, 0}; }
  static BoxFrame crop(std::int64_t size) { return {Kind::crop, size, size}; }
  static BoxFrame letterbox(std::int64_t size) { return {Kind::letterbox, size, size}; }
  static BoxFrame stretch(std::int64_t width, std::int64_t height) { return {Kind::stretch, width, height}; }
  static BoxFrame unit() { return {Kind::relative, 1, 1}; }
  static BoxFrame hundred() { return {Kind::relative, 100, 100}; }
  static BoxFrame thousand() { return {Kind::relative, 1000, 1000}; }

  // Throws std::invalid_argument that lists the names.
  static BoxFrame parse(std::string_view name);
  std::string name() const;

  Kind kind() const { return kind_; }
  // Extent of the frame; 0 x 0 for `original`, `stored` and `view`, whose extent is the picture's.
  std::int64_t width() const { return width_; }
  std::int64_t height() const { return height_; }
  bool operator==(const BoxFrame&) const = default;

 private:
  BoxFrame(Kind kind, std::int64_t width, std::int64_t height) : kind_(kind), width_(width), height_(height) {}
  Kind kind_ = Kind::original;
  std::int64_t width_ = 0;
  std::int64_t height_ = 0;
};

// A rectangle x1 <= x2, y1 <= y2 when well formed; x to the right, y down; edges are continuous coordinates
// (a box over the whole of an N-pixel frame is 0, 0, N, N).
struct Box {
  double x1 = 0, y1 = 0, x2 = 0, y2 = 0;
  BoxFrame frame;

  // Finite numbers, x1 < x2 and y1 < y2.
  bool is_valid() const;
  // Why it is not valid, in words ("x1 = 30 is not below x2 = 3: the corners are reversed"); empty when it is.
  std::string problem() const;
  // 0 when not valid.
  double area() const;
  bool operator==(const Box&) const = default;
};

// In which order a source writes the four numbers of a box. A reader knows its source's order; it is never guessed.
enum class BoxOrder {
  xyxy,    // x1, y1, x2, y2
  yxyx,    // y1, x1, y2, x2: "box_2d" of Gemini and MedGemma
  xywh,    // x1, y1, width, height: COCO, MS-CXR, NIH, RSNA, SLAKE
  cxcywh,  // centre, width, height: YOLO
};
BoxOrder parse_box_order(std::string_view name);  // by those names; else std::invalid_argument
std::string box_order_name(BoxOrder order);
// Any numbers are taken; Box::problem says whether they make a box.
Box make_box(const std::array<double, 4>& numbers, BoxOrder order, const BoxFrame& frame);

// A box with the name of the anatomical region it stands for (may be empty).
struct Region {
  std::string name;
  Box box;
  bool operator==(const Region&) const = default;
};

// Intersection over union of two boxes of the same frame; 0 if either is not valid.
// Throws std::invalid_argument when the frames differ.
double iou(const Box& a, const Box& b);

// How several predicted boxes are scored against several reference boxes; every rule gives a value in [0, 1].
enum class MultiBoxRule {
  paired,      // index order; 0 when the counts differ, else mean IoU
  hungarian,   // best one-to-one assignment; unmatched boxes of either side count 0: sum IoU / max(counts)
  union_area,  // IoU of the two unions as point sets
  best,        // for each reference the best IoU of any prediction, averaged over references
};
MultiBoxRule parse_multi_box_rule(std::string_view name);  // "paired", "hungarian", "union", "best"
std::string multi_box_rule_name(MultiBoxRule rule);

// Both lists empty: 1. Only one empty: 0.
double match_boxes(const std::vector<Box>& predicted, const std::vector<Box>& reference, MultiBoxRule rule);

// One-to-one assignment of rows to columns with the largest total (Hungarian method, Kuhn-Munkres with potentials,
// O(n^2 m)). `score` is row-major [rows, columns]. Returns for each row its column or -1.
std::vector<std::int64_t> assign_maximum(const std::vector<double>& score, std::int64_t rows, std::int64_t columns);

}  // namespace thinkvg::grounding
