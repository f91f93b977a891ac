#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "thinkvg/grounding/box.h"

namespace thinkvg::grounding {

// Which intersection over union a score means.
enum class IouRule {
  area,             // continuous edges, as iou() computes it
  pixel_inclusive,  // x2 and y2 name the last pixel inside: each side is one unit longer (Pascal VOC)
  vlm_r1,           // as the VLM-R1 code: area, but 0 where the intersection is at most one unit wide or high
};
IouRule parse_iou_rule(std::string_view name);  // "area", "pixel_inclusive", "vlm_r1"; else std::invalid_argument
std::string iou_rule_name(IouRule rule);

// In units of the boxes' frame. 0 if either box is not valid; std::invalid_argument when the frames differ.
double iou(const Box& a, const Box& b, IouRule rule);

// What several predicted boxes score against several reference boxes under each rule of MultiBoxRule, each in [0, 1].
struct BoxOverlap {
  double paired = 0, hungarian = 0, union_area = 0, best = 0;
  // Of each prediction, its largest IoU with any reference; 0 without references.
  std::vector<double> best_of_predicted;

  double value(MultiBoxRule rule) const;
};

// The same values as match_boxes gives rule by rule, from one table of pairs. Both lists empty: 1; one of them: 0.
// The union is of point sets: vlm_r1 takes it as area does.
BoxOverlap overlap_of(const std::vector<Box>& predicted, const std::vector<Box>& reference,
                      IouRule rule = IouRule::area);

}  // namespace thinkvg::grounding
