#include "thinkvg/eval/detection.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace thinkvg::eval {
namespace {

using grounding::BoxFrame;
using grounding::ScoredBox;
using ::testing::AllOf;
using ::testing::HasSubstr;

ScoredBox scored(const Json& row) {
  const double score = row.size() > 5 ? row[5].get<double>() : 1.0;
  return {
      {row[0].get<double>(), row[1].get<double>(), row[2].get<double>(), row[3].get<double>(), BoxFrame::original()},
      std::to_string(row[4].get<int>()),
      score};
}

TEST(DetectionParity, AveragePrecisionEqualsPycocotools) {
  const Json stored = read_json_file(THINKVG_TEST_DATA "/eval/detection.json");
  ASSERT_GE(stored["cases"].size(), 12u);
  for (const Json& entry : stored["cases"]) {
    std::vector<DetectionImage> images;
    for (const Json& row : entry["images"]) {
      DetectionImage& image = images.emplace_back();
      for (const Json& box : row["predicted"]) image.predicted.push_back(scored(box));
      for (const Json& box : row["reference"]) image.reference.push_back(scored(box));
    }
    SCOPED_TRACE(entry["kind"].get<std::string>() + ", pictures: " + std::to_string(images.size()));
    const AveragePrecision result = average_precision(images);
    EXPECT_NEAR(result.ap, entry["ap"].get<double>(), 1e-9);
    EXPECT_NEAR(result.at.at("0.50"), entry["ap50"].get<double>(), 1e-9);
    EXPECT_NEAR(result.at.at("0.75"), entry["ap75"].get<double>(), 1e-9);
    EXPECT_NEAR(result.recall, entry["recall"].get<double>(), 1e-9);
    ASSERT_EQ(result.by_label.size(), entry["by_label"].size());
    for (const auto& [label, value] : entry["by_label"].items()) {
      EXPECT_NEAR(result.by_label.at(label), value.get<double>(), 1e-9) << label;
    }
  }
}

TEST(Detection, NoReferenceIsNoScore) {
  EXPECT_EQ(average_precision({}).ap, -1);
  const ScoredBox box{{0, 0, 10, 10, BoxFrame::original()}, "nodule", 0.5};
  EXPECT_EQ(average_precision({{{box}, {}}}).ap, -1);
  EXPECT_EQ(average_precision({{{}, {box}}}).ap, 0);
  EXPECT_NEAR(detection_to_json(average_precision({{{box}, {box}}}))["at"]["0.95"].get<double>(), 1, 1e-12);
}

TEST(Detection, FurtherThresholdsAreToldAndNotAveraged) {
  const BoxFrame frame = BoxFrame::original();
  // IoU 0.45: found at 0.40, at no threshold of the mean.
  const ScoredBox reference{{0, 0, 100, 100, frame}, "nodule", 1}, predicted{{0, 0, 100, 45, frame}, "nodule", 1};
  const AveragePrecision result = average_precision({{{predicted}, {reference}}});
  EXPECT_EQ(result.ap, 0);
  EXPECT_EQ(result.by_label.at("nodule"), 0);
  EXPECT_EQ(result.at.at("0.50"), 0);
  EXPECT_NEAR(result.at.at("0.40"), 1, 1e-9);
  EXPECT_THAT(detection_to_table(result), AllOf(HasSubstr("at IoU 0.40 1.000, at IoU 0.50 0.000"), HasSubstr("nodule"),
                                                HasSubstr("1 reference boxes")));
  EXPECT_THAT(detection_to_table(average_precision({})), HasSubstr("no reference boxes"));
}

TEST(Detection, WrongCallsAreErrors) {
  const ScoredBox box{{0, 0, 10, 10, BoxFrame::original()}, "nodule", 1};
  const ScoredBox other{{0, 0, 10, 10, BoxFrame::unit()}, "nodule", 1};
  EXPECT_THROW(average_precision({{{box}, {other}}}), std::invalid_argument);
  EXPECT_THROW(average_precision({}, {{}, 100}), std::invalid_argument);
  EXPECT_THROW(average_precision({}, {{0.5}, 0}), std::invalid_argument);
}

}  // namespace
}  // namespace thinkvg::eval
