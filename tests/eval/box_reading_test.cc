#include "thinkvg/eval/box_reading.h"

#include <gtest/gtest.h>

#include <array>
#include <optional>
#include <string>
#include <vector>

#include "thinkvg/core/error.h"
#include "thinkvg/core/random.h"
#include "thinkvg/grounding/geometry.h"
#include "thinkvg/grounding/response.h"

namespace thinkvg::eval {
namespace {

using grounding::Box;
using grounding::BoxFrame;
using grounding::BoxOrder;
using grounding::ImageSize;

// Questions with one reference box each in letterbox-336, and predictions that are the references,
// written in another frame or order.
class BoxReadingTest : public ::testing::Test {
 protected:
  std::optional<LikelierReading> look(const BoxReading& written, const BoxFrame& as_read, std::size_t count = 40,
                                      bool sizes_known = true) {
    RandomStream random({7});
    const grounding::ImageGeometry geometry(picture_);
    samples_.assign(count, {});
    scores_.assign(count, {});
    std::vector<SizedQuestion> questions;
    for (std::size_t i = 0; i < count; ++i) {
      data::Sample& sample = samples_[i];
      sample.frame = BoxFrame::letterbox(336);
      const double x = random.uniform(60, 200), y = random.uniform(40, 200);
      const Box box{x, y, x + random.uniform(40, 80), y + random.uniform(40, 80), sample.frame};
      sample.regions = {{"left lung", box}};
      Box said = geometry.convert(box, written.frame);
      std::array<double, 4> numbers = {said.x1, said.y1, said.x2, said.y2};
      if (written.order == BoxOrder::xywh) numbers = {said.x1, said.y1, said.x2 - said.x1, said.y2 - said.y1};
      if (written.order == BoxOrder::yxyx) numbers = {said.y1, said.x1, said.y2, said.x2};
      const std::string text = fmt::format(
          "<response><answer>yes</answer><location><ref>left lung</ref><box>[{}, {}, {}, {}]</box>"
          "</location></response>",
          numbers[0], numbers[1], numbers[2], numbers[3]);
      scores_[i] = score_question({sample, text, as_read, geometry}, {});
    }
    for (std::size_t i = 0; i < count; ++i)
      questions.push_back({samples_[i], scores_[i], sizes_known ? std::optional(picture_) : std::nullopt});
    return likelier_reading(questions, as_read);
  }

  ImageSize picture_{2544, 3056};
  std::vector<data::Sample> samples_;
  std::vector<QuestionScore> scores_;
};

TEST_F(BoxReadingTest, FindsTheFrameThatWasMeant) {
  const BoxFrame own = BoxFrame::letterbox(336);
  for (const BoxFrame& frame : {BoxFrame::thousand(), BoxFrame::unit(), BoxFrame::hundred(), BoxFrame::original(),
                                BoxFrame::letterbox(224), BoxFrame::stretch(448, 448)}) {
    const auto found = look({frame, BoxOrder::xyxy}, own);
    ASSERT_TRUE(found) << frame.name();
    EXPECT_EQ(found->reading.frame, frame);
    EXPECT_EQ(found->reading.order, BoxOrder::xyxy);
    EXPECT_NEAR(found->v_score, 1, 1e-6);
    EXPECT_LT(found->v_score_as_read, 0.8);
    EXPECT_EQ(found->num_questions, 40);
  }
}

TEST_F(BoxReadingTest, FindsTheOrderThatWasMeant) {
  const BoxFrame own = BoxFrame::letterbox(336);
  for (const BoxOrder order : {BoxOrder::xywh, BoxOrder::yxyx}) {
    const auto found = look({own, order}, own);
    ASSERT_TRUE(found);
    EXPECT_EQ(found->reading, (BoxReading{own, order}));
    EXPECT_NEAR(found->v_score, 1, 1e-6);
  }
}

TEST_F(BoxReadingTest, WithoutSizesTheScaleIsStillSeen) {
  picture_ = {2900, 3056};  // nearly the square that is taken then
  const auto found = look({BoxFrame::thousand(), BoxOrder::xyxy}, BoxFrame::letterbox(336), 40, false);
  ASSERT_TRUE(found);
  EXPECT_EQ(found->reading.frame, BoxFrame::thousand());
  EXPECT_GT(found->v_score, 0.8);
  EXPECT_LT(found->v_score, 1);
}

TEST_F(BoxReadingTest, SaysNothingWhereNothingIsWrongOrKnown) {
  const BoxReading own{BoxFrame::letterbox(336), BoxOrder::xyxy};
  EXPECT_FALSE(look(own, own.frame));
  EXPECT_FALSE(look({BoxFrame::thousand(), BoxOrder::xyxy}, own.frame, 4)) << "too few";
  EXPECT_FALSE(likelier_reading({}, own.frame));
}

TEST_F(BoxReadingTest, LargeSetsAreLookedAtInPart) {
  const auto found = look({BoxFrame::thousand(), BoxOrder::xyxy}, BoxFrame::letterbox(336), 1100);
  ASSERT_TRUE(found);
  EXPECT_LE(found->num_questions, 500);
  EXPECT_GE(found->num_questions, 300);
}

}  // namespace
}  // namespace thinkvg::eval
