#include <algorithm>
#include <cmath>
#include <tuple>

#include "rewards/builtin.h"
#include "thinkvg/core/error.h"

namespace thinkvg::rewards {
namespace {

using grounding::Box;
using grounding::MultiBoxRule;

// IoU minus the share of the smallest enclosing box that neither covers (arXiv 1902.09630), in (-1, 1].
double generalized_iou(const Box& a, const Box& b) {
  if (!a.is_valid() || !b.is_valid()) return -1;
  const double enclosing =
      (std::max(a.x2, b.x2) - std::min(a.x1, b.x1)) * (std::max(a.y2, b.y2) - std::min(a.y1, b.y1));
  const double overlap = std::max(0.0, std::min(a.x2, b.x2) - std::max(a.x1, b.x1)) *
                         std::max(0.0, std::min(a.y2, b.y2) - std::max(a.y1, b.y1));
  const double joint = a.area() + b.area() - overlap;
  const double value = grounding::iou(a, b) - (enclosing - joint) / enclosing;
  return std::isfinite(value) ? std::clamp(value, -1.0, 1.0) : -1;
}

bool same_box(const Box& a, const Box& b) {
  return std::tie(a.x1, a.y1, a.x2, a.y2) == std::tie(b.x1, b.y1, b.x2, b.y2);
}

// Boxes that were given before, beyond as often as the reference gives one box.
std::vector<bool> find_copies(const std::vector<Box>& predicted, const std::vector<Box>& reference) {
  std::size_t allowed = 1;
  for (const Box& box : reference) {
    const auto times =
        std::count_if(reference.begin(), reference.end(), [&](const Box& b) { return same_box(b, box); });
    allowed = std::max(allowed, static_cast<std::size_t>(times));
  }
  std::vector<bool> copies(predicted.size(), false);
  for (std::size_t i = 0; i < predicted.size(); ++i) {
    std::size_t before = 0;
    for (std::size_t j = 0; j < i; ++j) before += same_box(predicted[i], predicted[j]) ? 1 : 0;
    copies[i] = before >= allowed;
  }
  return copies;
}

class GroundingReward final : public Reward {
 public:
  explicit GroundingReward(const RewardOptions& options)
      : rule_(grounding::parse_multi_box_rule(options.box_rule)),
        generalized_(options.box_overlap == "giou"),
        gate_(options.count_gate),
        threshold_(options.grounding_threshold) {
    if (rule_ != MultiBoxRule::hungarian && rule_ != MultiBoxRule::paired) {
      throw_invalid("the grounding reward compares box by box: box_rule must be 'hungarian' or 'paired', but is '{}'",
                    options.box_rule);
    }
    check_one_of("box_overlap", options.box_overlap, {"iou", "giou"});
    check_share("grounding_threshold", threshold_);
  }

  std::string name() const override { return "grounding"; }

  RewardScore score(const RewardInput& input) override {
    if (input.sample.regions.empty()) return not_applicable("the reference has no boxes");
    if (!input.parsed.complete) return zero_incomplete(input);
    const std::size_t num_predicted = input.parsed.regions.size() + input.parsed.bad_boxes.size();
    if (num_predicted > kMaxBoxes) return zero(fmt::format("more than {} boxes", kMaxBoxes));
    if (gate_) {
      if (!input.parsed.bad_boxes.empty()) return zero("no box: " + input.parsed.bad_boxes.front());
      if (input.parsed.regions.size() != input.sample.regions.size())
        return zero(
            fmt::format("{} boxes, the reference has {}", input.parsed.regions.size(), input.sample.regions.size()));
    }
    std::vector<Box> predicted, reference;
    std::string problem;
    for (const auto& region : input.parsed.regions) {
      PlacedBox placed = place_box(input, region.box);
      if (!placed.problem.empty()) {
        if (gate_) return zero(placed.problem);
        problem = placed.problem;
        placed.box = no_box(input);
      }
      predicted.push_back(placed.box);
    }
    for (const auto& region : input.sample.regions)
      reference.push_back(input.geometry.convert(region.box, input.sample.frame));
    const std::vector<bool> copies = find_copies(predicted, reference);
    for (std::size_t i = 0; i < predicted.size(); ++i) {
      if (!copies[i] || !predicted[i].is_valid()) continue;
      problem = "one box is given several times";
      if (gate_) return zero(problem);
      predicted[i] = no_box(input);
    }
    for (const std::string& text : input.parsed.bad_boxes) {
      problem = "no box: " + text;
      predicted.push_back(no_box(input));
    }
    const double mean = mean_overlap(predicted, reference);
    std::string reason = fmt::format("mean {} {:.3f}", generalized_ ? "GIoU share" : "IoU", mean);
    if (predicted.size() != reference.size())
      reason += fmt::format(", {} boxes, the reference has {}", predicted.size(), reference.size());
    if (!problem.empty()) reason += "; " + problem;
    return scored(with_threshold(mean, threshold_), std::move(reason));
  }

 private:
  static constexpr std::size_t kMaxBoxes = 256;  // the assignment is cubic

  static Box no_box(const RewardInput& input) { return {0, 0, 0, 0, input.sample.frame}; }

  double overlap(const Box& a, const Box& b) const {
    if (!a.is_valid() || !b.is_valid()) return 0;
    return generalized_ ? (1 + generalized_iou(a, b)) / 2 : grounding::iou(a, b);
  }

  // Over the larger number of boxes: what is left without a partner counts 0.
  double mean_overlap(const std::vector<Box>& predicted, const std::vector<Box>& reference) const {
    const std::size_t larger = std::max(predicted.size(), reference.size());
    if (predicted.empty() || reference.empty()) return 0;
    double sum = 0;
    if (rule_ == MultiBoxRule::paired) {
      for (std::size_t i = 0; i < std::min(predicted.size(), reference.size()); ++i)
        sum += overlap(predicted[i], reference[i]);
    } else {
      std::vector<double> overlaps;
      for (const Box& a : predicted)
        for (const Box& b : reference) overlaps.push_back(overlap(a, b));
      const auto columns = static_cast<std::int64_t>(reference.size());
      const auto assigned = grounding::assign_maximum(overlaps, static_cast<std::int64_t>(predicted.size()), columns);
      for (std::size_t i = 0; i < assigned.size(); ++i)
        if (assigned[i] >= 0) sum += overlaps[i * reference.size() + static_cast<std::size_t>(assigned[i])];
    }
    return sum / static_cast<double>(larger);
  }

  MultiBoxRule rule_;
  bool generalized_;
  bool gate_;
  double threshold_;
};

}  // namespace

std::unique_ptr<Reward> make_grounding_reward(const RewardOptions& options, const RewardResources&) {
  return std::make_unique<GroundingReward>(options);
}

}  // namespace thinkvg::rewards
