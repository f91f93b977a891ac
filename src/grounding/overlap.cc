#include "thinkvg/grounding/overlap.h"

#include <algorithm>

#include "thinkvg/core/error.h"

namespace thinkvg::grounding {
namespace {

Box longer(Box box) {
  if (box.is_valid()) {
    box.x2 += 1;
    box.y2 += 1;
  }
  return box;
}

std::vector<Box> longer(const std::vector<Box>& boxes) {
  std::vector<Box> out;
  for (const Box& box : boxes) out.push_back(longer(box));
  return out;
}

double union_value(const std::vector<Box>& predicted, const std::vector<Box>& reference, IouRule rule) {
  if (rule != IouRule::pixel_inclusive) return match_boxes(predicted, reference, MultiBoxRule::union_area);
  return match_boxes(longer(predicted), longer(reference), MultiBoxRule::union_area);
}

}  // namespace

IouRule parse_iou_rule(std::string_view name) {
  if (name == "area") return IouRule::area;
  if (name == "pixel_inclusive") return IouRule::pixel_inclusive;
  if (name == "vlm_r1") return IouRule::vlm_r1;
  throw_invalid("unknown IoU rule '{}'; known are: area, pixel_inclusive, vlm_r1", name);
}

std::string iou_rule_name(IouRule rule) {
  switch (rule) {
    case IouRule::area:
      return "area";
    case IouRule::pixel_inclusive:
      return "pixel_inclusive";
    case IouRule::vlm_r1:
      return "vlm_r1";
  }
  return "area";
}

double iou(const Box& a, const Box& b, IouRule rule) {
  if (rule == IouRule::pixel_inclusive) return iou(longer(a), longer(b));
  const double value = iou(a, b);
  if (rule == IouRule::vlm_r1 &&
      (std::min(a.x2, b.x2) - std::max(a.x1, b.x1) <= 1 || std::min(a.y2, b.y2) - std::max(a.y1, b.y1) <= 1)) {
    return 0;
  }
  return value;
}

double BoxOverlap::value(MultiBoxRule rule) const {
  switch (rule) {
    case MultiBoxRule::paired:
      return paired;
    case MultiBoxRule::hungarian:
      return hungarian;
    case MultiBoxRule::union_area:
      return union_area;
    case MultiBoxRule::best:
      return best;
  }
  return hungarian;
}

BoxOverlap overlap_of(const std::vector<Box>& predicted, const std::vector<Box>& reference, IouRule rule) {
  BoxOverlap out;
  out.best_of_predicted.assign(predicted.size(), 0.0);
  if (predicted.empty() || reference.empty()) {
    const double value = predicted.empty() && reference.empty() ? 1 : 0;
    out.paired = out.hungarian = out.union_area = out.best = value;
    return out;
  }
  const std::size_t rows = reference.size(), columns = predicted.size();
  std::vector<double> table(rows * columns);
  for (std::size_t r = 0; r < rows; ++r) {
    double best = 0;
    for (std::size_t p = 0; p < columns; ++p) {
      const double value = iou(predicted[p], reference[r], rule);
      table[r * columns + p] = value;
      best = std::max(best, value);
      out.best_of_predicted[p] = std::max(out.best_of_predicted[p], value);
    }
    out.best += best / static_cast<double>(rows);
  }
  if (rows == 1 && columns == 1) {
    out.paired = out.hungarian = out.best = table[0];
    out.union_area = rule == IouRule::vlm_r1 ? iou(predicted[0], reference[0]) : table[0];
    return out;
  }
  if (rows == columns) {
    for (std::size_t i = 0; i < rows; ++i) out.paired += table[i * columns + i];
    out.paired /= static_cast<double>(rows);
  }
  const auto assigned = assign_maximum(table, static_cast<std::int64_t>(rows), static_cast<std::int64_t>(columns));
  for (std::size_t r = 0; r < rows; ++r) {
    if (assigned[r] >= 0) out.hungarian += table[r * columns + static_cast<std::size_t>(assigned[r])];
  }
  out.hungarian /= static_cast<double>(std::max(rows, columns));
  out.union_area = union_value(predicted, reference, rule);
  return out;
}

}  // namespace thinkvg::grounding
