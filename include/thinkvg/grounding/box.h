#pragma once

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
//   original       pixels of the picture as stored
//   letterbox-N    picture padded to a centred square, then resized to N x N pixels (GEMeX: 224, ThinkVG: 336)
//   stretch-N, stretch-WxH   picture resized to N x N (or W x H) without regard to its aspect
//   unit, hundred, thousand  0..1, 0..100, 0..1000 of width and height of the original picture
class BoxFrame {
 public:
  enum class Kind { original, letterbox, stretch, relative };

  BoxFrame() = default;  // original
  static BoxFrame original() { return {}; }
  static BoxFrame letterbox(std::int64_t size) { return {Kind::letterbox, size, size}; }
  static BoxFrame stretch(std::int64_t width, std::int64_t height) { return {Kind::stretch, width, height}; }
  static BoxFrame unit() { return {Kind::relative, 1, 1}; }
  static BoxFrame hundred() { return {Kind::relative, 100, 100}; }
  static BoxFrame thousand() { return {Kind::relative, 1000, 1000}; }

  // Throws std::invalid_argument that lists the names.
  static BoxFrame parse(std::string_view name);
  std::string name() const;

  Kind kind() const { return kind_; }
  // Extent of the frame; 0 x 0 for `original`, whose extent is the picture's.
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
  // 0 when not valid.
  double area() const;
  bool operator==(const Box&) const = default;
};

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
