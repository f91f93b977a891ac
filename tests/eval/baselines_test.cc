#include "thinkvg/eval/baselines.h"

#include <gtest/gtest.h>

#include "thinkvg/grounding/response.h"

namespace thinkvg::eval {
namespace {

using data::QuestionType;
using data::Sample;
using grounding::BoxFrame;

std::vector<Sample> samples_of(int count) {
  std::vector<Sample> samples;
  for (int i = 0; i < count; ++i) {
    Sample sample;
    sample.id = std::to_string(i);
    sample.image = "p" + std::to_string(i / 4);
    sample.type = i % 2 == 0 ? QuestionType::closed : QuestionType::multi_choice;
    // 3 of 5 closed questions are "no", written in two ways.
    sample.answer = i % 2 == 0 ? (i % 10 < 4   ? "yes"
                                  : i % 10 < 6 ? "No."
                                               : "no")
                               : (i % 3 == 0 ? "['A', 'C']" : "C, A");
    sample.choices = {"A: a", "B: b", "C: c"};
    sample.frame = BoxFrame::letterbox(336);
    const double size = 20 + i % 7;
    sample.regions = {{"left lung", {10, 10, 10 + size, 10 + 2 * size, sample.frame}}};
    if (i % 5 == 0) sample.regions.push_back({"spine", {100, 100, 130, 140, sample.frame}});
    samples.push_back(sample);
  }
  return samples;
}

TEST(Baselines, MajorityAnswerCountsMeaningsNotSpellings) {
  const std::vector<Sample> samples = samples_of(40);
  const auto responses = baseline_responses(samples, Baseline::majority_answer, 0);
  const Json json = baselines_to_json(samples, {});
  EXPECT_EQ(grounding::parse_response(responses[0], samples[0].frame, false).answer, "No.");
  EXPECT_DOUBLE_EQ(json["majority_answer"]["a_score"]["by_type"]["closed"].get<double>(), 0.6);
  EXPECT_DOUBLE_EQ(json["majority_answer"]["a_score"]["by_type"]["multi_choice"].get<double>(), 1.0);
  EXPECT_FALSE(json["majority_answer"].contains("v_score"));
}

TEST(Baselines, RandomBoxesHaveTheReferencesSizesAndLieInTheFrame) {
  const std::vector<Sample> samples = samples_of(400);
  const auto responses = baseline_responses(samples, Baseline::random_boxes, 3);
  EXPECT_EQ(responses, baseline_responses(samples, Baseline::random_boxes, 3));
  EXPECT_NE(responses, baseline_responses(samples, Baseline::random_boxes, 4));
  double boxes = 0, width = 0, expected_boxes = 0, expected_width = 0;
  for (std::size_t i = 0; i < samples.size(); ++i) {
    const auto parsed = grounding::parse_response(responses[i], samples[i].frame, false);
    ASSERT_FALSE(parsed.regions.empty());
    for (const auto& region : parsed.regions) {
      EXPECT_GE(region.box.x1, 0);
      EXPECT_LE(region.box.x2, 337);  // written in whole numbers
      EXPECT_LE(region.box.y2, 337);
      width += region.box.x2 - region.box.x1;
      ++boxes;
    }
    for (const auto& region : samples[i].regions) {
      expected_width += region.box.x2 - region.box.x1;
      ++expected_boxes;
    }
  }
  EXPECT_NEAR(boxes / expected_boxes, 1, 0.1);
  EXPECT_NEAR(width / boxes, expected_width / expected_boxes, 1.0);
  const Json json = baselines_to_json(samples, {});
  EXPECT_LT(json["random_boxes"]["v_score"]["overall"].get<double>(), 0.1);
  EXPECT_GT(json["random_boxes"]["v_score"]["overall"].get<double>(), 0.0);
}

TEST(Baselines, SetsWithoutBoxesOrQuestions) {
  EXPECT_TRUE(baselines_to_json({}, {})["majority_answer"].is_object());
  std::vector<Sample> samples = samples_of(4);
  for (Sample& sample : samples) sample.regions.clear();
  EXPECT_FALSE(baselines_to_json(samples, {})["random_boxes"].contains("v_score"));
}

}  // namespace
}  // namespace thinkvg::eval
