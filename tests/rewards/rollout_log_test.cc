#include "thinkvg/rewards/rollout_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/rewards.h"
#include "tests/support/temporary_folder.h"
#include "thinkvg/core/files.h"

namespace thinkvg::rewards {
namespace {

using data::QuestionType;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

test::RewardCase make_case(QuestionType type) {
  test::RewardCase one{.sample = test::reward_sample(type, "B", {test::reward_box(1, 2, 30.5, 40)}),
                       .text = "<think>The left lung (region [1, 2, 3, 4]) is dark, isn't it?</think>" +
                               grounding::format_response("B", {{"left lung", test::reward_box(1, 2, 30, 40)}}),
                       .expect_think = true,
                       .truncated = type == QuestionType::open,
                       .num_tokens = 42,
                       .ids = {1, 2, 3}};
  one.sample.think = "The left lung (region [1, 2, 30, 40]) is dark.";
  one.sample.image = "p10/x.jpg";
  return one;
}

TEST(RolloutLog, ComesBackAsItWas) {
  const test::TemporaryFolder folder;
  const auto file = folder / "completions.jsonl";
  std::string lines;
  const std::vector<QuestionType> types = {QuestionType::open, QuestionType::closed, QuestionType::single_choice,
                                           QuestionType::multi_choice};
  for (const QuestionType type : types) {
    const test::RewardCase one = make_case(type);
    Json line = rollout_to_json(one.input());
    line["reward"] = 1.5;
    line["rewards"] = {{"answer", {{"value", nullptr}, {"reason", "x"}}}};
    lines += line.dump() + "\n";
  }
  write_file_atomically(file, lines + "{\"id\": \"cut of");
  std::vector<LoggedRollout> rollouts = read_rollouts(file);
  ASSERT_EQ(rollouts.size(), types.size());
  RewardOptions options;
  options.max_completion_length = 50;
  options.repetition_unit = "tokens";
  std::vector<std::string> names = {"answer",      "grounding", "format", "region",    "think_grounding",
                                    "consistency", "length",    "cosine", "repetition"};
  for (std::size_t i = 0; i < types.size(); ++i) {
    LoggedRollout& back = rollouts[i];
    const test::RewardCase one = make_case(types[i]);
    EXPECT_TRUE(back.has_reference);
    ASSERT_TRUE(back.image_size);
    back.prepare(grounding::ImageGeometry(*back.image_size), true);
    EXPECT_EQ(back.sample.question, one.sample.question);
    EXPECT_EQ(back.sample.prompt(), one.sample.prompt());
    EXPECT_EQ(back.sample.regions, one.sample.regions);
    EXPECT_EQ(back.sample.think, one.sample.think);
    EXPECT_EQ(back.reward, 1.5);
    EXPECT_TRUE(back.rewards["answer"]["value"].is_null());
    EXPECT_EQ(rollout_to_json(back.input()), rollout_to_json(one.input()));
    RewardSet set(names, options);
    const RewardInput logged = back.input(), original = one.input();
    const auto now = set.score({&logged, 1}).front(), then = set.score({&original, 1}).front();
    for (std::size_t k = 0; k < names.size(); ++k) {
      EXPECT_EQ(now.scores[k].value, then.scores[k].value) << names[k];
      EXPECT_EQ(now.scores[k].reason, then.scores[k].reason) << names[k];
    }
  }
  EXPECT_THROW(LoggedRollout().input(), std::invalid_argument);
}

TEST(RolloutLog, NamesTheBadLine) {
  const test::TemporaryFolder folder;
  const auto file = folder / "c.jsonl";
  const std::string good = R"({"id": "1", "response": "x", "frame": "unit"})";
  const auto expect_bad = [&](const std::string& line, const char* message) {
    write_file_atomically(file, good + "\n" + line + "\n" + good + "\n");
    EXPECT_THAT([&] { read_rollouts(file); },
                ThrowsMessage<std::runtime_error>(AllOf(HasSubstr("c.jsonl line 2"), HasSubstr(message))))
        << line;
  };
  expect_bad("nonsense", "nonsense");
  expect_bad("[]", "logged completion");
  expect_bad(R"({"response": "x", "frame": "unit"})", "\"id\"");
  expect_bad(R"({"id": "1", "response": 5, "frame": "unit"})", "\"response\"");
  expect_bad(R"({"id": "1", "response": "x", "frame": "pixels"})", "letterbox-N");
  expect_bad(R"({"id": "1", "response": "x", "frame": "unit", "type": "odd"})", "\"type\"");
  expect_bad(R"({"id": "1", "response": "x", "frame": "unit", "num_tokens": 1.5})", "whole number");
  expect_bad(R"({"id": "1", "response": "x", "frame": "unit", "image_size": [0, 5]})", "width");
  expect_bad(R"({"id": "1", "response": "x", "frame": "unit", "type": "closed", "reference": "yes", )"
             R"("reference_frame": "unit", "reference_regions": [{"box": [1, 2, 3]}]})",
             "reference_regions");
  write_file_atomically(file, "\n");
  EXPECT_THAT([&] { read_rollouts(file); }, ThrowsMessage<std::runtime_error>(HasSubstr("no completions")));
  // Lines of older runs have no reference; the data set has.
  write_file_atomically(file, good + "\n");
  EXPECT_FALSE(read_rollouts(file)[0].has_reference);
}

}  // namespace
}  // namespace thinkvg::rewards
