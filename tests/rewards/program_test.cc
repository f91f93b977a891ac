#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>

#include "tests/support/rewards.h"
#include "tests/support/temporary_folder.h"
#include "thinkvg/core/files.h"

namespace thinkvg::rewards {
namespace {

using data::QuestionType;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

// Completions of distinct answers "0", "1", .. .
class ProgramReward : public ::testing::Test {
 protected:
  std::string script(const std::string& text) {
    const auto file = folder_ / "my_reward.py";
    write_file_atomically(file, "import json, os, sys, time\n" + text);
    return "program:python3 " + file.string();
  }

  std::vector<RewardScore> run(const std::string& name, int count, const RewardOptions& options = {}) {
    std::vector<test::RewardCase> cases;
    for (int i = 0; i < count; ++i)
      cases.push_back(
          {.sample = test::reward_sample(QuestionType::open, "x", {test::reward_box(1, 2, 30, 40)}),
           .text = grounding::format_response(std::to_string(i), {{"left lung", test::reward_box(1, 2, 3, 4)}})});
    std::vector<RewardInput> inputs;
    for (const test::RewardCase& one : cases) inputs.push_back(one.input());
    return make_reward(name, options)->score_batch(inputs);
  }

  test::TemporaryFolder folder_;
};

TEST_F(ProgramReward, ReadsLinesAndWritesScores) {
  const auto scores = run(script("for line in sys.stdin:\n"
                                 "    r = json.loads(line)\n"
                                 "    n = int(r['parsed']['answer'])\n"
                                 "    assert r['batch_size'] == 5 and r['index'] == n and r['parsed']['complete']\n"
                                 "    assert r['reference_regions'][0]['box'] == [1, 2, 30, 40]\n"
                                 "    assert r['parsed']['regions'][0] == {'ref': 'left lung', 'box': [1, 2, 3, 4]}\n"
                                 "    assert r['image_size'] == [3056, 2544] and r['frame'] == 'letterbox-336'\n"
                                 "    out = [0.5, None, {'value': 2, 'reason': 'good'}, {'value': None}, -1]\n"
                                 "    print(json.dumps(out[n]))\n"),
                          5);
  ASSERT_EQ(scores.size(), 5u);
  EXPECT_EQ(scores[0].value, 0.5);
  EXPECT_EQ(scores[0].reason, "as the program says");
  EXPECT_FALSE(scores[1].applicable);
  EXPECT_EQ(scores[2].value, 2);
  EXPECT_EQ(scores[2].reason, "good");
  EXPECT_FALSE(scores[3].applicable);
  EXPECT_EQ(scores[4].value, -1);
}

TEST_F(ProgramReward, TakesWholeBatchesOfAnySize) {
  // Far more than a pipe holds, answered only when all is read.
  const auto scores =
      run(script("while True:\n"
                 "    first = sys.stdin.readline()\n"
                 "    if not first: break\n"
                 "    rest = [sys.stdin.readline() for _ in range(json.loads(first)['batch_size'] - 1)]\n"
                 "    print('\\n'.join(str(len(rest) + 1) for _ in [first] + rest))\n"),
          2000);
  ASSERT_EQ(scores.size(), 2000u);
  for (const RewardScore& score : scores) EXPECT_EQ(score.value, 2000);
}

TEST_F(ProgramReward, StaysUpBetweenBatches) {
  const auto reward = make_reward(script("n = 0\nfor line in sys.stdin:\n    n += 1\n    print(n)\n"), {});
  const test::RewardCase one{.sample = test::reward_sample(QuestionType::closed, "yes", {}), .text = "x"};
  for (int i = 1; i <= 3; ++i) EXPECT_EQ(reward->score(one.input()).value, i);
}

TEST_F(ProgramReward, IsNamedAfterItsScript) {
  for (const auto& [command, name] :
       std::vector<std::pair<const char*, const char*>>{{"program:./my_reward.py", "my_reward"},
                                                        {"program:python3 -u rewards/length.py --fast=0.5", "length"},
                                                        {"program:/usr/bin/scorer --x", "scorer"},
                                                        {"program:  scorer", "scorer"}})
    EXPECT_EQ(make_reward(command, {})->name(), name);
  RewardSet set({"program:./a.py --mode=fast=0.5", "program:b --mode=fast", "answer"}, RewardOptions{});
  EXPECT_EQ(set.weight(0), 0.5);
  EXPECT_EQ(set.weight(1), 1);
  EXPECT_EQ(set.name(1), "b");
}

TEST_F(ProgramReward, ACrashIsStartedAnew) {
  // Dies once at completion 2, then never again.
  const std::string flag = (folder_ / "crashed").string();
  const auto scores = run(script("for line in sys.stdin:\n"
                                 "    n = int(json.loads(line)['parsed']['answer'])\n"
                                 "    if n == 2 and not os.path.exists('" +
                                 flag +
                                 "'):\n"
                                 "        open('" +
                                 flag +
                                 "', 'w').close()\n"
                                 "        sys.exit('first time')\n"
                                 "    print(n)\n"),
                          5);
  ASSERT_EQ(scores.size(), 5u);
  for (int i = 0; i < 5; ++i) EXPECT_EQ(scores[static_cast<std::size_t>(i)].value, i);
}

TEST_F(ProgramReward, OneBadCompletionDoesNotSpoilTheOthers) {
  RewardOptions options;
  options.program.max_restarts = 1;
  options.program.failure.on_failure = "skip";
  const std::string name = script(
      "for line in sys.stdin:\n"
      "    n = int(json.loads(line)['parsed']['answer'])\n"
      "    print('what?' if n == 1 else 1 // (3 - n))\n");
  const auto scores = run(name, 5, options);
  ASSERT_EQ(scores.size(), 5u);
  for (const std::size_t i : {0u, 2u, 4u}) EXPECT_TRUE(scores[i].applicable) << i << " " << scores[i].reason;
  EXPECT_FALSE(scores[1].applicable);
  EXPECT_THAT(scores[1].reason, HasSubstr("must be a number, null"));
  EXPECT_FALSE(scores[3].applicable);
  EXPECT_THAT(scores[3].reason, HasSubstr("exit code 1"));
  EXPECT_THAT(scores[3].reason, HasSubstr("ZeroDivisionError"));
  options.program.failure = {.on_failure = "fallback", .fallback = -2};
  EXPECT_EQ(run(name, 5, options)[1].value, -2);
  options.program.failure.on_failure = "stop";
  EXPECT_THAT([&] { run(name, 5, options); },
              ThrowsMessage<std::runtime_error>(AllOf(HasSubstr("'my_reward' cannot score"), HasSubstr("what?"))));
}

TEST_F(ProgramReward, IsKilledWhenItHangs) {
  RewardOptions options;
  options.program.timeout = 0.3;
  options.program.max_restarts = 1;
  options.program.failure.on_failure = "skip";
  const auto start = std::chrono::steady_clock::now();
  // With a child of its own, which is killed as well.
  const auto scores = run("program:sleep 1000 & sleep 1000", 50, options);
  EXPECT_LT(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(), 5);
  for (const RewardScore& score : scores) EXPECT_THAT(score.reason, HasSubstr("no reply within 0.3 s"));
  const auto buffered =
      run(script("out = open(1, 'w', buffering=4096)\nfor line in sys.stdin: out.write('1\\n')\n"), 1, options);
  EXPECT_THAT(buffered[0].reason, HasSubstr("flush"));
}

TEST_F(ProgramReward, SaysWhatIsWrong) {
  const auto error_of = [&](const std::string& name) {
    RewardOptions options;
    options.program.max_restarts = 0;
    try {
      run(name, 3, options);
    } catch (const std::runtime_error& error) {
      return std::string(error.what());
    }
    return std::string("no error");
  };
  EXPECT_THAT(error_of("program:/nowhere/reward"), AllOf(HasSubstr("exit code 127"), HasSubstr("/nowhere/reward")));
  EXPECT_THAT(error_of(script("raise SystemExit('no model')")), HasSubstr("it wrote: no model"));
  EXPECT_THAT(error_of("program:kill -9 $$"), HasSubstr("signal 9"));
  EXPECT_THAT(error_of("program:exec >&-; sleep 5"), HasSubstr("closed its output"));
  EXPECT_THAT(error_of("program:yes nan"), HasSubstr("must be a number"));
  EXPECT_THAT(error_of("program:head -c 3000000 /dev/zero"), HasSubstr("more than a megabyte"));
  EXPECT_THAT(error_of(script("for line in sys.stdin: print(json.dumps({'error': 'no such image'}))")),
              HasSubstr("the program reports: no such image"));
  EXPECT_THAT(error_of(script("for line in sys.stdin: print(json.dumps({'score': 1}))")), HasSubstr("\"value\""));
}

TEST_F(ProgramReward, TheShippedExampleWorks) {
  const auto file = std::filesystem::path(THINKVG_SOURCE_DIR) / "configs/rewards/laterality.py";
  const auto score = [&](const std::string& think, const char* region) {
    data::Sample sample = test::reward_sample(QuestionType::closed, "yes", {});
    sample.regions.push_back({region, test::reward_box(1, 2, 3, 4)});
    return test::reward_score("program:" + file.string(),
                              {.sample = sample,
                               .text = "<think>" + think + "</think>" + grounding::format_response("yes", {}),
                               .expect_think = true});
  };
  EXPECT_EQ(score("The left lung is dark.", "left lung").value, 1);
  EXPECT_EQ(score("The right lung is dark.", "left lung").value, 0);
  EXPECT_FALSE(score("The spine.", "spine").applicable);
}

}  // namespace
}  // namespace thinkvg::rewards
