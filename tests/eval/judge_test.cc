#include "thinkvg/eval/judge.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

#include "thinkvg/core/error.h"
#include "thinkvg/core/files.h"

namespace thinkvg::eval {
namespace {

using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

class JudgeTest : public ::testing::Test {
 protected:
  void SetUp() override {
    file_ = std::filesystem::temp_directory_path() / fmt::format("thinkvg-judge-{}.jsonl", getpid());
    std::filesystem::remove(file_);
    for (int i = 0; i < 5; ++i) {
      data::Sample& sample = samples_.emplace_back();
      sample.id = std::to_string(i);
      sample.question = "What?";
      sample.answer = "That.";
    }
  }
  void TearDown() override { std::filesystem::remove(file_); }
  std::vector<JudgeRequest> requests() const {
    std::vector<JudgeRequest> out;
    for (const data::Sample& sample : samples_) out.push_back({sample, "this", "so"});
    return out;
  }

  std::filesystem::path file_;
  std::vector<data::Sample> samples_;
};

TEST_F(JudgeTest, GoesOnWhereItStopped) {
  int calls = 0;
  const Judge failing = [&](const std::vector<JudgeRequest>& part) -> std::vector<std::optional<JudgeVerdict>> {
    if (++calls == 2) throw std::runtime_error("judge is down");
    return std::vector<std::optional<JudgeVerdict>>(part.size(), JudgeVerdict{{6, 8}, "fair"});
  };
  EXPECT_THROW(run_judge(requests(), failing, file_, {"j", 2}), std::runtime_error);
  const JudgeFile kept = read_judge_scores(file_);
  EXPECT_EQ(kept.judge, "j");
  EXPECT_EQ(kept.scores.size(), 2u);
  EXPECT_EQ(judge_cost(requests(), kept.scores).num_requests, 3);
  EXPECT_EQ(judge_cost(requests(), kept.scores).num_characters, 3 * (5 + 5 + 4 + 2));

  std::vector<std::string> asked;
  const Judge working = [&](const std::vector<JudgeRequest>& part) {
    std::vector<std::optional<JudgeVerdict>> out;
    for (const JudgeRequest& request : part) {
      asked.push_back(request.sample.id);
      out.push_back(request.sample.id == "4" ? std::nullopt : std::optional<JudgeVerdict>({{9, 10}, ""}));
    }
    return out;
  };
  const JudgeScores scores = run_judge(requests(), working, file_, {"j", 2});
  EXPECT_THAT(asked, ::testing::ElementsAre("2", "3", "4"));
  EXPECT_EQ(scores.size(), 4u) << "the judge gave none on 4";
  EXPECT_EQ(scores.at("0").model, 6);
  EXPECT_EQ(scores.at("3").reference, 10);
  EXPECT_THAT(
      [&] {
        run_judge(requests(), working, file_, {"other", 2});
      },
      ThrowsMessage<std::runtime_error>(HasSubstr("grades of 'j'")));
}

TEST_F(JudgeTest, ALineThatAKillCutOffIsGradedAgain) {
  std::ofstream(file_) << R"({"id": "0", "model": 5, "reference": 5, "judge": "j"})"
                       << "\n"
                       << R"({"id": "1", "mod)";
  const Judge judge = [](const std::vector<JudgeRequest>& part) {
    return std::vector<std::optional<JudgeVerdict>>(part.size(), JudgeVerdict{{1, 2}, ""});
  };
  EXPECT_EQ(run_judge(requests(), judge, file_, {"j"}).size(), 5u);
  EXPECT_EQ(read_judge_scores(file_).scores.at("1").reference, 2);
}

TEST_F(JudgeTest, ReadsLlavaReviewsAndRefusesOthers) {
  const auto read = [&](const std::string& text) {
    std::ofstream(file_) << text;
    return read_judge_scores(file_);
  };
  const JudgeFile review = read(R"({"question_id": 3, "tuple": [8.0, 7.0], "content": "8 7"})");
  EXPECT_EQ(review.scores.at("3").reference, 8);
  EXPECT_EQ(review.scores.at("3").model, 7);
  for (const auto& [text, message] : std::vector<std::pair<std::string, std::string>>{
           {R"({"id": "1", "model": "7", "reference": 8})", "must be a number"},
           {R"({"id": "1", "model": -1, "reference": 8})", "0 or more"},
           {R"({"id": "1"})", "expected \"model\""},
           {R"({"model": 1, "reference": 8})", "neither 'id'"},
           {"{\"id\": \"1\", \"model\": 1, \"reference\": 8, \"judge\": \"a\"}\n"
            "{\"id\": \"2\", \"model\": 1, \"reference\": 8, \"judge\": \"b\"}",
            "line 2: graded by 'b'"}}) {
    const std::string content = text;
    EXPECT_THAT([&] { read(content); }, ThrowsMessage<std::runtime_error>(HasSubstr(message)));
  }
}

TEST(ArScore, BothAggregations) {
  std::vector<QuestionScore> questions(3);
  for (int i = 0; i < 3; ++i) questions[i].sample_id = questions[i].image = std::to_string(i);
  EXPECT_EQ(apply_judge_scores(questions, {{"0", {8, 10}}, {"1", {2, 4}}, {"2", {3, 0}}}), 3);
  const Scores scores = summarize(questions, {});
  // A reference graded 0 gives no ratio.
  EXPECT_NEAR(scores.metric("ar_score").overall->mean, (0.8 + 0.5) / 2, 1e-12);
  EXPECT_NEAR(scores.metric("ar_score_ratio_of_means").overall->mean, 10.0 / 14, 1e-12);
  EXPECT_EQ(scores.metric("ar_score").overall->num_questions, 2);
  EXPECT_THROW(scores.metric("arr_score"), std::invalid_argument);
}

}  // namespace
}  // namespace thinkvg::eval
