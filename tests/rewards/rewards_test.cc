#include "tests/support/rewards.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <tuple>

#include "thinkvg/core/random.h"
#include "thinkvg/grounding/answer.h"
#include "thinkvg/rewards/reward.h"

namespace thinkvg::rewards {
namespace {

using data::QuestionType;
using data::Sample;
using grounding::Box;
using grounding::BoxFrame;
using grounding::ImageGeometry;
using grounding::Region;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

const BoxFrame kFrame = test::kRewardFrame;
const auto make_sample = test::reward_sample;
const auto box = test::reward_box;

// The rewards that need nothing but the response, its reference and its length.
const std::vector<std::string> kRules = {"answer",      "grounding", "format", "region",    "think_grounding",
                                         "consistency", "length",    "cosine", "repetition"};

RewardOptions with_length(RewardOptions options = {}) {
  options.max_completion_length = 100;
  return options;
}

RewardScore score(const std::string& name, const Sample& sample, const std::string& text,
                  const RewardOptions& options = {}, const BoxFrame& frame = kFrame, bool truncated = false) {
  return test::reward_score(name, {.sample = sample, .text = text, .frame = frame, .truncated = truncated},
                            with_length(options));
}

// With a reasoning that is expected.
RewardScore think_score(const std::string& name, const Sample& sample, const std::string& think,
                        const std::string& response, const RewardOptions& options = {}) {
  return test::reward_score(
      name, {.sample = sample, .text = "<think>" + think + "</think>" + response, .expect_think = true}, options);
}

std::string answered(const std::string& answer) { return grounding::format_response(answer, {}); }

std::string located(const std::string& boxes) {
  return "<response><answer>yes</answer><location><ref>a</ref>" + boxes + "</location></response>";
}

TEST(Rewards, RegistryIsReadable) {
  std::vector<std::string> expected = kRules;
  expected.emplace_back("judge");
  EXPECT_EQ(reward_names(), expected);
  for (const std::string& name : kRules) EXPECT_EQ(make_reward(name, with_length())->name(), name);
  EXPECT_THAT([] { make_reward("groundign", {}); },
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
  for (const char* name : {"length", "cosine"})
    EXPECT_THAT([&] { make_reward(name, {}); },
                ThrowsMessage<std::invalid_argument>(HasSubstr("reward.max_completion_length")))
        << name;
  for (const auto& [name, setting, value] : std::vector<std::tuple<const char*, const char*, const char*>>{
           {"answer", "open_text", "words"},
           {"grounding", "box_overlap", "diou"},
           {"format", "min_think_words", "-1"},
           {"think_grounding", "think_agreement", "2"},
           {"length", "overlong_cache", "101"},
           {"repetition", "repetition_ngram", "0"},
           {"repetition", "repetition_penalty", "1"},
           {"repetition", "repetition_unit", "letters"},
           {"judge", "judge.cache", ""},
           {"program:true", "program.timeout", "0"},
           {"program:true", "program.on_failure", "ignore"}}) {
    RewardOptions bad = with_length();
    assign_setting(bad, setting, value);
    EXPECT_THROW(make_reward(name, bad), std::invalid_argument) << name << " " << setting;
  }
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
        for (const char* name : {"answer", "grounding", "format", "region"}) {
          const RewardScore got = score(name, sample, text, options);
          EXPECT_EQ(got.value, 1) << name << " " << text << ": " << got.reason;
          EXPECT_TRUE(got.applicable);
          EXPECT_NE(got.reason, "");
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
    EXPECT_FALSE(exact.reason.empty()) << test.answer;
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
    EXPECT_FALSE(hard.reason.empty()) << test.boxes;
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
  for (const char* name : {"answer", "grounding", "format", "region", "think_grounding", "consistency"}) {
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
  RewardOptions options = with_length();
  options.count_gate = false;
  options.grounding_threshold = 0;
  std::vector<std::unique_ptr<Reward>> rewards;
  for (const std::string& name : kRules) rewards.push_back(make_reward(name, options));
  for (int round = 0; round < 2000; ++round) {
    std::string text;
    for (std::int64_t i = random.between(0, 14); i > 0; --i) text += pieces[random.below(pieces.size())];
    if (random.chance(0.5))
      text = "<response><answer>yes</answer><location><box>" + text + "</box></location></response>";
    for (const Sample& sample : samples) {
      for (std::size_t k = 0; k < kRules.size(); ++k) {
        RewardScore got;
        const test::RewardCase completion{.sample = sample, .text = text, .frame = BoxFrame::thousand()};
        ASSERT_NO_THROW(got = rewards[k]->score(completion.input())) << text;
        EXPECT_GE(got.value, -1) << text;
        EXPECT_LE(got.value, 1) << text;
        EXPECT_NE(got.reason, "") << kRules[k] << " " << text;
      }
    }
  }
}

TEST(AnswerReward, SubsetOfMultiChoice) {
  const Sample sample = make_sample(QuestionType::multi_choice, "A, C", {});
  RewardOptions options;
  options.multi_choice = "subset";
  for (const auto& [answer, value] : std::vector<std::pair<const char*, double>>{
           {"A, C", 1}, {"A", 0.5}, {"C", 0.5}, {"A, B", 0}, {"A, B, C", 0}, {"x", 0}})
    EXPECT_EQ(score("answer", sample, answered(answer), options).value, value) << answer;
}

TEST(GroundingReward, SoftIouCountsWhatIsLeftOver) {
  const Sample two = make_sample(QuestionType::closed, "yes", {box(0, 0, 100, 100), box(200, 0, 300, 100)});
  RewardOptions options;
  options.count_gate = false;
  options.grounding_threshold = 0;
  struct Case {
    const char* boxes;
    double value;
  };
  for (const Case& test : std::vector<Case>{
           {"<box>[0, 0, 100, 100]</box>", 0.5},
           {"<box>[0, 0, 100, 100]</box><box>[200, 0, 300, 100]</box>", 1},
           {"<box>[0, 0, 100, 100]</box><box>[200, 0, 300, 100]</box><box>[0, 200, 9, 300]</box>", 2.0 / 3},
           {"<box>[0, 0, 100, 100]</box><box>[0, 0, 100, 100]</box>", 0.5},
           {"<box>[0, 0, 100, 100]</box><box>[300, 0, 200, 100]</box>", 0.5},
           {"<box>[0, 0, 100, 100]</box><box>[nan, 0, 200, 100]</box>", 0.5},
           {"<box>[0, 0, 100, 100]</box><box>[0, 0, 1e300, 1e300]</box>", 0.5},
           {"<box>[0, 0, 1e300, 1e300]</box>", 0},
           {"<box>[-900, -900, 900, 900]</box>", 0},
           {"<box>[100, 100, 0, 0]</box>", 0},
           {"", 0}}) {
    const std::string text = test.boxes[0] == 0 ? answered("yes") : located(test.boxes);
    const RewardScore got = score("grounding", two, text, options);
    EXPECT_NEAR(got.value, test.value, 1e-12) << test.boxes << ": " << got.reason;
  }
  // With a threshold the mean over the larger number counts.
  options.grounding_threshold = 0.6;
  EXPECT_EQ(score("grounding", two, located("<box>[0, 0, 100, 100]</box>"), options).value, 0);
  EXPECT_THAT(
      score("grounding", two, located("<box>[0, 0, 100, 100]</box><box>[0, 0, 100, 100]</box>"), options).reason,
      HasSubstr("given several times"));
}

TEST(GroundingReward, GiouToldByHand) {
  const Sample one = make_sample(QuestionType::closed, "yes", {box(0, 0, 100, 100)});
  RewardOptions options;
  options.box_overlap = "giou";
  options.grounding_threshold = 0;
  const auto value = [&](const char* text) { return score("grounding", one, located(text), options).value; };
  EXPECT_DOUBLE_EQ(value("<box>[0, 0, 100, 100]</box>"), 1);
  // Half: IoU 0.5, no gap. Neighbour at a distance: IoU 0, enclosing 300, joint 200: GIoU -1/3.
  EXPECT_DOUBLE_EQ(value("<box>[0, 0, 100, 50]</box>"), 0.75);
  EXPECT_DOUBLE_EQ(value("<box>[200, 0, 300, 100]</box>"), 1.0 / 3);
  EXPECT_EQ(value("<box>[100, 100, 0, 0]</box>"), 0);
}

TEST(GroundingReward, PairedSoftStopsAtTheShorterList) {
  const Sample two = make_sample(QuestionType::closed, "yes", {box(0, 0, 100, 100), box(200, 0, 300, 100)});
  RewardOptions options;
  options.box_rule = "paired";
  options.count_gate = false;
  options.grounding_threshold = 0;
  EXPECT_EQ(score("grounding", two, located("<box>[0, 0, 100, 100]</box>"), options).value, 0.5);
  EXPECT_EQ(score("grounding", two, located("<box>[200, 0, 300, 100]</box>"), options).value, 0);
}

TEST(GroundingReward, ManyBoxesEndQuickly) {
  const Sample one = make_sample(QuestionType::closed, "yes", {box(0, 0, 100, 100)});
  std::string boxes;
  for (int i = 0; i < 5000; ++i) boxes += "<box>[0, 0, 100, " + std::to_string(i % 300 + 1) + "]</box>";
  RewardOptions options;
  options.count_gate = false;
  EXPECT_EQ(score("grounding", one, located(boxes), options).reason, "more than 256 boxes");
}

Sample named(const std::vector<std::string>& names) {
  Sample sample = make_sample(QuestionType::closed, "yes", {});
  for (const std::string& name : names) sample.regions.push_back({name, box(0, 0, 100, 100)});
  return sample;
}

std::string located_at(const std::vector<std::string>& names) {
  std::vector<Region> regions;
  for (const std::string& name : names) regions.push_back({name, box(0, 0, 100, 100)});
  return grounding::format_response("yes", regions);
}

TEST(RegionReward, Table) {
  struct Case {
    std::vector<std::string> reference, said;
    double value;
    const char* reason;
  };
  for (const Case& test :
       std::vector<Case>{{{"left lung"}, {"left lung"}, 1, "names the reference's regions"},
                         {{"left lung"}, {"Left Lung"}, 1, "names the reference's regions"},
                         {{"cardiac silhouette"}, {"heart"}, 1, "names the reference's regions"},
                         {{"right costophrenic angle"}, {"right CP angle"}, 1, "names the reference's regions"},
                         {{"left lung"}, {"right lung"}, 0, "the wrong side: 'right lung'"},
                         {{"bilateral lung"}, {"left lung", "right lung"}, 1, "names the reference's regions"},
                         {{"bilateral lung"}, {"left lung"}, 2.0 / 3, "does not name 'right lung'"},
                         {{"left lung"}, {"bilateral lung"}, 2.0 / 3, "names 'right lung', too"},
                         {{"left lung", "spine"}, {"spine", "left lung"}, 1, "names the reference's regions"},
                         {{"left lung", "spine"}, {"spine"}, 2.0 / 3, "does not name 'left lung'"},
                         {{"left lung"}, {"spine"}, 0, "does not name 'left lung'"},
                         {{"left lung"}, {}, 0, "does not name 'left lung'"},
                         {{"the odd place"}, {"odd place"}, 1, "names the reference's regions"}}) {
    const RewardScore got = score("region", named(test.reference), located_at(test.said));
    EXPECT_DOUBLE_EQ(got.value, test.value) << test.reference.front();
    EXPECT_EQ(got.reason, test.reason);
  }
  // Naming everything does not pay.
  EXPECT_LT(score("region", named({"left lung"}), located_at(grounding::region_names())).value, 0.1);
  EXPECT_FALSE(score("region", named({""}), located_at({"left lung"})).applicable);
  EXPECT_FALSE(score("region", named({}), located_at({"left lung"})).applicable);
}

TEST(FormatReward, WantsAReasoningThatIsOne) {
  const Sample sample = make_sample(QuestionType::closed, "yes", {});
  const std::string response = answered("yes");
  const std::string good = "The left lung (region [1, 2, 3, 4]) is clear and normal.";
  EXPECT_EQ(think_score("format", sample, good, response).value, 1);
  for (const auto& [think, reason] : std::vector<std::pair<std::string, std::string>>{
           {"", "the reasoning is empty"},
           {" \n ", "the reasoning is empty"},
           {"1 2 3 4 5 6 7 8", "the reasoning is empty"},
           {"yes.", "a reasoning of 1 words"},
           {good + "<answer>yes</answer>", "a tag inside <think>: <answer>"},
           {"<think>" + good, "a tag inside <think>: <think>"},
           {good + "</box>", "a tag inside <think>: <box>"}}) {
    const RewardScore got = think_score("format", sample, think, response);
    EXPECT_EQ(got.value, 0) << think;
    EXPECT_EQ(got.reason, reason) << think;
  }
  // The reference may be shorter than the limit.
  Sample terse = sample;
  terse.think = "All clear.";
  EXPECT_EQ(think_score("format", terse, "All clear.", response).value, 1);
  EXPECT_EQ(think_score("format", terse, "", response).value, 0);
}

TEST(ThinkGroundingReward, Table) {
  const Sample sample = make_sample(QuestionType::closed, "yes", {box(0, 0, 100, 100)});
  const std::string response = grounding::format_response("yes", sample.regions);
  struct Case {
    const char* think;
    double value;
    const char* reason;
  };
  for (const Case& test : std::vector<Case>{
           {"The left lung (region [0, 0, 100, 100]) is clear.", 1, "all 1 regions"},
           {"The left lung (region [0, 0, 100, 60]) is clear.", 1, "all 1 regions"},
           {"The left lung (region [0, 0, 100, 40]) is clear.", 0, "apart: IoU 0.40"},
           {"The spine (region [0, 0, 9, 9]) and the left lung (region [0, 0, 100, 100]).", 1, "all 2 regions"},
           {"The unicorn (region [0, 0, 9, 9]) and the left lung (region [0, 0, 100, 100]).", 0.5, "unicorn"},
           {"The spine (region [0, 0, 900, 900]) and the left lung (region [0, 0, 100, 100]).", 0.5, "outside"},
           {"The spine (region [9, 9, 0, 0]) and the left lung (region [0, 0, 100, 100]).", 0.5,
            "no box: [9, 9, 0, 0]"},
           {"The spine (region [nan, 9, 0, 0]).", 0, "no box"},
           {"The left lung is clear.", 0, "points at no region"},
           {"", 0, "points at no region"}}) {
    const RewardScore got = think_score("think_grounding", sample, test.think, response);
    EXPECT_DOUBLE_EQ(got.value, test.value) << test.think << ": " << got.reason;
    EXPECT_TRUE(got.applicable);
    EXPECT_THAT(got.reason, HasSubstr(test.reason));
  }
  EXPECT_FALSE(score("think_grounding", sample, response).applicable);  // no reasoning was asked for
  EXPECT_FALSE(think_score("think_grounding", sample, "All is clear here.", answered("yes")).applicable);
  Sample boxless = sample;
  boxless.think = "The left lung is clear.";
  EXPECT_FALSE(think_score("think_grounding", boxless, "The left lung is clear.", response).applicable);
}

TEST(ConsistencyReward, Table) {
  struct Case {
    QuestionType type;
    const char *think, *answer;
    double value;  // negative: not applicable
  };
  for (const Case& test : std::vector<Case>{
           {QuestionType::closed, "The lung is dark. So the answer is yes.", "yes", 1},
           {QuestionType::closed, "The lung is dark. So the answer is yes.", "no", 0},
           {QuestionType::closed, "The answer is no at first. But a line is seen, so the answer is yes.", "yes", 1},
           {QuestionType::closed, "This is atelectasis, so the zone is not clear and the answer is no.", "no", 1},
           {QuestionType::closed, "A shadow is seen. So, yes.", "no", 0},
           {QuestionType::closed, "A shadow is seen. No pneumothorax is seen.", "yes", -1},
           {QuestionType::closed, "A shadow is seen.", "yes", -1},
           {QuestionType::single_choice, "A: left lung, no. B: right lung, yes. So the answer is B.", "B", 1},
           {QuestionType::single_choice, "A: left lung, no. B: right lung, yes. So the answer is B.", "A", 0},
           {QuestionType::single_choice, "It is dark. The answer is B: right lung.", "B", 1},
           {QuestionType::single_choice, "It is dark. The answer is B because of the line. A is normal.", "C", -1},
           {QuestionType::single_choice, "It is dark. Therefore, the right lung is affected.", "B", 1},
           {QuestionType::single_choice, "It is dark. Therefore, the right lung is affected.", "C", 0},
           {QuestionType::single_choice, "It is dark. The right lung is not affected.", "B", -1},
           {QuestionType::single_choice, "It is dark.", "B", -1},
           {QuestionType::multi_choice, "So the answer is A, C.", "C, A", 1},
           {QuestionType::multi_choice, "So the answer is A, C.", "A", 0},
           {QuestionType::open, "So the answer is a large heart.", "large heart", 1},
           {QuestionType::open, "So the answer is a large heart.", "effusion", 0},
           {QuestionType::open, "The heart is large.", "large heart", -1}}) {
    const RewardScore got =
        think_score("consistency", make_sample(test.type, "yes", {}), test.think, answered(test.answer));
    EXPECT_EQ(got.applicable, test.value >= 0) << test.think << ": " << got.reason;
    EXPECT_EQ(got.value, std::max(0.0, test.value)) << test.think << ": " << got.reason;
    EXPECT_NE(got.reason, "");
  }
  EXPECT_FALSE(score("consistency", make_sample(QuestionType::closed, "yes", {}), answered("yes")).applicable);
}

double of_length(const std::string& name, std::int64_t num_tokens, const std::string& answer, RewardOptions options) {
  options.max_completion_length = 100;
  return test::reward_score(name,
                            {.sample = make_sample(QuestionType::closed, "yes", {}),
                             .text = answered(answer),
                             .num_tokens = num_tokens},
                            options)
      .value;
}

// Values of TRL 1.16's get_soft_overlong_punishment(100, 20).
TEST(LengthReward, IsTheSoftOverlongPenalty) {
  RewardOptions options;
  for (const std::int64_t cache : {0, 20}) {
    options.overlong_cache = cache;
    for (const auto& [length, value] :
         std::vector<std::pair<std::int64_t, double>>{{1, 0}, {80, 0}, {81, -0.05}, {90, -0.5}, {100, -1}, {101, -1}})
      EXPECT_DOUBLE_EQ(of_length("length", length, "yes", options), value) << length;
  }
  options.overlong_cache = 100;
  EXPECT_DOUBLE_EQ(of_length("length", 25, "yes", options), -0.25);
  EXPECT_THAT([&] { of_length("length", -1, "yes", options); },
              ThrowsMessage<std::invalid_argument>(HasSubstr("number of tokens")));
}

// Values of TRL 1.16's get_cosine_scaled_reward(100).
TEST(CosineReward, FavoursShortRightAnswers) {
  for (const auto& [length, right, wrong] :
       std::vector<std::tuple<std::int64_t, double, double>>{{0, 1, -1},
                                                             {25, 0.9267766952966369, -0.9267766952966369},
                                                             {50, 0.75, -0.75},
                                                             {100, 0.5, -0.5},
                                                             {500, 0.5, -0.5}}) {
    EXPECT_NEAR(of_length("cosine", length, "yes", {}), right, 1e-15) << length;
    EXPECT_NEAR(of_length("cosine", length, "no", {}), wrong, 1e-15) << length;
  }
}

TEST(RepetitionReward, CountsRepeatedNgrams) {
  const Sample sample = make_sample(QuestionType::closed, "yes", {});
  RewardOptions options;
  options.repetition_ngram = 2;
  options.repetition_unit = "tokens";
  const auto of_ids = [&](std::vector<std::int64_t> ids) {
    return test::reward_score("repetition", {.sample = sample, .text = "x", .ids = std::move(ids)}, options).value;
  };
  // TRL 1.16's get_repetition_penalty_reward(2, -1.0).
  EXPECT_EQ(of_ids({1, 2, 3, 4}), 0);
  EXPECT_DOUBLE_EQ(of_ids({5, 5, 5, 5, 5}), -0.75);
  EXPECT_EQ(of_ids({7}), 0);
  EXPECT_THAT([&] { of_ids({}); }, ThrowsMessage<std::invalid_argument>(HasSubstr("repetition_unit")));
  options.repetition_unit = "words";
  options.repetition_penalty = -0.5;
  EXPECT_DOUBLE_EQ(score("repetition", sample, "so so So  so\nso", options).value, -0.375);
  EXPECT_EQ(score("repetition", sample, "", options).value, 0);
}

TEST(RewardSet, SumsWhatApplies) {
  const test::RewardCase boxed{.sample = make_sample(QuestionType::closed, "yes", {box(0, 0, 100, 100)}),
                               .text = located("<box>[0, 0, 100, 100]</box>")};
  const test::RewardCase plain{.sample = make_sample(QuestionType::closed, "yes", {}), .text = answered("no")};
  const std::vector<RewardInput> inputs = {boxed.input(), plain.input()};
  RewardSet set({"answer=0.5", "grounding=2", "format", "length=0.25"}, with_length());
  ASSERT_EQ(set.size(), 4u);
  EXPECT_EQ(set.name(1), "grounding");
  EXPECT_EQ(set.weight(1), 2);
  EXPECT_EQ(set.weight(2), 1);
  const std::vector<CompletionReward> scores = set.score(inputs);
  EXPECT_DOUBLE_EQ(scores[0].total, 3.5);
  EXPECT_DOUBLE_EQ(scores[1].total, 1);
  EXPECT_TRUE(scores[0].scores[1].applicable);
  EXPECT_FALSE(scores[1].scores[1].applicable);
  EXPECT_TRUE(scores[1].applicable);
  EXPECT_FALSE(RewardSet({"grounding"}, {}).score(inputs)[1].applicable);
  EXPECT_TRUE(set.score({}).empty());
}

TEST(RewardSet, RefusesWrongLists) {
  for (const std::vector<std::string>& names : std::vector<std::vector<std::string>>{
           {}, {"answer="}, {"answer=x"}, {"answer=nan"}, {"answer=1", "answer=2"}, {"ansver"}, {"program:"}})
    EXPECT_THROW(RewardSet(names, RewardOptions{}), std::invalid_argument);
}

class ConstantReward final : public Reward {
 public:
  explicit ConstantReward(double value) : value_(value) {}
  std::string name() const override { return "constant"; }
  RewardScore score(const RewardInput&) override { return {value_, true, "always"}; }

 private:
  double value_;
};

TEST(RewardRegistry, TakesTheUsersOwn) {
  static bool once = false;
  if (!once) {  // --gtest_repeat
    register_reward("constant", [](const RewardOptions& options, const RewardResources&) {
      return std::make_unique<ConstantReward>(options.open_threshold);
    });
    register_reward("nan", [](const RewardOptions&, const RewardResources&) {
      return std::make_unique<ConstantReward>(std::numeric_limits<double>::quiet_NaN());
    });
  }
  once = true;
  const test::RewardCase plain{.sample = make_sample(QuestionType::closed, "yes", {}), .text = "x"};
  const std::vector<RewardInput> inputs = {plain.input()};
  EXPECT_DOUBLE_EQ(RewardSet({"constant=3"}, {}).score(inputs)[0].total, 1.5);
  EXPECT_EQ(reward_names().back(), "nan");
  EXPECT_THAT([&] { RewardSet({"nan"}, {}).score(inputs); },
              ThrowsMessage<std::runtime_error>(HasSubstr("must be finite")));
  for (const char* name : {"answer", "constant", "", "a=b", "a:b", "a,b"})
    EXPECT_THROW(register_reward(name, [](const RewardOptions&, const RewardResources&) { return nullptr; }),
                 std::invalid_argument)
        << name;
}

TEST(ReasonPattern, LeavesOutWhatChanges) {
  for (const auto& [reason, pattern] : std::vector<std::pair<const char*, const char*>>{
           {"mean IoU 0.512", "mean IoU #"},
           {"token F1 0.33", "token F1 #"},
           {"answered AC, the reference is B", "answered #, the reference is #"},
           {"the reference is 'no, it is'", "the reference is '#'"},
           {"no box: [3, 4, 1, 2]", "no box: [#]"},
           {"2 boxes, the reference has 1.", "# boxes, the reference has #."},
           {"<box> is not closed", "<box> is not closed"},
           {"[1, 2", "[#]"},
           {"", ""}})
    EXPECT_EQ(reason_pattern(reason), pattern);
}

}  // namespace
}  // namespace thinkvg::rewards
