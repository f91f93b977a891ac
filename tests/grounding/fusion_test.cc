#include "thinkvg/grounding/fusion.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "thinkvg/core/json.h"

namespace thinkvg::grounding {
namespace {

using Row = std::array<double, 6>;  // -score, label, box

// By score, label and place: numpy leaves the order of equal scores open.
void sort_rows(std::vector<Row>& rows) {
  std::sort(rows.begin(), rows.end(), [](const Row& a, const Row& b) {
    if (std::abs(a[0] - b[0]) > 1e-5) return a[0] < b[0];
    if (a[1] != b[1]) return a[1] < b[1];
    return a[2] < b[2];
  });
}

TEST(FusionParity, BoxesEqualEnsembleBoxes) {
  const Json stored = read_json_file(THINKVG_TEST_DATA "/grounding/fusion.json");
  ASSERT_GE(stored["cases"].size(), 40u);
  std::size_t num_fused = 0;
  for (const Json& entry : stored["cases"]) {
    std::vector<std::vector<ScoredBox>> sources;
    for (std::size_t s = 0; s < entry["boxes"].size(); ++s) {
      auto& source = sources.emplace_back();
      for (std::size_t i = 0; i < entry["boxes"][s].size(); ++i) {
        const auto b = entry["boxes"][s][i].get<std::vector<double>>();
        source.push_back({{b[0], b[1], b[2], b[3], BoxFrame::unit()},
                          std::to_string(entry["labels"][s][i].get<int>()),
                          entry["scores"][s][i].get<double>()});
      }
    }
    const auto fused = fuse_boxes(sources, {entry["threshold"].get<double>(), 0});
    ASSERT_EQ(fused.size(), entry["fused"].size()) << entry.dump();
    num_fused += fused.size();
    std::vector<Row> got, expected;
    for (const ScoredBox& box : fused) {
      got.push_back({-box.score, std::stod(box.label), box.box.x1, box.box.y1, box.box.x2, box.box.y2});
    }
    for (const Json& row : entry["fused"]) {
      const auto v = row.get<std::vector<double>>();
      expected.push_back({-v[5], v[4], v[0], v[1], v[2], v[3]});
    }
    EXPECT_TRUE(std::is_sorted(got.begin(), got.end(), [](const Row& a, const Row& b) { return a[0] < b[0]; }));
    sort_rows(got);
    sort_rows(expected);
    for (std::size_t i = 0; i < got.size(); ++i) {
      // The library keeps the boxes of a cluster in single precision.
      for (std::size_t k = 0; k < got[i].size(); ++k) EXPECT_NEAR(got[i][k], expected[i][k], 2e-6) << entry.dump();
    }
  }
  EXPECT_GT(num_fused, 60u);
}

TEST(Fusion, LeavesOutWhatIsNoBoxAndChecksItsCall) {
  const BoxFrame frame = BoxFrame::original();
  const ScoredBox good{{0, 0, 10, 10, frame}, "nodule", 1}, reversed{{10, 0, 0, 10, frame}, "nodule", 1};
  const auto fused = fuse_boxes({{good, reversed}, {good}, {}});
  ASSERT_EQ(fused.size(), 1u);
  EXPECT_DOUBLE_EQ(fused[0].score, 2.0 / 3) << "two of three readers";
  EXPECT_EQ(fused[0].box, good.box);
  EXPECT_TRUE(fuse_boxes({}).empty());
  EXPECT_THROW(fuse_boxes({{good}}, {1.5, 0}), std::invalid_argument);
  const ScoredBox elsewhere{{0, 0, 1, 1, BoxFrame::unit()}, "nodule", 1};
  EXPECT_THROW(fuse_boxes({{good}, {elsewhere}}), std::invalid_argument);
}

}  // namespace
}  // namespace thinkvg::grounding
