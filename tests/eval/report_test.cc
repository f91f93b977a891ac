#include "thinkvg/eval/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <sstream>

#include "eval/chart.h"
#include "thinkvg/core/error.h"
#include "thinkvg/core/files.h"
#include "thinkvg/eval/metrics.h"
#include "thinkvg/image/picture.h"

namespace thinkvg::eval {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

int count_of(const std::string& text, const std::string& part) {
  int count = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

template <class Error, class Call>
std::string message_of(const Call& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

// ---- charts

TEST(ReportChart, TicksAreRoundAndInside) {
  EXPECT_THAT(chart::ticks(0, 1, 5), ElementsAre(0, ::testing::DoubleNear(0.2, 1e-12),
                                                 ::testing::DoubleNear(0.4, 1e-12), ::testing::DoubleNear(0.6, 1e-12),
                                                 ::testing::DoubleNear(0.8, 1e-12), ::testing::DoubleNear(1.0, 1e-12)));
  for (const auto& [low, high] : {std::pair(3e-6, 2.1e-4), {-0.03, 0.05}, {1.0, 12345.0}, {0.97, 0.98}}) {
    const std::vector<double> marks = chart::ticks(low, high, 5);
    EXPECT_GE(marks.size(), 2u) << low;
    EXPECT_LE(marks.size(), 7u) << low;
    EXPECT_GE(marks.front(), low - 1e-12);
    EXPECT_LE(marks.back(), high * (1 + 1e-9));
  }
}

TEST(ReportChart, OnlyNoisyCurvesAreSmoothed) {
  chart::Points schedule, noise;
  for (int step = 0; step < 200; ++step) {
    schedule.emplace_back(step, step < 20 ? step / 20.0 : 0.5 + 0.5 * std::cos((step - 20) * 3.14159 / 180));
    noise.emplace_back(step, step % 2);
  }
  EXPECT_FALSE(chart::is_noisy(schedule));
  EXPECT_TRUE(chart::is_noisy(noise));
  EXPECT_EQ(count_of(chart::line(schedule, "lr"), "<polyline"), 1);
  EXPECT_EQ(count_of(chart::line(noise, "noise"), "<polyline"), 2);
}

TEST(ReportChart, MovingAverageIsCentredAndShortensAtTheEnds) {
  const chart::Points average = chart::moving_average({{1, 1}, {2, 2}, {3, 6}, {4, 10}}, 1);
  EXPECT_THAT(average, ElementsAre(std::pair(1L, 1.5), std::pair(2L, 3.0), std::pair(3L, 6.0), std::pair(4L, 8.0)));
}

TEST(ReportChart, ThinningKeepsSpikesAndOrder) {
  chart::Points points;
  for (int step = 0; step < 10000; ++step) points.emplace_back(step, step == 7777 ? 50.0 : std::sin(step * 0.01));
  const chart::Points thin = chart::thin_out(points, 200);
  EXPECT_LE(thin.size(), 200u);
  EXPECT_TRUE(std::is_sorted(thin.begin(), thin.end()));
  EXPECT_THAT(thin, ::testing::Contains(std::pair(7777L, 50.0)));
}

TEST(ReportChart, SpikesAreNamedWhenTheyLeaveTheAxis) {
  chart::Points points;
  for (int step = 0; step < 300; ++step) points.emplace_back(step, step == 100 ? 1000.0 : 1.0 + 0.1 * (step % 3));
  EXPECT_THAT(chart::line(points, "grad_norm"), HasSubstr("1 spikes beyond the axis"));
}

TEST(ReportChart, ARatioAboveOneStaysInside) {
  const std::string svg = chart::bars({{"all", {{"judge", 0, 1.24, {}, {}}}}}, "test");
  const std::size_t at = svg.find("y=\"", svg.find("<rect")) + 3;
  EXPECT_GE(std::stod(svg.substr(at)), 8) << "the chart's upper edge";
}

TEST(ReportChart, BarsHaveTheHeightOfTheirValue) {
  const std::string svg = chart::bars({{"all", {{"SFT", 0, 0.25, 0.2, 0.3}, {"GRPO", 1, 0.5, {}, {}}}}}, "test");
  const auto height_of = [&](const std::string& series) {
    const std::size_t at = svg.find("height=\"", svg.find("class=\"" + series + "\"")) + 8;
    return std::stod(svg.substr(at));
  };
  EXPECT_NEAR(height_of("s1") / height_of("s0"), 2.0, 0.01);
  EXPECT_EQ(count_of(svg, "class=\"whisker\""), 1);
  EXPECT_THAT(svg, HasSubstr("SFT, all: 0.250 [0.200, 0.300]"));
}

// ---- run folders

class ReportTest : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::temp_directory_path() / fmt::format("thinkvg-report-{}-{}", getpid(),
                                                    ::testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::remove_all(root_);
    fs::create_directories(root_ / "images");
    image::Picture picture{100, 200, std::vector<std::uint8_t>(100 * 200 * 3, 90)};
    for (int i = 0; i < 8; ++i) image::write_picture(picture, root_ / "images" / fmt::format("p{}.jpg", i));
  }
  void TearDown() override { fs::remove_all(root_); }

  // Question `i`: types take turns; the picture of 100 x 200 pixels is padded by 50 to each side in the letterbox.
  Json prediction(int i, bool right) const {
    static const char* kTypes[] = {"open", "closed", "single_choice", "multi_choice"};
    const std::string type = kTypes[i % 4];
    Json line;
    line["id"] = std::to_string(i);
    line["image"] = fmt::format("p{}.jpg", i % 8);
    line["image_file"] = (root_ / "images" / fmt::format("p{}.jpg", i % 8)).string();
    line["width"] = 100;
    line["height"] = 200;
    line["type"] = type;
    line["question"] = fmt::format("Question {}?", i);
    line["choices"] = type.ends_with("choice") ? Json({"A: one", "B: two"}) : Json::array();
    line["frame"] = "letterbox-400";
    line["reference"] = {{"answer", type == "closed" ? "yes" : "A"},
                         {"think", "The left lung (region [120, 40, 200, 240]) is dense."},
                         {"regions", {{{"ref", "left lung"}, {"box", {120, 40, 200, 240}}}}}};
    const std::string think = "See the right lung (region [200, 40, 280, 240]) & <more>.";
    line["response"] = "<think>" + think + "</think><response>..</response>";
    line["parsed"] = {{"complete", true},
                      {"problem", ""},
                      {"answer", right ? "yes" : "no"},
                      {"think", think},
                      {"regions", {{{"ref", "right lung"}, {"box", {200, 40, 280, 240}}}}},
                      {"think_regions", Json::array()}};
    line["a_score"] = type == "open" ? Json() : Json(right ? 1 : 0);
    line["v_score"] = right ? 0.8 : 0.1;
    return line;
  }

  static Json score(double mean) {
    return {{"overall", mean},
            {"by_type", {{"open", nullptr}, {"closed", mean}}},
            {"interval",
             {{"overall", {mean - 0.05, mean + 0.05}}, {"by_type", {{"open", nullptr}, {"closed", {0.1, 0.9}}}}}},
            {"n", {{"overall", 40}, {"by_type", {{"open", 0}, {"closed", 10}}}}}};
  }

  static Json metrics(double a_score, double v_score) {
    return {{"num_questions", {{"overall", 40}, {"by_type", {{"open", 10}, {"closed", 10}}}}},
            {"num_images", 8},
            {"a_score", score(a_score)},
            {"v_score", score(v_score)},
            {"mean_of_a_and_v", {{"overall", (a_score + v_score) / 2}, {"interval", {{"overall", {0.3, 0.5}}}}}},
            {"parse_rate", score(0.9)},
            {"rules", {{"boxes", "hungarian"}, {"require_think", false}}}};
  }

  void write_stage(const std::string& name, double a_score, const std::set<int>& wrong) const {
    fs::create_directories(root_ / name);
    write_file_atomically(root_ / name / "metrics.json", metrics(a_score, 0.4).dump());
    std::string lines;
    for (int i = 0; i < 40; ++i) lines += prediction(i, !wrong.count(i)).dump() + "\n";
    lines.pop_back();  // a last line without a newline counts
    write_file_atomically(root_ / name / "predictions.jsonl", lines);
  }

  void write_training(const std::string& name) const {
    fs::create_directories(root_ / name);
    write_file_atomically(root_ / name / "metrics.jsonl",
                          "{\"step\": 1, \"reward\": 0.5, \"rewards/format/mean\": 0.9, \"note\": \"text\"}\n"
                          "{\"step\": 2, \"reward\": 0.6, \"kl\": null}\n\n"
                          "{\"step\": 2, \"reward\": 0.7, \"weird_metric\": 3}\n"
                          "{\"step\": 3, \"reward\": 0.8, \"weird_metric\": 4}");
    write_file_atomically(root_ / name / "config.yaml", "optimizer:\n  lr: 0.0003\n");
    write_file_atomically(root_ / name / "manifest.json",
                          R"({"command": "grpo", "version": "9.8.7", "seed": 41, "started": "2030-01-02T03:04:05Z",
                              "machine": {"cpu": "Test CPU", "cores": 2, "memory_bytes": 25769803776},
                              "inputs": {"data": {"path": "train.parquet", "bytes": 5, "sha256": "abcdef"}}})");
  }

  ReportOptions options(const std::vector<std::string>& runs) const {
    ReportOptions out;
    for (const std::string& run : runs) {
      const std::size_t equals = run.find('=');
      out.runs.push_back(equals == std::string::npos
                             ? (root_ / run).string()
                             : run.substr(0, equals + 1) + (root_ / run.substr(equals + 1)).string());
    }
    out.out = (root_ / "report.html").string();
    return out;
  }

  void replace_line(const std::string& stage, int index, const std::string& line) const {
    const fs::path file = root_ / stage / "predictions.jsonl";
    std::string lines;
    for (int i = 0; i < 40; ++i) lines += (i == index ? line : prediction(i, true).dump()) + "\n";
    write_file_atomically(file, lines);
  }

  fs::path root_;
};

std::set<int> first(int count) {
  std::set<int> out;
  for (int i = 0; i < count; ++i) out.insert(i);
  return out;
}

TEST_F(ReportTest, ReadsStagesTrainingsAndLabels) {
  write_stage("b-eval", 0.5, first(20));
  write_training("a-train");
  const ReportData data = read_report(options({"After=b-eval", "a-train"}));
  ASSERT_EQ(data.stages.size(), 1u);
  const ReportStage& stage = data.stages[0];
  EXPECT_EQ(stage.label, "After");
  EXPECT_EQ(stage.num_questions, 40);
  EXPECT_EQ(stage.num_images, 8);
  ASSERT_TRUE(stage.a_score.overall);
  EXPECT_DOUBLE_EQ(stage.a_score.overall->mean, 0.5);
  EXPECT_DOUBLE_EQ(*stage.a_score.overall->low, 0.45);
  EXPECT_EQ(stage.a_score.overall->n, 40);
  EXPECT_EQ(stage.a_score.find("open"), nullptr);
  ASSERT_NE(stage.a_score.find("closed"), nullptr);
  EXPECT_DOUBLE_EQ(*stage.a_score.find("closed")->high, 0.9);
  EXPECT_EQ(stage.predictions.size(), 40u);
  EXPECT_EQ(stage.predictions[7].regions[0].box.frame.name(), "letterbox-400");

  ASSERT_EQ(data.trainings.size(), 1u);
  const auto& curves = data.trainings[0].curves;
  // The step that a resumed run wrote again counts once, with its last value; null and text are no values.
  EXPECT_THAT(curves.at("reward"), ElementsAre(std::pair(1L, 0.5), std::pair(2L, 0.7), std::pair(3L, 0.8)));
  EXPECT_EQ(curves.count("kl"), 0u);
  EXPECT_EQ(curves.count("note"), 0u);
}

TEST_F(ReportTest, ParentFolderIsTakenByNameOrInTheOrderOfItsStagesFile) {
  write_stage("b", 0.5, first(20));
  write_stage("a", 0.4, first(25));
  write_training("c");
  ReportData data = read_report(options({""}));
  ASSERT_EQ(data.stages.size(), 2u);
  EXPECT_EQ(data.stages[0].label, "a");
  EXPECT_EQ(data.trainings.size(), 1u);

  write_file_atomically(root_ / "stages.json", R"({"title": "My title", "stages": [
      {"folder": "b", "label": "First", "note": "why", "cases": false}, {"folder": "a"}],
      "comparisons": [{"label": "a - b", "mean": {"difference": -0.1, "low": -0.2, "high": -0.05},
                       "v_score": {"overall": 0.25, "interval": {"overall": [0.2, 0.3]}}}]})");
  data = read_report(options({""}));
  EXPECT_EQ(data.title, "My title");
  ASSERT_EQ(data.stages.size(), 2u);
  EXPECT_EQ(data.stages[0].label, "First");
  EXPECT_TRUE(data.trainings.empty());
  EXPECT_THAT(data.case_labels, ElementsAre("a"));
  ASSERT_EQ(data.comparisons.size(), 1u);
  EXPECT_DOUBLE_EQ(*data.comparisons[0].mean->low, -0.2);
  EXPECT_DOUBLE_EQ(*data.comparisons[0].v_score->high, 0.3);
  EXPECT_FALSE(data.comparisons[0].a_score);
  EXPECT_THAT(render_report(data), AllOf(HasSubstr("below 0"), HasSubstr("above 0"), HasSubstr("-0.100")));
}

TEST_F(ReportTest, ReadsWhatTheMetricsWrite) {
  std::vector<QuestionScore> before, after;
  for (int i = 0; i < 40; ++i) {
    QuestionScore question;
    question.sample_id = std::to_string(i);
    question.image = fmt::format("p{}.jpg", i % 8);
    question.type = i % 2 == 0 ? data::QuestionType::open : data::QuestionType::closed;
    question.parsed = i % 4 != 0;
    if (i % 2 == 1) question.a_score = i % 3 == 0;
    question.v_score = 0.01 * i;
    before.push_back(question);
    question.v_score = 0.01 * i + 0.25;
    after.push_back(question);
  }
  MetricOptions rules;
  rules.resamples = 50;
  const Scores scores = summarize(before, rules);
  const ScoreDifference difference = compare(before, after, rules);
  fs::create_directories(root_ / "a");
  Json document = scores_to_json(scores);
  document["name"] = "Named by eval";
  document["blind"] = true;
  write_file_atomically(root_ / "a" / "metrics.json", document.dump());
  Json comparison = difference_to_json(difference);
  comparison["label"] = "after - before";
  write_file_atomically(root_ / "stages.json",
                        Json({{"stages", {{{"folder", "a"}}}}, {"comparisons", {comparison}}}).dump());

  const ReportData report = read_report(options({""}));
  ASSERT_EQ(report.stages.size(), 1u);
  const ReportStage& stage = report.stages[0];
  EXPECT_EQ(stage.label, "Named by eval");
  EXPECT_EQ(stage.note, "blind: every picture blanked");
  EXPECT_EQ(stage.num_questions, 40);
  EXPECT_EQ(stage.num_images, 8);
  EXPECT_EQ(stage.num_questions_by_type.size(), 2u);
  ASSERT_TRUE(stage.a_score.overall && stage.v_score.overall && stage.mean_score.overall && stage.parse_rate.overall);
  EXPECT_DOUBLE_EQ(stage.a_score.overall->mean, scores.metric("a_score").overall->mean);
  EXPECT_EQ(stage.a_score.overall->n, 20);
  EXPECT_EQ(stage.a_score.find("open"), nullptr);
  EXPECT_DOUBLE_EQ(*stage.v_score.find("open")->low, scores.metric("v_score").by_type.at(data::QuestionType::open).low);
  EXPECT_DOUBLE_EQ(*stage.mean_score.overall->high, scores.mean_of_a_and_v->high);
  EXPECT_DOUBLE_EQ(stage.parse_rate.overall->mean, 0.75);
  EXPECT_FALSE(stage.rules.empty());
  ASSERT_EQ(report.comparisons.size(), 1u);
  EXPECT_NEAR(report.comparisons[0].v_score->mean, 0.25, 1e-12);
  EXPECT_DOUBLE_EQ(*report.comparisons[0].mean->low, difference.mean_of_a_and_v->low);
}

TEST_F(ReportTest, ComparesTheLastStageWithThoseOfTheSameQuestions) {
  write_stage("a", 0.4, first(20));
  write_stage("b", 0.5, first(10));
  const ReportData data = read_report(options({"a", "b"}));
  ASSERT_EQ(data.comparisons.size(), 1u);
  EXPECT_EQ(data.comparisons[0].label, "b minus a");
  // Questions 10..19 became right; open ones have no A-score.
  int gained = 0, graded = 0;
  for (int i = 0; i < 40; ++i) {
    graded += i % 4 != 0;
    gained += i % 4 != 0 && i >= 10 && i < 20;
  }
  EXPECT_NEAR(data.comparisons[0].a_score->mean, static_cast<double>(gained) / graded, 1e-12);
  EXPECT_NEAR(data.comparisons[0].v_score->mean, 0.7 * 10 / 40, 1e-12);
}

TEST_F(ReportTest, ShowsTestsBaselinesHistogramsAndConfusions) {
  write_stage("a", 0.4, first(20));
  write_stage("b", 0.5, first(10));
  const ReportData data = read_report(options({"a", "b"}));
  ASSERT_EQ(data.comparisons.size(), 1u);
  const ReportComparison& comparison = data.comparisons[0];
  // Questions 10..19 became right, of which every fourth is open; none became wrong.
  EXPECT_NEAR(*comparison.mcnemar_p, 2 * std::pow(0.5, 8), 1e-12);
  ASSERT_TRUE(comparison.a_score->p_value && comparison.a_score->p_holm && comparison.v_score->detectable);
  EXPECT_GE(*comparison.a_score->p_holm, *comparison.a_score->p_value);
  // Runs without baselines get them from their references.
  ASSERT_EQ(data.stages[1].baselines.size(), 2u);
  EXPECT_DOUBLE_EQ(data.stages[1].baselines[0].a_score.overall->mean, 1.0) << "every reference is the same";
  const std::string page = render_report(data);
  EXPECT_THAT(page, AllOf(HasSubstr("Most frequent answer"), HasSubstr("Random boxes"), HasSubstr("McNemar"),
                          HasSubstr("0\u00a0% at 0"), HasSubstr("named as right lung")));
  EXPECT_THAT(page, Not(HasSubstr("Reliability of the answers"))) << "no answer has a confidence";
  EXPECT_THAT(page, Not(HasSubstr("Published GEMeX")));
}

TEST_F(ReportTest, OpenAnswersAndGradesAreComparedInPairs) {
  // Open questions: F1 0.25 before, 0.75 after. Grades: 4 of 8 before, 6 of 8 after.
  const auto write = [&](const std::string& name, double f1, int grade, const std::string& judge) {
    write_stage(name, 0.4, {});
    std::string lines;
    for (int i = 0; i < 40; ++i) {
      Json line = prediction(i, true);
      if (i % 4 == 0) line["token_f1"] = f1;
      line["judge"] = {{"model", grade}, {"reference", 8}};
      lines += line.dump() + "\n";
    }
    write_file_atomically(root_ / name / "predictions.jsonl", lines);
    Json document = metrics(0.4, 0.4);
    document["ar_score"] = score(grade / 8.0);
    document["provenance"] = {{"judge", judge}, {"prompt", nullptr}, {"seed", 3}};
    write_file_atomically(root_ / name / "metrics.json", document.dump());
  };
  write("a", 0.25, 4, "j-70b");
  write("b", 0.75, 6, "j-70b");
  write("c", 0.75, 6, "another");
  ReportData data = read_report(options({"a", "b"}));
  ASSERT_EQ(data.comparisons.size(), 1u);
  const ReportComparison& comparison = data.comparisons[0];
  ASSERT_TRUE(comparison.token_f1 && comparison.ar_score && comparison.token_f1->p_holm);
  EXPECT_NEAR(comparison.token_f1->mean, 0.5, 1e-12);
  EXPECT_EQ(comparison.token_f1->n, 10);
  EXPECT_NEAR(comparison.ar_score->mean, 0.25, 1e-12);
  EXPECT_LT(*comparison.token_f1->p_holm, 0.05);
  EXPECT_THAT(render_report(data),
              AllOf(HasSubstr("<th>Token F1</th>"), HasSubstr("<th>AR-score</th>"),
                    HasSubstr("AR-score,<br>by a judge"), HasSubstr("<figcaption><b>AR-score</b></figcaption>")));
  const std::string differences = differences_csv(data);
  EXPECT_THAT(differences, AllOf(HasSubstr("p,p_holm,detectable,p_mcnemar\n"), HasSubstr("b minus a,token_f1,0.5,")));
  std::istringstream lines(differences);
  for (std::string line; std::getline(lines, line);) {
    EXPECT_EQ(std::count(line.begin(), line.end(), ','), 8) << line;
    const bool is_a_score = line.find(",a_score,") != std::string::npos;
    if (!line.starts_with("b minus a")) continue;
    EXPECT_EQ(line.back() == ',', !is_a_score) << "McNemar's test is of answers";
  }
  EXPECT_THAT(scores_latex(data), AllOf(HasSubstr("A-score & $p$ & V-score & $p$ & Token F1 & $p$ & AR-score & $p$"),
                                        HasSubstr("% a: judge j-70b; prompt not said; seed 3\n")));
  EXPECT_THAT(scores_latex(data), AllOf(HasSubstr("Run & A-score & V-score & AR-score & Token F1 & Parsed"),
                                        HasSubstr("AR-score by question type.")));
  EXPECT_THAT(runs_csv(data), AllOf(HasSubstr("run,name,value\n"), HasSubstr("a,judge,j-70b\n"),
                                    HasSubstr("b,rule: boxes,hungarian\n")));
  // Grades of two judges are no pair; a run of an older version does not say its F1.
  data = read_report(options({"a", "c"}));
  EXPECT_TRUE(data.comparisons.at(0).token_f1);
  EXPECT_FALSE(data.comparisons.at(0).ar_score);
  write_stage("old", 0.4, {});
  data = read_report(options({"old", "c"}));
  EXPECT_TRUE(data.comparisons.at(0).v_score);
  EXPECT_FALSE(data.comparisons.at(0).token_f1);
  EXPECT_FALSE(data.comparisons.at(0).ar_score);
}

TEST_F(ReportTest, ShowsAveragePrecisionTypesAndHowPicturesWereShown) {
  write_stage("a", 0.4, {});
  Json document = metrics(0.4, 0.4);
  document["shuffled_pictures"] = true;
  document["rouge_l"] = score(0.25);
  document["detection"] = {{"ap", 0.125},
                           {"at", {{"0.40", 0.375}, {"0.50", 0.25}}},
                           {"by_label", {{"nodule mass", 0.0625}}},
                           {"recall", 0.5}};
  document["provenance"] = {{"subset", "all 40 questions"}, {"judge", nullptr}};
  write_file_atomically(root_ / "a" / "metrics.json", document.dump());
  const std::string page = render_report(read_report(options({"a"})));
  EXPECT_THAT(page, AllOf(HasSubstr("each picture replaced by another question&#39;s"),
                          HasSubstr("<th scope=\"row\">at IoU 0.40</th><td>0.375</td>"),
                          HasSubstr("<th scope=\"row\">nodule mass</th><td>0.062</td>"),
                          HasSubstr("<dt>judge</dt><dd>none</dd>"), HasSubstr("<details class=\"rules\">")));
  EXPECT_THAT(page, HasSubstr("<summary>All metrics, closed questions</summary>"));
  EXPECT_THAT(page, Not(HasSubstr("<summary>All metrics, open questions</summary>"))) << "none of them applies";
}

TEST_F(ReportTest, HowPredictionsWereWrittenIsNoRule) {
  const auto write = [&](const std::string& name, const Json& rules, std::int64_t count) {
    write_stage(name, 0.4, {});
    Json document = metrics(0.4, 0.4);
    document["rules"].update(rules);
    document["a_score"]["n"]["overall"] = count;
    write_file_atomically(root_ / name / "metrics.json", document.dump());
  };
  write("a", {{"format", "tags"}, {"interval", "seed 0"}}, 40);
  write("b", {{"format", "plain"}, {"frame", "unit"}}, 1200);
  write("c", {{"boxes", "union"}}, 40);
  const std::string same = render_report(read_report(options({"a", "b"})));
  EXPECT_THAT(same, AllOf(Not(HasSubstr("not comparable")), HasSubstr("<dt>format</dt><dd>plain</dd>"),
                          HasSubstr("<dt>frame</dt><dd>unit</dd>"), HasSubstr("<td>40\u20131,200</td>")));
  EXPECT_THAT(render_report(read_report(options({"a", "c"}))), HasSubstr("not comparable"));
}

TEST_F(ReportTest, SaysWhyNothingIsCompared) {
  write_stage("a", 0.4, {});
  write_stage("b", 0.4, {});
  write_file_atomically(root_ / "b" / "predictions.jsonl", prediction(1, true).dump());
  const ReportData data = read_report(options({"a", "b"}));
  EXPECT_TRUE(data.comparisons.empty());
  EXPECT_THAT(render_report(data), HasSubstr("No paired differences: no earlier stage"));
}

TEST_F(ReportTest, ASetOfOpenQuestionsAloneIsARun) {
  write_stage("a", 0.4, {});
  Json document = metrics(0.4, 0.4);
  document["a_score"] = document["v_score"] = Json{{"overall", nullptr}, {"by_type", Json::object()}};
  document["mean_of_a_and_v"] = {{"overall", nullptr}};
  document["token_f1"] = score(0.5);
  write_file_atomically(root_ / "a" / "metrics.json", document.dump());
  const ReportData data = read_report(options({"a"}));
  EXPECT_FALSE(data.stages.at(0).a_score.overall);
  EXPECT_THAT(render_report(data), HasSubstr("token F1"));
}

TEST_F(ReportTest, ReliabilityAndPublishedFiguresWhereThereAreAny) {
  write_stage("a", 0.4, first(20));
  std::string lines;
  for (int i = 0; i < 40; ++i) {
    Json line = prediction(i, i >= 20);
    line["confidence"] = i >= 20 ? 0.95 : 0.35;
    lines += line.dump() + "\n";
  }
  write_file_atomically(root_ / "a" / "predictions.jsonl", lines);
  ReportOptions chosen = options({"a"});
  chosen.published = "always";
  const std::string page = render_report(read_report(chosen));
  // 15 of 30 graded answers at 0.95 are all right, 15 at 0.35 all wrong: (0.05 + 0.35) / 2.
  EXPECT_THAT(page, AllOf(HasSubstr("Reliability of the answers"), HasSubstr("calibration error 0.200"),
                          HasSubstr("Published GEMeX figures"), HasSubstr("86.04")));
}

TEST_F(ReportTest, RunsWithoutPicturesAreDrawnOnAnEmptyCanvas) {
  write_stage("a", 0.4, first(20));
  std::string lines;
  for (int i = 0; i < 40; ++i) {
    Json line = prediction(i, true);
    for (const char* key : {"width", "height", "image_file"}) line.erase(key);
    lines += line.dump() + "\n";
  }
  write_file_atomically(root_ / "a" / "predictions.jsonl", lines);
  ReportOptions chosen = options({"a"});
  chosen.num_cases = 2;
  const std::string page = render_report(read_report(chosen));
  EXPECT_THAT(page, AllOf(HasSubstr("<rect class=\"canvas\" width=\"400\" height=\"400\"/>"),
                          HasSubstr("<rect class=\"ref\" data-r=\"r0\" x=\"120.0\" y=\"40.0\" width=\"80.0\"")));
  EXPECT_EQ(page.find("base64"), std::string::npos);
  EXPECT_THAT(page, HasSubstr("do not know their pictures"));
  // A root that is named now has them: 100 x 200 pixels, padded by 100 to each side of the letterbox of 400.
  chosen.images = (root_ / "images").string();
  const std::string shown = render_report(read_report(chosen));
  EXPECT_THAT(shown, AllOf(HasSubstr("data:image/jpeg;base64"), Not(HasSubstr("do not know their pictures")),
                           HasSubstr("<rect class=\"ref\" data-r=\"r0\" x=\"10.0\" y=\"20.0\" width=\"40.0\"")));
}

TEST_F(ReportTest, TablesForPapers) {
  write_stage("a_1", 0.4, first(20));
  write_stage("b", 0.5, first(10));
  ReportOptions chosen = options({"a_1", "50% & more=b"});
  chosen.tables = (root_ / "tables").string();
  write_report(chosen);
  const std::string csv = read_file(root_ / "tables" / "scores.csv");
  EXPECT_THAT(csv,
              AllOf(HasSubstr("run,metric,group,value,low,high,n\n"), HasSubstr("a_1,a_score,all,0.4,0.35,0.45,40\n"),
                    HasSubstr("50% & more,a_score,type:closed,0.5,0.1,0.9,10\n")));
  const std::string differences = read_file(root_ / "tables" / "differences.csv");
  EXPECT_THAT(differences, HasSubstr("50% & more minus a_1,a_score,"));
  const std::string tex = read_file(root_ / "tables" / "tables.tex");
  EXPECT_THAT(tex, AllOf(HasSubstr("50\\% \\& more & 50.0 {\\scriptsize [45.0, 55.0]}"), HasSubstr("a\\_1 & 40.0"),
                         HasSubstr("\\bottomrule")));
  EXPECT_EQ(count_of(tex, "\\begin{tabular}"), count_of(tex, "\\end{tabular}"));
  EXPECT_EQ(count_of(tex, "\\begin{tabular}"), 4);
}

TEST_F(ReportTest, CasesAreBalancedAndFixedByTheSeed) {
  write_stage("a", 0.5, first(20));
  ReportOptions chosen = options({"a"});
  chosen.num_cases = 16;
  const ReportData data = read_report(chosen);
  std::map<std::pair<std::string, bool>, int> counts;
  std::vector<std::string> ids;
  for (const ReportCase& item : data.cases) {
    ++counts[{item.reference.type, item.reference.is_right()}];
    ids.push_back(item.reference.id);
  }
  EXPECT_EQ(data.cases.size(), 16u);
  EXPECT_EQ(counts.size(), 8u);
  for (const auto& [group, count] : counts) EXPECT_EQ(count, 2) << group.first << group.second;
  EXPECT_EQ(std::set<std::string>(ids.begin(), ids.end()).size(), 16u);

  const auto ids_of = [&](std::int64_t seed) {
    chosen.seed = seed;
    std::vector<std::string> out;
    for (const ReportCase& item : read_report(chosen).cases) out.push_back(item.reference.id);
    return out;
  };
  EXPECT_EQ(ids_of(0), ids);
  EXPECT_NE(ids_of(1), ids);
}

TEST_F(ReportTest, CasesThatChangedAreAmongTheFirst) {
  // Only questions 8 .. 11 became right, one of each type.
  write_stage("a", 0.5, first(12));
  write_stage("b", 0.6, first(8));
  ReportOptions chosen = options({"a", "b"});
  chosen.num_cases = 12;
  int changed = 0;
  for (const ReportCase& item : read_report(chosen).cases)
    changed += item.answers[0]->is_right() != item.answers[1]->is_right() ? 1 : 0;
  EXPECT_EQ(changed, 4);
}

TEST_F(ReportTest, CasesComeFromQuestionsThatAllStagesAnswered) {
  write_stage("a", 0.5, first(20));
  write_stage("b", 0.6, first(10));
  std::string lines;
  for (int i = 30; i < 40; ++i) lines += prediction(i, false).dump() + "\n";
  Json other = prediction(3, true);
  other["question"] = "The same id in another data set";
  lines += other.dump() + "\n";
  write_file_atomically(root_ / "a" / "predictions.jsonl", lines);
  const ReportData data = read_report(options({"a", "b"}));
  EXPECT_EQ(data.num_case_candidates, 10);
  EXPECT_THAT(data.case_labels, ElementsAre("a", "b"));
  ASSERT_EQ(data.cases.size(), 10u);
  for (const ReportCase& item : data.cases) {
    ASSERT_EQ(item.answers.size(), 2u);
    EXPECT_FALSE(item.answers[0]->is_right());
    EXPECT_TRUE(item.answers[1]->is_right());
  }
  EXPECT_TRUE(data.comparisons.empty());
}

TEST_F(ReportTest, PageDrawsBoxesInPixelsOfThePicture) {
  write_stage("a", 0.5, first(20));
  write_stage("b", 0.5, first(20));
  ReportOptions chosen = options({"a", "b"});
  chosen.num_cases = 1;
  const std::string page = render_report(read_report(chosen));
  // [120, 40, 200, 240] of the 400 letterbox is, at 2 pixels a picture pixel and 100 of padding, [10, 20, 50, 120].
  const std::string reference = "x=\"10.0\" y=\"20.0\" width=\"40.0\" height=\"100.0\"";
  const std::string predicted = "x=\"50.0\" y=\"20.0\" width=\"40.0\" height=\"100.0\"";
  EXPECT_THAT(page, AllOf(HasSubstr("<rect class=\"ref\" data-r=\"r0\" " + reference),
                          HasSubstr("<rect class=\"pred\" data-r=\"p0-0\" " + predicted),
                          HasSubstr("<rect class=\"pred\" data-r=\"p1-0\" " + predicted),
                          HasSubstr("<rect class=\"step\" data-r=\"s1-0\" " + predicted)));
  // The mark covers the region's name with its box, and text around it is escaped.
  EXPECT_THAT(page,
              HasSubstr("See the <mark class=\"\" data-r=\"s0-0\" tabindex=\"0\">right lung <span class=\"at\">(region "
                        "[200, 40, 280, 240])</span></mark> &amp; &lt;more&gt;."));
  EXPECT_EQ(count_of(page, "data:image/jpeg;base64,"), 1);
  EXPECT_EQ(count_of(page, "<use href=\"#picture-0\"/>"), 1);
}

TEST_F(ReportTest, PageShowsScoresCurvesAndOrigin) {
  write_stage("eval", 0.512, first(20));
  write_training("train");
  const std::string page = render_report(read_report(options({"Stage one=eval", "train"})));
  EXPECT_THAT(page,
              AllOf(HasSubstr("Stage one"), HasSubstr("0.512"), HasSubstr("0.462\u20130.562"), HasSubstr("hungarian"),
                    HasSubstr("Test CPU, 2 cores, 24.0 GiB"), HasSubstr("thinkvg 9.8.7"), HasSubstr("lr: 0.0003")));
  EXPECT_THAT(page, AllOf(HasSubstr(">Reward</b>"), HasSubstr(">Reward: format</b>"),
                          HasSubstr("1 further logged metric"), HasSubstr("weird_metric")));
  // Curves that were not logged have no chart.
  EXPECT_THAT(page, AllOf(Not(HasSubstr(">Loss</b>")), Not(HasSubstr("KL to"))));
}

TEST_F(ReportTest, GrpoRunsShowWarningsAndTheSameQuestionsOverTime) {
  fs::create_directories(root_ / "run" / "samples");
  std::string metrics;
  for (int step = 1; step <= 12; ++step)
    metrics +=
        Json({{"step", step}, {"reward", 0.1}, {"frac_reward_zero_std", 0.9}, {"rewards/answer/mean", 0.1}}).dump() +
        "\n";
  write_file_atomically(root_ / "run" / "metrics.jsonl", metrics);
  write_file_atomically(root_ / "run" / "config.yaml", "images: " + (root_ / "images").string() + "\n");
  std::string watched;
  const auto add = [&](int step, int question, const std::string& answer) {
    watched += Json({{"step", step},
                     {"id", std::to_string(question)},
                     {"type", "closed"},
                     {"question", "Is it dense?"},
                     {"choices", Json::array()},
                     {"reference", "yes"},
                     {"reference_think", ""},
                     {"reference_regions", {{{"ref", "left lung"}, {"box", {120, 40, 200, 240}}}}},
                     {"reference_frame", "letterbox-400"},
                     {"image", fmt::format("p{}.jpg", question)},
                     {"image_size", {100, 200}},
                     {"response", "<think>It is <so>.</think><response><answer>" + answer +
                                      "</answer><location><ref>left lung</ref><box>[60, 20, 90, 120]</box></location>"
                                      "</response>"},
                     {"frame", "original"},
                     {"finish", "stop"},
                     {"reward", 1.5},
                     {"rewards",
                      {{"answer", {{"value", 1.0}, {"reason", "the \"reference\""}}},
                       {"region", {{"value", nullptr}, {"reason", "no names"}}}}}})
                   .dump() +
               "\n";
  };
  for (const int step : {0, 4, 8, 12, 16, 20, 24}) {
    add(step, 1, step < 20 ? "no" : "yes");
    if (step > 0) add(step, 2, "no");
  }
  add(0, 1, "again");  // of a run that was resumed before its first checkpoint
  write_file_atomically(root_ / "run" / "samples" / "watched.jsonl", watched);

  const ReportData data = read_report(options({"run"}));
  const ReportTraining& training = data.trainings.at(0);
  ASSERT_EQ(training.warnings.size(), 1u);
  EXPECT_EQ(training.warnings[0].name, "zero_signal");
  EXPECT_THAT(training.watched_labels, ElementsAre("step 0", "step 8", "step 16", "step 24"));
  ASSERT_EQ(training.watched.size(), 2u);
  const ReportCase& first = training.watched[0];
  EXPECT_FALSE(first.jpeg.empty());
  ASSERT_TRUE(first.answers.at(0) && first.answers.at(3));
  EXPECT_EQ(first.answers[0]->answer, "again");
  EXPECT_EQ(first.answers[3]->a_score, 1.0);
  EXPECT_EQ(first.answers[3]->reward, 1.5);
  // Pixels of the picture, in the frame of the reference: 100 x 200 is padded to a square of 200, which becomes 400.
  EXPECT_NEAR(first.answers[3]->regions.at(0).box.x1, 220, 1e-6);
  EXPECT_FALSE(training.watched[1].answers.at(0)) << "not asked at step 0";

  const std::string page = render_report(data);
  EXPECT_THAT(page, AllOf(HasSubstr("data-warning=\"zero_signal\""), HasSubstr("90 % of the groups teach nothing"),
                          HasSubstr("The same questions over time"), HasSubstr("id=\"watched-0-0\""),
                          HasSubstr("<h4>step 24</h4>"), HasSubstr("the &quot;reference&quot;")));
  EXPECT_EQ(count_of(page, "Not asked this question."), 1);
  EXPECT_EQ(count_of(page, "href=\"#watched-0-0\""), 3) << "the other steps use the first one's picture";

  // Without the pictures the page is still of use.
  fs::remove_all(root_ / "images");
  const ReportData bare = read_report(options({"run"}));
  EXPECT_TRUE(bare.trainings.at(0).watched.at(0).jpeg.empty());
  EXPECT_THAT(render_report(bare), HasSubstr("class=\"canvas\""));
}

TEST_F(ReportTest, PageStandsAloneAndIsSafe) {
  write_stage("a", 0.5, first(20));
  const std::string attack = "</p><script>alert(1)</script><img src=x onerror=alert(1)>";
  for (int i = 0; i < 40; ++i) {
    Json line = prediction(i, true);
    for (const char* key : {"question", "response"}) line[key] = attack;
    for (const char* key : {"answer", "think", "problem"}) line["parsed"][key] = attack;
    line["parsed"]["complete"] = false;
    line["parsed"]["regions"][0]["ref"] = attack;
    line["reference"]["answer"] = attack;
    line["choices"] = {attack};
    if (i == 0) write_file_atomically(root_ / "a" / "predictions.jsonl", line.dump() + "\n");
  }
  write_file_atomically(root_ / "stages.json",
                        Json({{"title", attack},
                              {"description", attack},
                              {"stages", {{{"folder", "a"}, {"label", attack}, {"note", attack}}}},
                              {"comparisons", {{{"label", attack}, {"a_score", {{"difference", 0.1}}}}}}})
                            .dump());
  const ReportOptions chosen = options({""});
  const std::string page = render_report(read_report(chosen));
  EXPECT_EQ(page.find("<script>alert"), std::string::npos);
  EXPECT_EQ(page.find("<img"), std::string::npos);
  EXPECT_EQ(count_of(page, "<script>"), 1);
  for (const char* outside : {"http://", "https://", " src=\"", "@import", "url("})
    EXPECT_EQ(page.find(outside), std::string::npos) << outside;
  EXPECT_THAT(page, HasSubstr("Incomplete response: &lt;/p&gt;"));
}

TEST_F(ReportTest, WritesTheSameBytesTwice) {
  write_stage("a", 0.5, first(20));
  write_training("t");
  const ReportOptions chosen = options({"a", "t"});
  write_report(chosen);
  const std::string once = read_file(chosen.out);
  write_report(chosen);
  EXPECT_EQ(read_file(chosen.out), once);
  EXPECT_TRUE(once.starts_with("<!DOCTYPE html>"));
  EXPECT_TRUE(once.ends_with("</html>\n"));
}

TEST_F(ReportTest, FortyCasesOfFullPicturesStayUnderFiveMegabytes) {
  image::Picture noise{420, 840, std::vector<std::uint8_t>(420 * 840 * 3)};
  std::uint32_t state = 1;
  for (auto& value : noise.pixels) value = static_cast<std::uint8_t>((state = state * 1664525u + 1013904223u) >> 26);
  image::write_picture(noise, root_ / "images" / "p0.jpg");
  for (int i = 1; i < 8; ++i)
    fs::copy_file(root_ / "images" / "p0.jpg", root_ / "images" / fmt::format("p{}.jpg", i),
                  fs::copy_options::overwrite_existing);
  write_stage("a", 0.5, first(20));
  ReportOptions chosen = options({"a"});
  chosen.num_cases = 40;
  const ReportData data = read_report(chosen);
  ASSERT_EQ(data.cases.size(), 40u);
  const image::Picture small = image::decode_picture(data.cases[0].jpeg, "case");
  EXPECT_EQ(small.height, 420);
  EXPECT_EQ(small.width, 210);
  EXPECT_LT(render_report(data).size(), 5u << 20);
}

TEST_F(ReportTest, FindsMovedPicturesUnderTheGivenRoot) {
  write_stage("a", 0.5, first(20));
  fs::rename(root_ / "images", root_ / "moved");
  ReportOptions chosen = options({"a"});
  EXPECT_THAT(message_of<std::runtime_error>([&] { read_report(chosen); }),
              AllOf(HasSubstr("predictions.jsonl"), HasSubstr("is missing"), HasSubstr("--images")));
  chosen.images = (root_ / "moved").string();
  EXPECT_FALSE(read_report(chosen).cases.empty());
}

TEST_F(ReportTest, SaysWhichFileIsMissingOrDamaged) {
  write_stage("a", 0.5, {});
  write_training("t");
  const auto failure = [&](const std::vector<std::string>& runs) {
    return message_of<std::runtime_error>([&] { read_report(options(runs)); });
  };
  EXPECT_THAT(failure({"nowhere"}), AllOf(HasSubstr("nowhere"), HasSubstr("does not exist")));
  EXPECT_THAT(failure({"images"}), HasSubstr("holds no run"));
  EXPECT_THAT(failure({"images/p0.jpg"}), HasSubstr("is a file"));

  replace_line("a", 4, "{\"id\": \"4\", ");
  EXPECT_THAT(failure({"a"}), HasSubstr("predictions.jsonl, line 5: not JSON"));
  Json line = prediction(4, true);
  line.erase("question");
  replace_line("a", 4, line.dump());
  EXPECT_THAT(failure({"a"}), HasSubstr("predictions.jsonl, line 5: the key 'question' is missing"));
  line = prediction(4, true);
  line["width"] = "wide";
  replace_line("a", 4, line.dump());
  EXPECT_THAT(failure({"a"}), HasSubstr("line 5: expected a number at 'width', but it is \"wide\""));
  line = prediction(4, true);
  line["frame"] = "letterbx-336";
  replace_line("a", 4, line.dump());
  EXPECT_THAT(failure({"a"}), AllOf(HasSubstr("line 5"), HasSubstr("letterbx-336")));
  line = prediction(4, true);
  line["parsed"]["regions"][0]["box"] = {1, 2, 3};
  replace_line("a", 4, line.dump());
  EXPECT_THAT(failure({"a"}), AllOf(HasSubstr("line 5"), HasSubstr("four numbers")));

  // A picture of another shape would put every box in the wrong place.
  line = prediction(4, true);
  line["width"] = 200;
  write_file_atomically(root_ / "a" / "predictions.jsonl", line.dump());
  EXPECT_THAT(failure({"a"}), AllOf(HasSubstr("p4.jpg"), HasSubstr("100 x 200"), HasSubstr("200 x 200")));
  write_file_atomically(root_ / "a" / "predictions.jsonl", prediction(4, true).dump());
  write_file_atomically(root_ / "images" / "p4.jpg", "not a picture");
  EXPECT_THAT(failure({"a"}), HasSubstr("p4.jpg"));

  write_file_atomically(root_ / "a" / "metrics.json", R"({"num_questions": {"overall": 4}})");
  EXPECT_THAT(failure({"a"}), AllOf(HasSubstr("metrics.json"), HasSubstr("a_score")));
  fs::remove(root_ / "a" / "metrics.json");
  EXPECT_THAT(failure({"a"}), AllOf(HasSubstr("metrics.json"), HasSubstr("did the evaluation finish")));

  write_file_atomically(root_ / "t" / "metrics.jsonl", "{\"step\": 1}\n{\"loss\": 1}\n");
  EXPECT_THAT(failure({"t"}), HasSubstr("metrics.jsonl, line 2: the key 'step' is missing"));
  write_file_atomically(root_ / "stages.json", R"({"stages": [{"folder": "images"}]})");
  EXPECT_THAT(failure({""}), AllOf(HasSubstr("stages.json"), HasSubstr("images")));
}

TEST_F(ReportTest, WrongOptionsAreRefusedAndNothingIsWritten) {
  write_stage("a", 0.5, {});
  ReportOptions chosen = options({});
  EXPECT_THROW(write_report(chosen), std::invalid_argument);
  chosen = options({"a"});
  chosen.jpeg_quality = 101;
  EXPECT_THROW(write_report(chosen), std::invalid_argument);
  chosen = options({"a"});
  chosen.num_cases = -1;
  EXPECT_THROW(write_report(chosen), std::invalid_argument);
  EXPECT_FALSE(fs::exists(chosen.out));
  chosen = options({"a"});
  chosen.out = "";
  EXPECT_THROW(write_report(chosen), std::invalid_argument);
}

TEST_F(ReportTest, LongRawTextIsCut) {
  write_stage("a", 0.5, {});
  Json line = prediction(1, false);
  line["parsed"] = {
      {"complete", false}, {"problem", "no <answer>"}, {"answer", ""}, {"think", ""}, {"regions", Json::array()}};
  line["response"] = std::string(100000, 'x');
  write_file_atomically(root_ / "a" / "predictions.jsonl", line.dump());
  const std::string page = render_report(read_report(options({"a"})));
  EXPECT_LT(page.size(), 60000u);
  EXPECT_THAT(page, AllOf(HasSubstr("Incomplete response: no &lt;answer&gt;"), HasSubstr("96,000 more bytes"),
                          HasSubstr("No boxes predicted")));
}

}  // namespace
}  // namespace thinkvg::eval
