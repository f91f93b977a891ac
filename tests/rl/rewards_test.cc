#include "thinkvg/rl/rewards.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "thinkvg/core/random.h"

namespace thinkvg::rl {
namespace {

using data::QuestionType;
using data::Sample;
using grounding::Box;
using grounding::BoxFrame;
using grounding::ImageGeometry;
using grounding::Region;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

const BoxFrame kFrame = BoxFrame::letterbox(336);

Sample make_sample(QuestionType type, const std::string& answer, const std::vector<Box>& boxes) {
  Sample sample;
  sample.id = "1";
  sample.type = type;
  sample.answer = answer;
  sample.frame = kFrame;
  if (type == QuestionType::single_choice || type == QuestionType::multi_choice) {
    sample.choices = {"A: left lung", "B: right lung", "C: heart", "D: spine"};
  }
  for (const Box& box : boxes) sample.regions.push_back({"left lung", box});
  return sample;
}

Box box(double x1, double y1, double x2, double y2) { return {x1, y1, x2, y2, kFrame}; }

RewardScore score(const std::string& name, const Sample& sample, const std::string& text,
                  const RewardOptions& options = {}, const BoxFrame& frame = kFrame, bool truncated = false) {
  const auto parsed = grounding::parse_response(text, frame, false);
  const ImageGeometry geometry({3056, 2544});
  return make_reward(name, options)->score({sample, parsed, geometry, text, truncated});
}

std::string answered(const std::string& answer) { return grounding::format_response(answer, {}); }

std::string located(const std::string& boxes) {
  return "<response><answer>yes</answer><location><ref>a</ref>" + boxes + "</location></response>";
}

TEST(Rewards, RegistryIsReadable) {
  EXPECT_EQ(reward_names(), (std::vector<std::string>{"answer", "grounding", "format"}));
  for (const std::string& name : reward_names()) EXPECT_EQ(make_reward(name, {})->name(), name);
  EXPECT_THAT([] { make_reward("grouding", {}); },
              ThrowsMessage<std::invalid_argument>(HasSubstr("did you mean 'grounding'")));
}

TEST(Rewards, BadOptionsAreErrors) {
  RewardOptions options;
  options.multi_choice = "some";
  EXPECT_THROW(make_reward("answer", options), std::invalid_argument);
  options = {};
  options.open_threshold = 1.5;
  EXPECT_THROW(make_reward("answer", options), std::invalid_argument);
  options = {};
  options.grounding_threshold = std::numeric_limits<double>::quiet_NaN();
  EXPECT_THROW(make_reward("grounding", options), std::invalid_argument);
  options = {};
  options.box_rule = "union";
  EXPECT_THAT([&] { make_reward("grounding", options); },
              ThrowsMessage<std::invalid_argument>(HasSubstr("'hungarian' or 'paired'")));
  options.box_rule = "hungarian";
  options.answer_reading = "vague";
  EXPECT_THROW(make_reward("answer", options), std::invalid_argument);
}

TEST(Rewards, OptionsAreSettings) {
  RewardOptions options;
  assign_setting(options, "multi_choice", "partial");
  assign_setting(options, "grounding_threshold", "0");
  EXPECT_EQ(options.multi_choice, "partial");
  EXPECT_EQ(options.grounding_threshold, 0);
}

TEST(Rewards, ReferencesScoreOne) {
  const std::vector<Sample> samples = {
      make_sample(QuestionType::closed, "yes", {box(1, 2, 30, 40)}),
      make_sample(QuestionType::closed, "No.", {box(1, 2, 30, 40), box(50, 60, 70, 80)}),
      make_sample(QuestionType::single_choice, "B", {box(100, 2, 300, 40)}),
      make_sample(QuestionType::multi_choice, "A, C", {box(1, 2, 30, 40), box(1, 2, 30, 40)}),
      make_sample(QuestionType::multi_choice, "['A', 'C']", {box(1, 2, 30, 40)}),
      make_sample(QuestionType::open, "The heart is enlarged.", {box(1, 2, 30, 40), box(5, 6, 300, 320)}),
  };
  for (double threshold : {0.0, 0.75, 1.0}) {
    RewardOptions options;
    options.grounding_threshold = options.open_threshold = threshold;
    for (const char* rule : {"hungarian", "paired"}) {
      options.box_rule = rule;
      for (const Sample& sample : samples) {
        const std::string text = grounding::format_response(sample.answer, sample.regions);
        for (const std::string& name : reward_names()) {
          const RewardScore got = score(name, sample, text, options);
          EXPECT_EQ(got.value, 1) << name << " " << text << ": " << got.reason;
          EXPECT_TRUE(got.applicable);
          EXPECT_EQ(got.reason, "");
        }
      }
    }
  }
}

TEST(AnswerReward, Table) {
  struct Case {
    QuestionType type;
    const char *reference, *answer;
    double exact, partial;
  };
  const std::vector<Case> cases = {
      {QuestionType::closed, "no", "no", 1, 1},
      {QuestionType::closed, "no", "No.", 1, 1},
      {QuestionType::closed, "no", "normal", 0, 0},
      {QuestionType::closed, "no", "yes", 0, 0},
      {QuestionType::closed, "yes", "yes no", 0, 0},
      {QuestionType::single_choice, "B", "B", 1, 1},
      {QuestionType::single_choice, "B", "B: right lung", 1, 1},
      {QuestionType::single_choice, "B", "A", 0, 0},
      {QuestionType::single_choice, "B", "A, B", 0, 0},
      {QuestionType::single_choice, "B", "right lung", 0, 0},
      {QuestionType::multi_choice, "A, C", "C, A", 1, 1},
      {QuestionType::multi_choice, "A, C", "A", 0, 0.5},
      {QuestionType::multi_choice, "A, C", "A, B, C, D", 0, 0.5},
      {QuestionType::multi_choice, "A, C", "B", 0, 0},
      {QuestionType::multi_choice, "A, C", "A, A, A, C", 1, 1},
      {QuestionType::open, "heart is enlarged", "the heart is enlarged", 1, 1},
      {QuestionType::open, "heart is enlarged", "the heart is normal", 1, 1},
      {QuestionType::open, "heart is enlarged", "lung", 0, 0},
  };
  for (const Case& test : cases) {
    const Sample sample = make_sample(test.type, test.reference, {});
    RewardOptions options;
    const RewardScore exact = score("answer", sample, answered(test.answer), options);
    EXPECT_DOUBLE_EQ(exact.value, test.exact) << test.answer;
    EXPECT_EQ(exact.reason.empty(), exact.value == 1) << test.answer;
    options.multi_choice = "partial";
    EXPECT_DOUBLE_EQ(score("answer", sample, answered(test.answer), options).value, test.partial) << test.answer;
  }
}

TEST(AnswerReward, OpenThreshold) {
  const Sample sample = make_sample(QuestionType::open, "heart is enlarged", {});
  RewardOptions options;
  options.open_threshold = 0;
  EXPECT_DOUBLE_EQ(score("answer", sample, answered("heart is normal"), options).value, 2.0 / 3);
  options.open_threshold = 0.7;
  EXPECT_EQ(score("answer", sample, answered("heart is normal"), options).value, 0);
}

TEST(AnswerReward, LenientReading) {
  RewardOptions options;
  const Sample sample = make_sample(QuestionType::single_choice, "B", {});
  EXPECT_EQ(score("answer", sample, answered("The answer is B"), options).value, 0);
  options.answer_reading = "lenient";
  EXPECT_EQ(score("answer", sample, answered("The answer is B"), options).value, 1);
  EXPECT_EQ(score("answer", sample, answered("right lung"), options).value, 1);
}

TEST(GroundingReward, Table) {
  const Sample one = make_sample(QuestionType::closed, "yes", {box(0, 0, 100, 100)});
  const Sample two = make_sample(QuestionType::closed, "yes", {box(0, 0, 100, 100), box(200, 0, 300, 100)});
  struct Case {
    const Sample& sample;
    const char* boxes;
    double raw, hard;
  };
  const std::vector<Case> cases = {
      {one, "<box>[0, 0, 100, 100]</box>", 1, 1},
      {one, "<box>[0, 0, 100, 75]</box>", 0.75, 1},
      {one, "<box>[0, 0, 100, 74]</box>", 0.74, 0},
      {one, "<box>[150, 0, 250, 100]</box>", 0, 0},
      {one, "<box>[0, 0, 100, 100]</box><box>[0, 0, 100, 100]</box>", 0, 0},
      {one, "<box>[0, 0, 100, 100]</box><box>[1, 1, 2, 2]</box>", 0, 0},
      {one, "<box>[100, 100, 0, 0]</box>", 0, 0},
      {one, "<box>[nan, nan, nan, nan]</box>", 0, 0},
      {one, "<box>[0, 0, 1e308, 1e308]</box>", 0, 0},
      {one, "<box>[-1e308, -1e308, 1e308, 1e308]</box>", 0, 0},
      {one, "<box>[0, 0, 1e309, 100]</box>", 0, 0},
      {one, "<box>[0, 0, 100]</box>", 0, 0},
      {one, "<box>[0, 0, 100, 100]</box><box>[5]</box>", 0, 0},
      {one, "<box></box>", 0, 0},
      {one, "", 0, 0},
      {two, "<box>[0, 0, 100, 100]</box><box>[200, 0, 300, 100]</box>", 1, 1},
      {two, "<box>[200, 0, 300, 100]</box><box>[0, 0, 100, 100]</box>", 1, 1},
      {two, "<box>[0, 0, 100, 100]</box><box>[0, 0, 100, 100]</box>", 0, 0},
      {two, "<box>[0, 0, 100, 100]</box><box>[200, 0, 300, 50]</box>", 0.75, 1},
      {two, "<box>[0, 0, 100, 100]</box>", 0, 0},
  };
  for (const Case& test : cases) {
    const std::string text = test.boxes[0] == 0 ? answered("yes") : located(test.boxes);
    RewardOptions options;
    const RewardScore hard = score("grounding", test.sample, text, options);
    EXPECT_EQ(hard.value, test.hard) << test.boxes;
    EXPECT_EQ(hard.reason.empty(), hard.value == 1) << test.boxes;
    EXPECT_TRUE(hard.applicable);
    options.grounding_threshold = 0;
    EXPECT_NEAR(score("grounding", test.sample, text, options).value, test.raw, 1e-12) << test.boxes;
  }
}

TEST(GroundingReward, PairedRuleMindsTheOrder) {
  const Sample two = make_sample(QuestionType::closed, "yes", {box(0, 0, 100, 100), box(200, 0, 300, 100)});
  RewardOptions options;
  options.box_rule = "paired";
  EXPECT_EQ(score("grounding", two, located("<box>[200, 0, 300, 100]</box><box>[0, 0, 100, 100]</box>"), options).value,
            0);
}

TEST(GroundingReward, NotApplicableWithoutReferenceBoxes) {
  const Sample none = make_sample(QuestionType::closed, "yes", {});
  const RewardScore got = score("grounding", none, located("<box>[0, 0, 100, 100]</box>"));
  EXPECT_FALSE(got.applicable);
  EXPECT_EQ(got.value, 0);
  EXPECT_EQ(got.reason, "the reference has no boxes");
}

TEST(GroundingReward, BoxesOfAnyFrameAreComparedInTheSamples) {
  const ImageGeometry geometry({3056, 2544});
  const Sample sample = make_sample(QuestionType::closed, "yes", {box(51, 190, 140, 281)});
  RewardOptions options;
  options.grounding_threshold = 0;
  for (const char* name : {"original", "letterbox-112", "letterbox-224", "stretch-448", "thousand", "unit"}) {
    const BoxFrame frame = BoxFrame::parse(name);
    const Box written = geometry.rounded(geometry.convert(sample.regions[0].box, frame));
    const std::string text = grounding::format_response("yes", {{"left lung", written}});
    EXPECT_GT(score("grounding", sample, text, options, frame).value, 0.93) << name;
  }
  // The same numbers read in the wrong frame do not score.
  EXPECT_LT(score("grounding", sample, located("<box>[51, 190, 140, 281]</box>"), options, BoxFrame::thousand()).value,
            0.2);
}

TEST(Rewards, IncompleteTextScoresZeroWithItsReason) {
  const Sample sample = make_sample(QuestionType::closed, "yes", {box(0, 0, 100, 100)});
  const std::string text = "<response><answer>yes</answer><location><ref>a</ref><box>[0, 0, 100, 100]";
  for (const std::string& name : reward_names()) {
    const RewardScore got = score(name, sample, text, {}, kFrame, true);
    EXPECT_EQ(got.value, 0) << name;
    EXPECT_EQ(got.reason, "<box> is not closed (cut off at the length limit)") << name;
    EXPECT_EQ(score(name, sample, "").value, 0) << name;
  }
}

TEST(FormatReward, WantsEveryBoxToBeABox) {
  const Sample sample = make_sample(QuestionType::closed, "yes", {box(0, 0, 100, 100)});
  EXPECT_EQ(score("format", sample, located("<box>[1, 2, 3, 4]</box>")).value, 1);
  EXPECT_EQ(score("format", sample, answered("anything")).value, 1);
  EXPECT_EQ(score("format", sample, located("<box>[3, 4, 1, 2]</box>")).value, 0);
  EXPECT_EQ(score("format", sample, located("<box>[3, 4, 1, 2]</box>")).reason, "no box: [3, 4, 1, 2]");
}

TEST(Rewards, RandomTextNeverThrowsAndStaysInRange) {
  const std::vector<std::string> pieces = {
      "<response>",   "<answer>", "yes",    "</answer>",   "<location>",  "<box>", "[1e308, ", "-1e308, ",
      "[0, 0, 9, 9]", "nan]",     "</box>", "</location>", "</response>", "A",     "]"};
  RandomStream random({41});
  const std::vector<Sample> samples = {make_sample(QuestionType::closed, "yes", {box(0, 0, 9, 9)}),
                                       make_sample(QuestionType::multi_choice, "A, C", {}),
                                       make_sample(QuestionType::open, "", {box(5, 5, 5, 5)})};
  for (int round = 0; round < 2000; ++round) {
    std::string text;
    for (std::int64_t i = random.between(0, 14); i > 0; --i) text += pieces[random.below(pieces.size())];
    if (random.chance(0.5))
      text = "<response><answer>yes</answer><location><box>" + text + "</box></location></response>";
    for (const Sample& sample : samples) {
      for (const std::string& name : reward_names()) {
        RewardScore got;
        ASSERT_NO_THROW(got = score(name, sample, text, {}, BoxFrame::thousand())) << text;
        EXPECT_GE(got.value, 0);
        EXPECT_LE(got.value, 1);
      }
    }
  }
}

}  // namespace
}  // namespace thinkvg::rl
