#include "rewards/builtin.h"

#include <algorithm>
#include <cmath>

#include "thinkvg/core/error.h"

namespace thinkvg::rewards {
namespace {

constexpr double kRoundingSlack = 1e-9;
constexpr double kFrameSlack = 0.05;  // of the frame's extent

struct Extent {
  double x1 = 0, y1 = 0, x2 = 0, y2 = 0;
};

// The frame's own extent, widened to what the reference boxes take up.
Extent allowed_extent(const RewardInput& input, const grounding::BoxFrame& frame) {
  Extent extent{0, 0, static_cast<double>(frame.width()), static_cast<double>(frame.height())};
  if (frame == grounding::BoxFrame::original()) {
    extent.x2 = static_cast<double>(input.geometry.original().width);
    extent.y2 = static_cast<double>(input.geometry.original().height);
  }
  const double slack_x = kFrameSlack * extent.x2, slack_y = kFrameSlack * extent.y2;
  for (const grounding::Region& region : input.sample.regions) {
    if (!region.box.is_valid()) continue;
    const grounding::Box box = input.geometry.convert(region.box, frame);
    extent = {std::min(extent.x1, box.x1), std::min(extent.y1, box.y1), std::max(extent.x2, box.x2),
              std::max(extent.y2, box.y2)};
  }
  return {extent.x1 - slack_x, extent.y1 - slack_y, extent.x2 + slack_x, extent.y2 + slack_y};
}

}  // namespace

void FailurePolicy::check(const char* section) const {
  check_one_of(fmt::format("{}.on_failure", section).c_str(), on_failure, {"skip", "fallback", "stop"});
  if (!std::isfinite(fallback)) throw_invalid("{}.fallback must be a finite number, but is {}", section, fallback);
}

RewardScore zero_incomplete(const RewardInput& input) {
  return zero(input.truncated ? input.parsed.problem + " (cut off at the length limit)" : input.parsed.problem);
}

RewardScore failed_score(const FailurePolicy& policy, const std::string& reward, const std::string& problem) {
  if (policy.on_failure == "stop")
    throw_failure("the reward '{}' cannot score: {} (on_failure is stop; skip or fallback would go on)", reward,
                  problem);
  if (policy.on_failure == "fallback") return scored(policy.fallback, "fallback, because " + problem);
  return not_applicable(problem);
}

double with_threshold(double value, double threshold) {
  if (threshold <= 0) return value;
  return value >= threshold - kRoundingSlack ? 1 : 0;
}

void check_share(const char* name, double value) {
  if (value >= 0 && value <= 1) return;
  throw_invalid("{} must be between 0 and 1, but is {}", name, value);
}

void check_one_of(const char* setting, const std::string& value, std::initializer_list<const char*> names) {
  for (const char* name : names)
    if (value == name) return;
  throw_invalid("{} must be one of {}, but is '{}'", setting, fmt::join(names, ", "), value);
}

PlacedBox place_box(const RewardInput& input, const grounding::Box& box) {
  if (!box.is_valid()) return {box, "no box: " + grounding::format_box(box)};
  const Extent extent = allowed_extent(input, box.frame);
  if (box.x1 < extent.x1 || box.y1 < extent.y1 || box.x2 > extent.x2 || box.y2 > extent.y2)
    return {box, fmt::format("a box outside of the picture: {:.80}", grounding::format_box(box))};
  const grounding::Box placed = input.geometry.convert(box, input.sample.frame);
  if (!placed.is_valid())
    return {placed, fmt::format("no box in the picture's frame: {:.80}", grounding::format_box(box))};
  return {placed, ""};
}

}  // namespace thinkvg::rewards
