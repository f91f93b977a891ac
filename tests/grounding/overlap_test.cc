#include "thinkvg/grounding/overlap.h"

#include <gtest/gtest.h>

#include "thinkvg/core/random.h"

namespace thinkvg::grounding {
namespace {

std::vector<Box> random_boxes(RandomStream& random, std::size_t count) {
  std::vector<Box> boxes;
  for (std::size_t i = 0; i < count; ++i) {
    const double x = random.uniform(0, 200), y = random.uniform(0, 200);
    boxes.push_back({x, y, x + random.uniform(-5, 120), y + random.uniform(-5, 120), BoxFrame::letterbox(336)});
  }
  return boxes;
}

TEST(Overlap, EqualsMatchBoxesRuleByRule) {
  RandomStream random({91});
  for (int round = 0; round < 400; ++round) {
    const auto predicted = random_boxes(random, random.below(5)), reference = random_boxes(random, random.below(5));
    const BoxOverlap got = overlap_of(predicted, reference);
    for (const MultiBoxRule rule :
         {MultiBoxRule::paired, MultiBoxRule::hungarian, MultiBoxRule::union_area, MultiBoxRule::best}) {
      EXPECT_NEAR(got.value(rule), match_boxes(predicted, reference, rule), 1e-12) << multi_box_rule_name(rule);
    }
    ASSERT_EQ(got.best_of_predicted.size(), predicted.size());
    for (std::size_t p = 0; p < predicted.size(); ++p) {
      double best = 0;
      for (const Box& box : reference) best = std::max(best, iou(predicted[p], box));
      EXPECT_EQ(got.best_of_predicted[p], best);
    }
  }
}

TEST(Overlap, IouRulesDifferWhereTheySay) {
  const BoxFrame frame = BoxFrame::original();
  const Box a{0, 0, 9, 9, frame}, b{5, 0, 14, 9, frame}, thin{8.5, 0, 17.5, 9, frame};
  EXPECT_DOUBLE_EQ(iou(a, b, IouRule::area), 36.0 / 126);
  // Pixels 0..9 and 5..14: 5 of 15 columns are shared.
  EXPECT_DOUBLE_EQ(iou(a, b, IouRule::pixel_inclusive), 5.0 / 15);
  EXPECT_DOUBLE_EQ(iou(a, b, IouRule::vlm_r1), 36.0 / 126);
  EXPECT_GT(iou(a, thin, IouRule::area), 0);
  EXPECT_EQ(iou(a, thin, IouRule::vlm_r1), 0);
  EXPECT_EQ(iou(a, Box{9, 9, 0, 0, frame}, IouRule::pixel_inclusive), 0) << "not valid stays not valid";
  for (const char* name : {"area", "pixel_inclusive", "vlm_r1"}) EXPECT_EQ(iou_rule_name(parse_iou_rule(name)), name);
  EXPECT_THROW(parse_iou_rule("giou"), std::invalid_argument);
  EXPECT_NEAR(overlap_of({a, b}, {b, a}, IouRule::pixel_inclusive).hungarian, 1, 1e-12);
  EXPECT_NEAR(overlap_of({a, b}, {a}, IouRule::pixel_inclusive).union_area, 10.0 / 15, 1e-12);
}

}  // namespace
}  // namespace thinkvg::grounding
