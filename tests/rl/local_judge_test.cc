#include "thinkvg/rl/local_judge.h"

#include <gmock/gmock.h>

#include "tests/support/rewards.h"
#include "tests/support/tiny_run.h"

namespace thinkvg::rl {
namespace {

rewards::JudgeOptions tiny_judge() {
  rewards::JudgeOptions options;
  options.url = "local";
  options.model = test::tiny_run().model.string();
  options.max_tokens = 6;
  options.prompt = std::string(THINKVG_SOURCE_DIR) + "/configs/judge/semantic.yaml";
  return options;
}

// A model that was not trained writes nonsense, but the same nonsense to the same question, whatever stands beside it.
TEST(LocalJudge, RepliesDependOnTheirQuestionAlone) {
  rewards::JudgeOptions options = tiny_judge();
  options.temperature = 1;
  LocalJudge judge(options);
  const std::vector<rewards::JudgeRequest> requests = {{"be fair", "one?", 0}, {"", "two?", 0}, {"", "two?", 1}};
  const auto together = judge.ask(requests);
  ASSERT_EQ(together.size(), 3u);
  EXPECT_NE(together[1].text, together[2].text);
  for (std::size_t i = 0; i < requests.size(); ++i) {
    const auto alone = judge.ask({&requests[i], 1});
    EXPECT_EQ(alone[0].text, together[i].text);
    EXPECT_EQ(alone[0].problem, "");
    EXPECT_GT(alone[0].prompt_tokens, 5);
    EXPECT_LE(alone[0].reply_tokens, 6);
  }
  EXPECT_TRUE(judge.ask({}).empty());
}

TEST(LocalJudge, ServesTheRewards) {
  rewards::RewardOptions options;
  options.judge = tiny_judge();
  options.open_text = "judge";
  options.judge.failure = {.on_failure = "fallback", .fallback = 0.5};
  rewards::RewardSet set({"judge=1", "answer=1"}, options, reward_resources());
  const test::RewardCase one{.sample = test::reward_sample(data::QuestionType::open, "large heart", {}),
                             .text = grounding::format_response("normal", {})};
  const rewards::RewardInput input = one.input();
  const auto scores = set.score({&input, 1}).front().scores;
  for (const rewards::RewardScore& score : scores) {
    EXPECT_EQ(score.value, 0.5);  // nonsense holds no scores
    EXPECT_THAT(score.reason, ::testing::HasSubstr("no two scores"));
  }
  options.judge.model = "/nowhere";
  EXPECT_THROW(rewards::RewardSet({"judge"}, options, reward_resources()), std::runtime_error);
}

}  // namespace
}  // namespace thinkvg::rl
