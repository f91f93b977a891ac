#include "thinkvg/grounding/box.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "thinkvg/core/json.h"
#include "thinkvg/core/random.h"

namespace thinkvg::grounding {
namespace {

using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

Box random_box(RandomStream& random, double extent) {
  const double x1 = random.uniform(0, extent), x2 = random.uniform(0, extent);
  const double y1 = random.uniform(0, extent), y2 = random.uniform(0, extent);
  return {std::min(x1, x2), std::min(y1, y2), std::max(x1, x2), std::max(y1, y2), BoxFrame::letterbox(336)};
}

TEST(BoxFrame, NamesRoundTrip) {
  for (const char* name : {"original", "letterbox-224", "letterbox-336", "stretch-448", "stretch-640x480", "unit",
                           "hundred", "thousand"}) {
    EXPECT_EQ(BoxFrame::parse(name).name(), name);
  }
  EXPECT_EQ(BoxFrame::parse("stretch-64x64").name(), "stretch-64");
  EXPECT_EQ(BoxFrame::parse("letterbox-336"), BoxFrame::letterbox(336));
  EXPECT_NE(BoxFrame::stretch(336, 336), BoxFrame::letterbox(336));
}

TEST(BoxFrame, UnknownNamesListTheKnownOnes) {
  for (const char* name : {"", "pixels", "letterbox", "letterbox-", "letterbox-0", "letterbox--3", "letterbox-3.5",
                           "letterbox-99999999999999999999", "stretch-3x", "stretch-x3", "unit-1", "Original"}) {
    EXPECT_THAT([&] { BoxFrame::parse(name); },
                ThrowsMessage<std::invalid_argument>(HasSubstr("letterbox-N, stretch-N")))
        << name;
  }
}

TEST(Box, Validity) {
  EXPECT_TRUE((Box{0, 0, 1, 1, {}}.is_valid()));
  EXPECT_TRUE((Box{-5, -5, -1, -1, {}}.is_valid()));
  EXPECT_FALSE((Box{1, 0, 1, 1, {}}.is_valid()));
  EXPECT_FALSE((Box{2, 0, 1, 1, {}}.is_valid()));
  EXPECT_FALSE((Box{0, 3, 1, 1, {}}.is_valid()));
  EXPECT_FALSE((Box{kNan, 0, 1, 1, {}}.is_valid()));
  EXPECT_FALSE((Box{0, 0, kInfinity, 1, {}}.is_valid()));
  EXPECT_EQ((Box{0, 0, 2, 3, {}}.area()), 6);
  EXPECT_EQ((Box{2, 0, 0, 3, {}}.area()), 0);
}

TEST(Iou, KnownValues) {
  const Box a{0, 0, 10, 10, {}};
  EXPECT_EQ(iou(a, a), 1);
  EXPECT_DOUBLE_EQ(iou(a, {5, 0, 15, 10, {}}), 1.0 / 3);
  EXPECT_DOUBLE_EQ(iou(a, {2, 2, 4, 4, {}}), 0.04);
  EXPECT_EQ(iou(a, {10, 0, 20, 10, {}}), 0) << "a shared edge is no overlap";
  EXPECT_EQ(iou(a, {20, 20, 30, 30, {}}), 0);
  EXPECT_EQ(iou(a, {10, 10, 0, 0, {}}), 0) << "reversed";
  EXPECT_EQ(iou(a, {0, 0, kNan, 10, {}}), 0);
  EXPECT_EQ(iou({3, 3, 3, 3, {}}, {3, 3, 3, 3, {}}), 0) << "empty boxes";
}

TEST(Iou, ExtremeNumbersStayInRange) {
  const Box huge{-1e308, -1e308, 1e308, 1e308, {}};
  EXPECT_EQ(iou(huge, huge), 1);
  EXPECT_NEAR(iou({0, 0, 1e308, 1e308, {}}, huge), 0.25, 1e-12);
  EXPECT_EQ(iou({0, 0, 10, 10, {}}, huge), 0);
  const Box tiny{0, 0, 1e-300, 1e-300, {}};
  EXPECT_EQ(iou(tiny, tiny), 1);
  EXPECT_NEAR(iou({0, 0, 1e300, 1e-300, {}}, {0, 0, 1e300, 2e-300, {}}), 0.5, 1e-12);
}

TEST(Iou, FramesMustAgree) {
  EXPECT_THAT(
      [] {
        iou({0, 0, 1, 1, BoxFrame::letterbox(336)}, {0, 0, 1, 1, BoxFrame::letterbox(224)});
      },
      ThrowsMessage<std::invalid_argument>(HasSubstr("'letterbox-336' and 'letterbox-224'")));
}

TEST(Iou, IsSymmetricAndBounded) {
  RandomStream random({11});
  for (int i = 0; i < 500; ++i) {
    const Box a = random_box(random, 336), b = random_box(random, 336);
    EXPECT_EQ(iou(a, b), iou(b, a));
    EXPECT_GE(iou(a, b), 0);
    EXPECT_LE(iou(a, b), 1);
    EXPECT_EQ(iou(a, a), 1);
  }
}

TEST(MultiBoxRule, NamesRoundTrip) {
  for (const char* name : {"paired", "hungarian", "union", "best"}) {
    EXPECT_EQ(multi_box_rule_name(parse_multi_box_rule(name)), name);
  }
  EXPECT_THAT([] { parse_multi_box_rule("greedy"); },
              ThrowsMessage<std::invalid_argument>(HasSubstr("paired, hungarian, union, best")));
}

TEST(MatchBoxes, EveryRuleAgreesOnTheEdges) {
  const std::vector<Box> some = {{0, 0, 10, 10, {}}, {20, 0, 30, 10, {}}};
  for (MultiBoxRule rule :
       {MultiBoxRule::paired, MultiBoxRule::hungarian, MultiBoxRule::union_area, MultiBoxRule::best}) {
    EXPECT_EQ(match_boxes({}, {}, rule), 1);
    EXPECT_EQ(match_boxes(some, {}, rule), 0);
    EXPECT_EQ(match_boxes({}, some, rule), 0);
    EXPECT_EQ(match_boxes(some, some, rule), 1);
    EXPECT_EQ(match_boxes({{10, 10, 0, 0, {}}, {kNan, 0, 1, 1, {}}}, some, rule), 0);
    EXPECT_THROW(match_boxes({{0, 0, 1, 1, BoxFrame::unit()}, {0, 0, 1, 1, BoxFrame::unit()}}, some, rule),
                 std::invalid_argument);
  }
}

TEST(MatchBoxes, RulesDifferWhereTheyShould) {
  const Box a{0, 0, 10, 10, {}}, b{20, 0, 30, 10, {}}, half_a{0, 0, 10, 5, {}};
  // Order.
  EXPECT_EQ(match_boxes({b, a}, {a, b}, MultiBoxRule::paired), 0);
  EXPECT_EQ(match_boxes({b, a}, {a, b}, MultiBoxRule::hungarian), 1);
  // Count.
  EXPECT_EQ(match_boxes({a}, {a, b}, MultiBoxRule::paired), 0);
  EXPECT_EQ(match_boxes({a}, {a, b}, MultiBoxRule::hungarian), 0.5);
  EXPECT_EQ(match_boxes({a}, {a, b}, MultiBoxRule::union_area), 0.5);
  EXPECT_EQ(match_boxes({a}, {a, b}, MultiBoxRule::best), 0.5);
  EXPECT_DOUBLE_EQ(match_boxes({a, b, b}, {a, b}, MultiBoxRule::hungarian), 2.0 / 3);
  EXPECT_EQ(match_boxes({a, b, b}, {a, b}, MultiBoxRule::union_area), 1);
  EXPECT_EQ(match_boxes({a, b, b}, {a, b}, MultiBoxRule::best), 1);
  // One box split in two.
  EXPECT_EQ(match_boxes({half_a, {0, 5, 10, 10, {}}}, {a}, MultiBoxRule::union_area), 1);
  EXPECT_EQ(match_boxes({half_a, {0, 5, 10, 10, {}}}, {a}, MultiBoxRule::hungarian), 0.25);
}

TEST(MatchBoxes, HungarianIsNotGreedy) {
  // Greedy takes the best pair (0.9-ish with the outer box) and strands the other reference.
  const Box lung{0, 0, 10, 20, {}}, zone{0, 10, 10, 20, {}};
  const Box first{0, 2, 10, 20, {}}, second{0, 0, 10, 11, {}};
  const double good = (iou(first, zone) + iou(second, lung)) / 2, greedy = (iou(first, lung) + iou(second, zone)) / 2;
  EXPECT_GT(iou(first, lung), iou(first, zone));
  EXPECT_GT(good, greedy);
  EXPECT_DOUBLE_EQ(match_boxes({first, second}, {lung, zone}, MultiBoxRule::hungarian), good);
}

// Coordinate compression: every cell of the grid of all edges lies wholly inside or outside each box.
double union_iou_by_grid(const std::vector<Box>& a, const std::vector<Box>& b) {
  std::set<double> xs, ys;
  for (const auto* boxes : {&a, &b}) {
    for (const Box& box : *boxes) {
      xs.insert({box.x1, box.x2});
      ys.insert({box.y1, box.y2});
    }
  }
  const auto covers = [](const std::vector<Box>& boxes, double x, double y) {
    return std::any_of(boxes.begin(), boxes.end(),
                       [&](const Box& box) { return box.x1 < x && x < box.x2 && box.y1 < y && y < box.y2; });
  };
  double both = 0, either = 0;
  for (auto x = xs.begin(); std::next(x) != xs.end(); ++x) {
    for (auto y = ys.begin(); std::next(y) != ys.end(); ++y) {
      const double area = (*std::next(x) - *x) * (*std::next(y) - *y);
      const double mid_x = (*x + *std::next(x)) / 2, mid_y = (*y + *std::next(y)) / 2;
      const bool in_a = covers(a, mid_x, mid_y), in_b = covers(b, mid_x, mid_y);
      both += in_a && in_b ? area : 0;
      either += in_a || in_b ? area : 0;
    }
  }
  return either > 0 ? both / either : 0;
}

TEST(MatchBoxes, UnionEqualsCoordinateCompression) {
  RandomStream random({12});
  for (int round = 0; round < 300; ++round) {
    std::vector<Box> a, b;
    const bool whole = round % 2 == 0;  // shared edges and repeated boxes
    for (auto* boxes : {&a, &b}) {
      const std::int64_t count = random.between(1, 7);
      for (std::int64_t i = 0; i < count; ++i) {
        Box box = random_box(random, whole ? 12 : 336);
        if (whole) box = {std::floor(box.x1), std::floor(box.y1), std::ceil(box.x2), std::ceil(box.y2), box.frame};
        boxes->push_back(box);
      }
    }
    EXPECT_NEAR(match_boxes(a, b, MultiBoxRule::union_area), union_iou_by_grid(a, b), 1e-12);
    EXPECT_EQ(match_boxes(a, a, MultiBoxRule::union_area), 1);
  }
}

TEST(MatchBoxes, PermutationsChangeOnlyThePairedRule) {
  RandomStream random({13});
  for (int round = 0; round < 100; ++round) {
    std::vector<Box> a, b;
    for (int i = 0; i < 5; ++i) a.push_back(random_box(random, 336));
    for (int i = 0; i < 4; ++i) b.push_back(random_box(random, 336));
    std::vector<Box> shuffled = a;
    random.shuffle(shuffled);
    for (MultiBoxRule rule : {MultiBoxRule::hungarian, MultiBoxRule::union_area, MultiBoxRule::best}) {
      EXPECT_NEAR(match_boxes(a, b, rule), match_boxes(shuffled, b, rule), 1e-12) << multi_box_rule_name(rule);
    }
  }
}

TEST(AssignMaximum, BadCallsAreErrors) {
  EXPECT_THROW(assign_maximum({1, 2, 3}, 2, 2), std::invalid_argument);
  EXPECT_THROW(assign_maximum({1, kNan}, 1, 2), std::invalid_argument);
  EXPECT_TRUE(assign_maximum({}, 0, 5).empty());
  EXPECT_EQ(assign_maximum({}, 3, 0), (std::vector<std::int64_t>{-1, -1, -1}));
}

TEST(AssignMaximumParity, TotalsEqualScipys) {
  const Json stored = read_json_file(THINKVG_TEST_DATA "/grounding/assignment.json");
  ASSERT_GE(stored["cases"].size(), 40u);
  for (const Json& entry : stored["cases"]) {
    const auto rows = entry["rows"].get<std::int64_t>(), columns = entry["columns"].get<std::int64_t>();
    const auto score = entry["score"].get<std::vector<double>>();
    const auto assigned = assign_maximum(score, rows, columns);
    ASSERT_EQ(static_cast<std::int64_t>(assigned.size()), rows);
    double total = 0;
    std::set<std::int64_t> used;
    for (std::int64_t row = 0; row < rows; ++row) {
      if (assigned[row] < 0) continue;
      ASSERT_LT(assigned[row], columns);
      EXPECT_TRUE(used.insert(assigned[row]).second) << "a column is used twice";
      total += score[row * columns + assigned[row]];
    }
    EXPECT_EQ(static_cast<std::int64_t>(used.size()), std::min(rows, columns));
    EXPECT_NEAR(total, entry["total"].get<double>(), 1e-9) << entry["kind"] << " " << rows << "x" << columns;
  }
}

}  // namespace
}  // namespace thinkvg::grounding
