#include "thinkvg/eval/judge.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <memory>
#include <span>

#include "thinkvg/core/error.h"
#include "thinkvg/core/files.h"

namespace thinkvg::eval {
namespace {

using ::testing::AllOf;
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

using Verdicts = std::vector<std::optional<JudgeVerdict>>;

TEST_F(JudgeTest, GoesOnWhereItStopped) {
  int calls = 0;
  const Judge failing{"j", [&](const std::vector<JudgeRequest>& part) {
                        if (++calls == 2) throw std::runtime_error("judge is down");
                        return Verdicts(part.size(), JudgeVerdict{{6, 8}, "fair"});
                      }};
  EXPECT_THROW(run_judge(requests(), failing, {file_, 2}), std::runtime_error);
  const JudgeFile kept = read_judge_scores(file_);
  EXPECT_EQ(kept.judge, "j");
  EXPECT_EQ(kept.scores.size(), 2u);

  std::vector<std::string> asked;
  Judge working{"j", [&](const std::vector<JudgeRequest>& part) {
                  Verdicts out;
                  for (const JudgeRequest& request : part) {
                    asked.push_back(request.sample.id);
                    out.push_back(request.sample.id == "4" ? std::nullopt : std::optional<JudgeVerdict>({{9, 10}, ""}));
                  }
                  return out;
                }};
  const JudgeScores scores = run_judge(requests(), working, {file_, 2}).scores;
  EXPECT_THAT(asked, ::testing::ElementsAre("2", "3", "4"));
  EXPECT_EQ(scores.size(), 4u) << "the judge gave none on 4";
  EXPECT_EQ(scores.at("0").model, 6);
  EXPECT_EQ(scores.at("3").reference, 10);
  working.name = "other";
  EXPECT_THAT(
      [&] {
        run_judge(requests(), working, {file_, 2});
      },
      ThrowsMessage<std::runtime_error>(HasSubstr("grades of 'j'")));
}

TEST_F(JudgeTest, AnAnswerThatHasChangedIsGradedAgain) {
  int num_asked = 0;
  const Judge judge{"j", [&](const std::vector<JudgeRequest>& part) {
                      num_asked += static_cast<int>(part.size());
                      return Verdicts(part.size(), JudgeVerdict{{5.0 + num_asked, 8}, ""});
                    }};
  EXPECT_EQ(run_judge(requests(), judge, {file_}).scores.at("1").model, 10);
  std::vector<JudgeRequest> later;
  for (const JudgeRequest& request : requests())
    later.push_back({request.sample, request.sample.id == "1" ? "that" : request.answer, request.reasoning});
  const JudgeFile again = run_judge(later, judge, {file_});
  EXPECT_EQ(num_asked, 6);
  EXPECT_EQ(again.scores.at("1").model, 11);
  EXPECT_EQ(again.scores.at("2").model, 10);
  run_judge(later, judge, {file_});
  EXPECT_EQ(num_asked, 6);
}

TEST_F(JudgeTest, ALineThatAKillCutOffIsGradedAgain) {
  std::ofstream(file_) << R"({"id": "0", "model": 5, "reference": 5, "judge": "j"})"
                       << "\n"
                       << R"({"id": "1", "mod)";
  const Judge judge{"j", [](const std::vector<JudgeRequest>& part) {
                      return Verdicts(part.size(), JudgeVerdict{{1, 2}, ""});
                    }};
  EXPECT_EQ(run_judge(requests(), judge, {file_}).scores.size(), 5u);
  EXPECT_EQ(read_judge_scores(file_).scores.at("1").reference, 2);
  EXPECT_EQ(read_judge_scores(file_).scores.at("0").reference, 5) << "it does not say of which texts: taken as it is";
}

// Replies "8 7", or nothing readable to what it is told to; keeps what it was asked.
class ScriptedJudge final : public rewards::Judge {
 public:
  std::vector<rewards::JudgeReply> ask(std::span<const rewards::JudgeRequest> asked) override {
    std::vector<rewards::JudgeReply> replies;
    for (const rewards::JudgeRequest& request : asked) {
      texts.push_back(request.user);
      replies.push_back({request.user.find("broken") == std::string::npos ? "8 7" : "no idea", "", 0, 0});
    }
    return replies;
  }
  std::vector<std::string> texts;
};

rewards::JudgeOptions scripted_options() {
  rewards::JudgeOptions options = answer_judge_options();
  options.url = "local";
  options.model = "scripted";
  options.prompt = std::string(THINKVG_SOURCE_DIR) + "/" + options.prompt;
  options.price_in = 2;
  options.price_out = 4;
  options.max_tokens = 100;
  return options;
}

TEST_F(JudgeTest, TheArScorePutsAnswersWithTheirReasonsInBothOrders) {
  const auto scripted = std::make_shared<ScriptedJudge>();
  const auto local = [&](const rewards::JudgeOptions&) { return scripted; };
  const Judge judge = make_answer_judge(scripted_options(), local);
  EXPECT_THAT(judge.name, AllOf(HasSubstr("scripted, prompt ar_score.yaml (SHA-256 "), HasSubstr("both orders")));
  samples_.resize(1);
  samples_[0].think = "It is dark.";
  const JudgeCost cost = judge.cost(requests());
  EXPECT_EQ(cost.num_requests, 2);
  EXPECT_EQ(cost.max_reply_tokens, 200);
  EXPECT_GT(cost.num_prompt_tokens, 200);
  EXPECT_DOUBLE_EQ(cost.max_price, (static_cast<double>(cost.num_prompt_tokens) * 2 + 200 * 4) / 1e6);
  EXPECT_THAT(scripted->texts, ::testing::IsEmpty()) << "the cost is told before anything is asked";

  const JudgeScores scores = run_judge(requests(), judge, {file_}).scores;
  ASSERT_EQ(scripted->texts.size(), 2u);
  EXPECT_THAT(scripted->texts[0],
              AllOf(HasSubstr("[Context]\nIt is dark.\n"), HasSubstr("[Assistant 1]\nThat.\nReason: It is dark.\n"),
                    HasSubstr("[Assistant 2]\nthis\nReason: so\n")));
  EXPECT_THAT(scripted->texts[1], HasSubstr("[Assistant 1]\nthis\nReason: so\n"));
  EXPECT_EQ(scores.at("0").model, 7.5);  // the liking for the first cancels out
  EXPECT_EQ(scores.at("0").reference, 7.5);

  samples_[0].fields["report"] = "The lungs are clear.";
  run_judge(requests(), judge, {});
  EXPECT_THAT(scripted->texts.back(), HasSubstr("[Context]\nThe lungs are clear.\n"));
}

TEST_F(JudgeTest, WhatTheJudgeCannotReadIsLeftOutOrStops) {
  const auto scripted = std::make_shared<ScriptedJudge>();
  const auto local = [&](const rewards::JudgeOptions&) { return scripted; };
  samples_[2].question = "broken";
  rewards::JudgeOptions options = scripted_options();
  EXPECT_EQ(run_judge(requests(), make_answer_judge(options, local), {file_}).scores.size(), 4u);
  options.failure.on_failure = "stop";
  EXPECT_THAT([&] { run_judge(requests(), make_answer_judge(options, local), {}); },
              ThrowsMessage<std::runtime_error>(HasSubstr("no scores for 1 of 5")));
  options.failure.on_failure = "fallback";
  EXPECT_THROW(make_answer_judge(options, local), std::invalid_argument);
}

// A cache answers again without a request, and is not part of the cost.
TEST_F(JudgeTest, ACacheMakesASecondRunFree) {
  const auto scripted = std::make_shared<ScriptedJudge>();
  const auto local = [&](const rewards::JudgeOptions&) { return scripted; };
  rewards::JudgeOptions options = scripted_options();
  options.cache = file_.string() + ".cache";
  run_judge(requests(), make_answer_judge(options, local), {});
  const std::size_t num_asked = scripted->texts.size();
  EXPECT_EQ(num_asked, 2u) << "five equal questions are one";
  const Judge again = make_answer_judge(options, local);
  EXPECT_EQ(again.cost(requests()).num_requests, 0);
  EXPECT_EQ(run_judge(requests(), again, {}).scores.size(), 5u);
  EXPECT_EQ(scripted->texts.size(), num_asked);
  std::filesystem::remove(options.cache);
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
