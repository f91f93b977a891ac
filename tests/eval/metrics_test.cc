#include "thinkvg/eval/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>

#include "thinkvg/core/random.h"

namespace thinkvg::eval {
namespace {

using data::QuestionType;
using data::Sample;
using grounding::Box;
using grounding::BoxFrame;
using grounding::ImageGeometry;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

const BoxFrame kFrame = BoxFrame::letterbox(336);

Box box(double x1, double y1, double x2, double y2) { return {x1, y1, x2, y2, kFrame}; }

Sample make_sample(const std::string& id, const std::string& image, QuestionType type, const std::string& answer,
                   const std::vector<Box>& boxes) {
  Sample sample;
  sample.id = id;
  sample.image = image;
  sample.type = type;
  sample.answer = answer;
  sample.frame = kFrame;
  for (const Box& b : boxes) sample.regions.push_back({"left lung", b});
  return sample;
}

QuestionScore score(const Sample& sample, const std::string& text, const MetricOptions& options = {},
                    const BoxFrame& frame = kFrame) {
  const ImageGeometry geometry({3056, 2544});
  return score_question({sample, text, frame, geometry}, options);
}

std::vector<Sample> mixed_samples(int num_images) {
  std::vector<Sample> samples;
  for (int i = 0; i < num_images; ++i) {
    const std::string image = "p" + std::to_string(i) + ".jpg";
    const auto id = [&](int question) { return std::to_string(i * 5 + question); };
    samples.push_back(make_sample(id(0), image, QuestionType::open, "The heart is large", {box(1, 2, 30, 40)}));
    samples.push_back(make_sample(id(1), image, QuestionType::closed, "yes", {box(1, 2, 30, 40)}));
    samples.push_back(
        make_sample(id(2), image, QuestionType::single_choice, "B", {box(5, 6, 70, 80), box(90, 90, 99, 99)}));
    samples.push_back(make_sample(id(3), image, QuestionType::multi_choice, "['A', 'C']", {box(1, 2, 30, 40)}));
    samples.push_back(make_sample(id(4), image, QuestionType::closed, "No.", {}));
  }
  return samples;
}

TEST(ScoreQuestion, ReferencesScoreOne) {
  for (const char* rule : {"hungarian", "paired", "union", "best"}) {
    for (const char* reading : {"strict", "lenient"}) {
      MetricOptions options;
      options.rule = rule;
      options.reading = reading;
      for (const Sample& sample : mixed_samples(1)) {
        const auto got = score(sample, grounding::format_response(sample.answer, sample.regions), options);
        EXPECT_TRUE(got.parsed);
        EXPECT_EQ(got.problem, "");
        EXPECT_EQ(got.a_score.has_value(), sample.type != QuestionType::open);
        EXPECT_EQ(got.token_f1.has_value(), sample.type == QuestionType::open);
        EXPECT_EQ(got.v_score.has_value(), !sample.regions.empty());
        for (const auto& value : {got.a_score, got.v_score, got.token_f1}) EXPECT_EQ(value.value_or(1), 1);
      }
    }
  }
}

TEST(ScoreQuestion, UnparsedIsWrongOnEverything) {
  for (const char* text : {"", "yes", "<answer>yes</answer>",
                           "<response><answer>yes</answer><location><ref>a</ref>"
                           "<box>[1, 2, 30, 40]</box></location>"}) {
    const auto got = score(mixed_samples(1)[1], text);
    EXPECT_FALSE(got.parsed) << text;
    EXPECT_EQ(got.a_score, 0) << text;
    EXPECT_EQ(got.v_score, 0) << text;
    EXPECT_FALSE(got.problem.empty());
  }
  const auto missing = score_missing(mixed_samples(1)[1], {});
  EXPECT_EQ(missing.a_score, 0);
  EXPECT_EQ(missing.v_score, 0);
  EXPECT_FALSE(missing.parsed);
}

TEST(ScoreQuestion, AMissingAnswerHasTheReferencesLengthInTheChosenTokens) {
  MetricOptions options;
  options.bleu.tokenize = "char";
  const Sample sample = mixed_samples(1)[0];
  EXPECT_EQ(score_missing(sample, options).bleu, score(sample, "garbage", options).bleu);
  EXPECT_EQ(score_missing(sample, options).bleu->reference_length, 15) << "letters";
}

TEST(ScoreQuestion, LenientReadingTakesWhatIsThere) {
  MetricOptions lenient;
  lenient.reading = "lenient";
  const Sample sample = mixed_samples(1)[1];
  EXPECT_EQ(score(sample, "yes", lenient).a_score, 1);
  EXPECT_EQ(score(sample, "<answer>Yes, it is</answer>", lenient).a_score, 1);
  EXPECT_EQ(
      score(sample, "<response><answer>yes</answer><location><ref>a</ref><box>[1, 2, 30, 40]</box>", lenient).v_score,
      1);
  EXPECT_FALSE(score(sample, "<answer>yes", lenient).parsed) << "cut off";
  EXPECT_FALSE(score(sample, "", lenient).parsed);
  EXPECT_EQ(score(sample, "normal", lenient).a_score, 0);
}

TEST(ScoreQuestion, ThinkIsRequiredOnDemand) {
  const Sample sample = mixed_samples(1)[4];
  MetricOptions options;
  options.require_think = true;
  EXPECT_FALSE(score(sample, "<response><answer>no</answer></response>", options).parsed);
  EXPECT_TRUE(score(sample, "<think>x</think><response><answer>no</answer></response>", options).parsed);
}

TEST(ScoreQuestion, BoxesAreComparedInTheReferencesFrame) {
  const Sample sample = make_sample("1", "a.jpg", QuestionType::closed, "yes", {box(30, 60, 150, 300)});
  const std::string text =
      "<response><answer>yes</answer><location><ref>a</ref><box>[20, 40, 100, 200]</box></location></response>";
  const auto right = score(sample, text, {}, BoxFrame::letterbox(224));
  EXPECT_NEAR(*right.v_score, 1, 1e-12);
  EXPECT_EQ(right.regions.at(0).box.frame, kFrame);
  EXPECT_LT(*score(sample, text).v_score, 0.6);
}

TEST(ScoreQuestion, ABoxTextThatIsNoBoxCountsAsUnmatched) {
  const Sample sample = make_sample("1", "a.jpg", QuestionType::closed, "yes", {box(1, 2, 30, 40)});
  const std::string text =
      "<response><answer>yes</answer><location><box>[1, 2, 30, 40]</box><box>[30, 40, 1, "
      "2]</box></location></response>";
  EXPECT_EQ(score(sample, text).v_score, 0.5);
  EXPECT_EQ(score(sample, text).a_score, 1);
  MetricOptions paired;
  paired.rule = "paired";
  EXPECT_EQ(score(sample, text, paired).v_score, 0);
}

TEST(MetricOptions, BadOnesAreErrors) {
  MetricOptions options;
  options.rule = "greedy";
  EXPECT_THROW(summarize({}, options), std::invalid_argument);
  options = {};
  options.reading = "loose";
  EXPECT_THROW(summarize({}, options), std::invalid_argument);
  options = {};
  options.resamples = 3;
  EXPECT_THROW(summarize({}, options), std::invalid_argument);
}

TEST(Summarize, CountsAndMeansByType) {
  std::vector<QuestionScore> questions;
  for (const Sample& sample : mixed_samples(2)) {
    // The first picture is answered, the second is not.
    questions.push_back(sample.image == "p0.jpg"
                            ? score(sample, grounding::format_response(sample.answer, sample.regions))
                            : score(sample, "garbage"));
  }
  const Scores scores = summarize(questions, {});
  EXPECT_EQ(scores.num_questions, 10);
  EXPECT_EQ(scores.num_images, 2);
  EXPECT_EQ(scores.num_questions_by_type.at(QuestionType::closed), 4);
  EXPECT_EQ(scores.metric("a_score").overall->mean, 0.5);
  EXPECT_EQ(scores.metric("a_score").overall->num_questions, 8);
  EXPECT_EQ(scores.metric("a_score").by_type.count(QuestionType::open), 0u) << "open questions have no A-score";
  EXPECT_EQ(scores.metric("v_score").overall->num_questions, 8);
  EXPECT_EQ(scores.metric("v_score").by_type.at(QuestionType::closed).num_questions, 2);
  EXPECT_EQ(scores.metric("parse_rate").overall->mean, 0.5);
  EXPECT_EQ(scores.mean_of_a_and_v->mean, 0.5);
  // Two pictures, one all right and one all wrong: a resample is 0, 1/2 or 1.
  EXPECT_EQ(scores.metric("a_score").overall->low, 0);
  EXPECT_EQ(scores.metric("a_score").overall->high, 1);
}

TEST(Summarize, NothingToScoreIsAbsentNotZero) {
  const Scores scores = summarize({}, {});
  EXPECT_FALSE(scores.metric("a_score").overall);
  EXPECT_FALSE(scores.mean_of_a_and_v);
  EXPECT_TRUE(scores_to_json(scores)["a_score"]["overall"].is_null());
  EXPECT_FALSE(scores_to_table(scores).empty());
  const Scores open_only = summarize({score(mixed_samples(1)[0], "x")}, {});
  EXPECT_FALSE(open_only.metric("a_score").overall);
  EXPECT_EQ(open_only.metric("v_score").overall->mean, 0);
}

QuestionScore plain(const std::string& id, const std::string& image, double a, double v) {
  QuestionScore question;
  question.sample_id = id;
  question.image = image;
  question.type = QuestionType::closed;
  question.parsed = true;
  question.a_score = a;
  question.v_score = v;
  return question;
}

TEST(Summarize, IntervalIsByImage) {
  // 60 pictures of 10 questions that all share their picture's score: the spread is that of 60 draws, not of 600.
  std::vector<QuestionScore> together, apart;
  for (int i = 0; i < 60; ++i) {
    for (int q = 0; q < 10; ++q) {
      const std::string id = std::to_string(i * 10 + q);
      together.push_back(plain(id, "p" + std::to_string(i), i % 2, i % 2));
      apart.push_back(plain(id, "p" + id, i % 2, i % 2));
    }
  }
  const Scores clustered = summarize(together, {}), independent = summarize(apart, {});
  const double wide = clustered.metric("a_score").overall->high - clustered.metric("a_score").overall->low;
  const double narrow = independent.metric("a_score").overall->high - independent.metric("a_score").overall->low;
  EXPECT_NEAR(wide, 2 * 1.96 * 0.5 / std::sqrt(60.0), 0.03);
  EXPECT_NEAR(narrow, 2 * 1.96 * 0.5 / std::sqrt(600.0), 0.01);
}

TEST(Summarize, OnePictureGivesNoIntervalAndNoTest) {
  std::vector<QuestionScore> before, after;
  for (int q = 0; q < 6; ++q) {
    before.push_back(plain(std::to_string(q), "a", q % 2, 0.2));
    after.push_back(plain(std::to_string(q), "a", 1, 0.9));
  }
  const Scores one = summarize(after, {});
  EXPECT_EQ(one.metric("v_score").overall->mean, 0.9);
  EXPECT_FALSE(one.metric("v_score").overall->has_interval());
  EXPECT_FALSE(one.mean_of_a_and_v->has_interval());
  const Json json = scores_to_json(one);
  EXPECT_TRUE(json["v_score"]["interval"]["overall"].is_null());
  EXPECT_TRUE(json["v_score"]["interval"]["by_type"]["closed"].is_null());
  EXPECT_FALSE(json["v_score"].contains("detectable"));
  EXPECT_THAT(scores_to_table(one), ::testing::Not(HasSubstr("nan")));
  const ScoreDifference difference = compare(before, after, {});
  EXPECT_NEAR(difference.metric("v_score").overall->mean, 0.7, 1e-12);
  EXPECT_FALSE(difference.metric("v_score").overall->p_value) << "one picture proves nothing";
  EXPECT_FALSE(difference.mean_of_a_and_v->p_value);

  // The same for a group that lies in one picture of many.
  std::vector<QuestionScore> many = after;
  for (int i = 0; i < 20; ++i) many.push_back(plain("b" + std::to_string(i), "b" + std::to_string(i), i % 2, 0.5));
  many[0].content_type = "rare";
  const Scores all = summarize(many, {});
  EXPECT_TRUE(all.metric("a_score").overall->has_interval());
  EXPECT_EQ(all.metric("a_score").by_content.at("rare").mean, 1);
  EXPECT_FALSE(all.metric("a_score").by_content.at("rare").has_interval());
}

TEST(Summarize, CoversTheTruthNinetyFivePercentOfTheTime) {
  RandomStream random({51});
  MetricOptions options;
  options.resamples = 400;
  int covered = 0;
  constexpr int kRounds = 300;
  for (int round = 0; round < kRounds; ++round) {
    options.seed = round;
    std::vector<QuestionScore> questions;
    for (int i = 0; i < 80; ++i) {
      const double share = random.uniform();  // the picture's difficulty; mean 1/2
      for (int q = 0; q < 4; ++q) {
        questions.push_back(plain(std::to_string(i * 4 + q), std::to_string(i), random.chance(share) ? 1 : 0, 0));
      }
    }
    const Estimate estimate = *summarize(questions, options).metric("a_score").overall;
    covered += estimate.low <= 0.5 && 0.5 <= estimate.high ? 1 : 0;
  }
  EXPECT_GT(covered, kRounds * 0.90);
  EXPECT_LT(covered, kRounds * 0.985);
}

TEST(Summarize, SeedsAndOrder) {
  RandomStream random({52});
  std::vector<QuestionScore> questions;
  for (int i = 0; i < 200; ++i) {
    questions.push_back(plain(std::to_string(i), std::to_string(i / 4), random.chance(0.6) ? 1 : 0, random.uniform()));
  }
  MetricOptions options;
  const Json first = scores_to_json(summarize(questions, options));
  EXPECT_EQ(first, scores_to_json(summarize(questions, options)));
  options.seed = 1;
  EXPECT_NE(first["a_score"]["interval"], scores_to_json(summarize(questions, options))["a_score"]["interval"]);
  options.seed = 0;
  random.shuffle(questions);
  const Json shuffled = scores_to_json(summarize(questions, options));
  EXPECT_EQ(first["a_score"]["interval"], shuffled["a_score"]["interval"]);
}

TEST(Summarize, IsFastForAWholeTestSet) {
  std::vector<QuestionScore> questions;
  for (int i = 0; i < 4000; ++i) {
    questions.push_back(plain(std::to_string(i), std::to_string(i / 11), i % 2, 0.5));
  }
  const auto start = std::chrono::steady_clock::now();
  summarize(questions, {});
  EXPECT_LT(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(), 2.0);
}

TEST(Compare, PairedIntervalIsNarrowerThanTwoSeparateOnes) {
  RandomStream random({53});
  std::vector<QuestionScore> baseline, candidate;
  for (int i = 0; i < 600; ++i) {
    const double hard = random.uniform();
    const std::string id = std::to_string(i), image = std::to_string(i / 6);
    baseline.push_back(plain(id, image, hard > 0.5 ? 1 : 0, hard));
    candidate.push_back(plain(id, image, hard > 0.45 ? 1 : 0, std::min(1.0, hard + 0.04 * random.uniform())));
  }
  const ScoreDifference difference = compare(baseline, candidate, {});
  const Scores before = summarize(baseline, {}), after = summarize(candidate, {});
  EXPECT_NEAR(difference.metric("a_score").overall->mean,
              after.metric("a_score").overall->mean - before.metric("a_score").overall->mean, 1e-12);
  EXPECT_NEAR(difference.metric("v_score").overall->mean,
              after.metric("v_score").overall->mean - before.metric("v_score").overall->mean, 1e-12);
  EXPECT_NEAR(difference.mean_of_a_and_v->mean, after.mean_of_a_and_v->mean - before.mean_of_a_and_v->mean, 1e-12);
  EXPECT_GT(difference.metric("v_score").overall->low, 0);
  EXPECT_GT(difference.mean_of_a_and_v->low, 0);
  EXPECT_LT(difference.metric("v_score").overall->high - difference.metric("v_score").overall->low,
            0.5 * (after.metric("v_score").overall->high - after.metric("v_score").overall->low));
  // The order of the lists does not matter.
  std::vector<QuestionScore> shuffled = candidate;
  random.shuffle(shuffled);
  EXPECT_EQ(difference_to_json(compare(baseline, shuffled, {}))["a_score"], difference_to_json(difference)["a_score"]);
}

TEST(Compare, SameListsDifferByNothing) {
  std::vector<QuestionScore> questions;
  for (int i = 0; i < 50; ++i) questions.push_back(plain(std::to_string(i), std::to_string(i / 5), i % 3 == 0, 0.4));
  const ScoreDifference difference = compare(questions, questions, {});
  EXPECT_EQ(difference.metric("a_score").overall->mean, 0);
  EXPECT_EQ(difference.metric("a_score").overall->low, 0);
  EXPECT_EQ(difference.mean_of_a_and_v->high, 0);
}

TEST(Compare, OtherQuestionsAreErrors) {
  const std::vector<QuestionScore> one = {plain("1", "a", 1, 1)}, other = {plain("2", "a", 1, 1)};
  EXPECT_THAT([&] { compare(one, other, {}); }, ThrowsMessage<std::invalid_argument>(HasSubstr("no '2'")));
  EXPECT_THROW(compare(one, {one[0], other[0]}, {}), std::invalid_argument);
  EXPECT_THROW(compare({one[0], one[0]}, {one[0], other[0]}, {}), std::invalid_argument);
  EXPECT_THROW(compare({one[0], other[0]}, {one[0], one[0]}, {}), std::invalid_argument);
  std::vector<QuestionScore> changed = one;
  changed[0].v_score.reset();
  EXPECT_THAT([&] { compare(one, changed, {}); },
              ThrowsMessage<std::invalid_argument>(HasSubstr("not the same question")));
}

TEST(ScoreQuestion, BothReadingsAndAllRulesAreTold) {
  const Sample sample =
      make_sample("1", "a.jpg", QuestionType::closed, "yes", {box(0, 0, 100, 100), box(200, 200, 300, 300)});
  const std::string boxes =
      "<location><ref>a</ref><box>[200, 200, 300, 300]</box><ref>b</ref><box>[0, 0, 100, 50]</box></location>";
  const auto whole = score(sample, "<response><answer>yes</answer>" + boxes + "</response>");
  EXPECT_DOUBLE_EQ(whole.overlap->hungarian, 0.75);
  EXPECT_DOUBLE_EQ(whole.overlap->paired, 0);
  EXPECT_DOUBLE_EQ(whole.overlap->best, 0.75);
  EXPECT_DOUBLE_EQ(whole.overlap->union_area, 15000.0 / 20000);
  EXPECT_EQ(whole.strict.a_score, 1);
  EXPECT_EQ(whole.lenient.v_score, 0.75);

  const auto cut = score(sample, "<response><answer>Yes, it is</answer>" + boxes);
  EXPECT_FALSE(cut.strict.parsed);
  EXPECT_TRUE(cut.lenient.parsed);
  EXPECT_EQ(cut.strict.v_score, 0);
  EXPECT_EQ(cut.lenient.v_score, 0.75);
  EXPECT_EQ(cut.lenient.a_score, 1);
  EXPECT_EQ(cut.a_score, 0) << "the strict reading leads";
  EXPECT_EQ(cut.num_boxes, 0) << "of an unparsed response nothing counts";
}

TEST(ScoreQuestion, HallucinatedBoxesOverlapNothing) {
  const Sample sample = make_sample("1", "a.jpg", QuestionType::closed, "yes", {box(0, 0, 100, 100)});
  const auto got = score(sample,
                         "<response><answer>yes</answer><location><box>[0, 0, 100, 90]</box><box>[200, 200, 300, 300]"
                         "</box><box>[95, 95, 200, 200]</box><box>[9, 9, 1, 1]</box></location></response>");
  EXPECT_EQ(got.num_boxes, 4);
  EXPECT_EQ(got.num_hallucinated, 3) << "one far away, one that touches, one that is no box";
}

TEST(ScoreQuestion, ReasoningAndAnswerAreCompared) {
  const auto consistent = [](QuestionType type, const std::string& think, const std::string& answer) {
    Sample sample = make_sample("1", "a.jpg", type, type == QuestionType::closed ? "yes" : "A", {});
    if (type != QuestionType::closed) sample.choices = {"A: left", "B: right"};
    return score(sample, "<think>" + think + "</think><response><answer>" + answer + "</answer></response>").consistent;
  };
  EXPECT_EQ(consistent(QuestionType::closed, "It is clear. So the answer is no.", "no"), true);
  EXPECT_EQ(consistent(QuestionType::closed, "The answer is yes. No, the answer is no.", "yes"), false);
  EXPECT_EQ(consistent(QuestionType::closed, "It is not normal.", "no"), std::nullopt) << "nothing is concluded";
  EXPECT_EQ(consistent(QuestionType::single_choice, "So the answer is B. A is wrong.", "B"), true);
  EXPECT_EQ(consistent(QuestionType::single_choice, "Answer: A", "B"), false);
  EXPECT_EQ(consistent(QuestionType::multi_choice, "The answer is A and B.", "A, B"), true);
  EXPECT_EQ(consistent(QuestionType::open, "The answer is yes.", "yes"), std::nullopt);

  const Sample sample = make_sample("1", "a.jpg", QuestionType::closed, "yes", {box(0, 0, 100, 100)});
  const auto grounded = score(sample,
                              "<think>The left lung (region [0, 0, 100, 90]) is dense.</think><response><answer>yes"
                              "</answer><location><box>[0, 0, 100, 100]</box><box>[200, 0, 300, 90]</box></location>"
                              "</response>");
  EXPECT_EQ(grounded.num_grounded_boxes, 2);
  EXPECT_EQ(grounded.num_boxes_in_think, 1);
  EXPECT_EQ(grounded.think_words, 10);
}

TEST(ScoreQuestion, PhrasesToBeFoundHaveBoxesOnly) {
  const Sample sample = make_sample("1", "a.jpg", QuestionType::open, "", {box(0, 0, 100, 100)});
  const auto got =
      score(sample, "<response><answer>nodule</answer><location><box>[0, 0, 100, 100]</box></location></response>");
  EXPECT_FALSE(got.token_f1);
  EXPECT_FALSE(got.bleu);
  EXPECT_EQ(got.v_score, 1);
}

TEST(Summarize, TextMetricsAreThoseOfTheWholeSet) {
  std::vector<QuestionScore> questions;
  BleuStats stats;
  double rouge = 0;
  const std::vector<std::pair<std::string, std::string>> pairs = {{"the heart is large", "the heart is very large"},
                                                                  {"a small effusion is seen", "no effusion is seen"},
                                                                  {"", "clear lungs"}};
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    const Sample sample = make_sample(std::to_string(i), std::to_string(i), QuestionType::open, pairs[i].second, {});
    questions.push_back(
        score(sample, i == 2 ? "garbage <answer>" : "<response><answer>" + pairs[i].first + "</answer></response>"));
    stats += bleu_stats(pairs[i].first, pairs[i].second, {});
    rouge += rouge_l(pairs[i].first, pairs[i].second) / 3;
  }
  const Scores scores = summarize(questions, {});
  EXPECT_NEAR(scores.metric("bleu_2").overall->mean, bleu(stats, 2, {}), 1e-12);
  EXPECT_NEAR(scores.metric("bleu_1").by_type.at(QuestionType::open).mean, bleu(stats, 1, {}), 1e-12);
  EXPECT_NEAR(scores.metric("rouge_l").overall->mean, rouge, 1e-12);
  EXPECT_EQ(scores.metric("bleu_1").overall->num_questions, 3);
  EXPECT_FALSE(scores.metric("consistency").overall);
  EXPECT_FALSE(scores.metric("ar_score").overall);
}

TEST(Summarize, GroupsByContentAndRegion) {
  std::vector<QuestionScore> questions;
  for (int i = 0; i < 8; ++i) {
    QuestionScore question = plain(std::to_string(i), std::to_string(i / 2), i % 2, 0.1 * i);
    question.content_type = i < 6 ? "location" : "";
    question.reference_regions =
        i < 4 ? std::vector<std::string>{"left lung"} : std::vector<std::string>{"left lung", "right lung"};
    questions.push_back(question);
  }
  const Scores scores = summarize(questions, {});
  const Metric& v = scores.metric("v_score");
  EXPECT_EQ(v.by_content.size(), 1u);
  EXPECT_EQ(v.by_content.at("location").num_questions, 6);
  EXPECT_NEAR(v.by_content.at("location").mean, 0.25, 1e-12);
  EXPECT_EQ(v.by_region.at("left lung").num_questions, 8);
  EXPECT_NEAR(v.by_region.at("right lung").mean, 0.55, 1e-12);
  const Json json = scores_to_json(scores);
  EXPECT_EQ(json["v_score"]["n"]["by_region"]["right lung"], 4);
  EXPECT_GT(json["v_score"]["detectable"].get<double>(), 0);
  EXPECT_FALSE(json.contains("rouge_l"));
}

TEST(Compare, TestsTellChanceFromChange) {
  RandomStream random({54});
  int found_nothing = 0, found_change = 0;
  constexpr int kRounds = 60;
  MetricOptions options;
  options.resamples = 300;
  for (int round = 0; round < kRounds; ++round) {
    std::vector<QuestionScore> before, same, better;
    for (int i = 0; i < 300; ++i) {
      const std::string id = std::to_string(i), image = std::to_string(i / 3);
      before.push_back(plain(id, image, random.chance(0.5) ? 1 : 0, 0));
      same.push_back(plain(id, image, random.chance(0.5) ? 1 : 0, 0));
      better.push_back(plain(id, image, random.chance(0.7) ? 1 : 0, 0));
    }
    const ScoreDifference none = compare(before, same, options), some = compare(before, better, options);
    found_nothing += *none.metric("a_score").overall->p_value > 0.05 ? 1 : 0;
    found_change += *some.metric("a_score").overall->p_value <= 0.05 ? 1 : 0;
    EXPECT_EQ(some.only_candidate_right - some.only_baseline_right,
              std::lround(some.metric("a_score").overall->mean * 300));
  }
  EXPECT_GE(found_nothing, kRounds * 0.85);
  EXPECT_GE(found_change, kRounds * 0.95);
}

TEST(ScoresJson, StableNames) {
  std::vector<QuestionScore> questions;
  for (const Sample& sample : mixed_samples(3)) {
    questions.push_back(score(sample, grounding::format_response(sample.answer, sample.regions)));
  }
  const Json json = scores_to_json(summarize(questions, {}));
  for (const char* name : {"a_score", "v_score", "parse_rate"}) {
    EXPECT_EQ(json[name]["overall"], 1.0) << name;
    EXPECT_EQ(json[name]["by_type"]["closed"], 1.0) << name;
    EXPECT_EQ(json[name]["interval"]["overall"], Json::array({1.0, 1.0})) << name;
    EXPECT_EQ(json[name]["interval"]["by_type"]["closed"], Json::array({1.0, 1.0})) << name;
  }
  EXPECT_EQ(json["num_questions"]["overall"], 15);
  EXPECT_EQ(json["num_questions"]["by_type"]["closed"], 6);
  EXPECT_EQ(json["a_score"]["n"]["overall"], 12);
  EXPECT_FALSE(json["a_score"]["by_type"].contains("open"));
  EXPECT_EQ(json["rules"]["boxes"], "hungarian");
  EXPECT_EQ(json["rules"]["reading"], "strict");
  EXPECT_THAT(json["rules"]["interval"].get<std::string>(), HasSubstr("by image"));
  const Json line = question_to_json(questions[1]);
  EXPECT_EQ(line["id"], "1");
  EXPECT_EQ(line["type"], "closed");
  EXPECT_EQ(line["boxes"][0]["box"], Json::array({1.0, 2.0, 30.0, 40.0}));
  EXPECT_EQ(line["boxes"][0]["frame"], "letterbox-336");
}

TEST(ScoresTable, HasARowPerTypeAndSaysTheRules) {
  std::vector<QuestionScore> questions;
  for (const Sample& sample : mixed_samples(3)) questions.push_back(score(sample, "garbage"));
  const std::string table = scores_to_table(summarize(questions, {}));
  for (const char* text : {"open", "closed", "single_choice", "multi_choice", "all", "0.000 [0.000, 0.000]",
                           "hungarian", "unparsed counts as wrong"}) {
    EXPECT_THAT(table, HasSubstr(text));
  }
}

}  // namespace
}  // namespace thinkvg::eval
