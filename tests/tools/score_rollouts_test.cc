#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "tests/support/process.h"
#include "thinkvg/core/json.h"

namespace thinkvg {
namespace {

using test::ProcessResult;
using ::testing::HasSubstr;
using ::testing::Not;

// A run folder of two groups of two completions each, as grpo logs them.
class ScoreRolloutsEndToEnd : public ::testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::create_directories(folder_ / "run/samples");
    const std::string right = answered("yes", "[10, 10, 100, 100]"), wrong = answered("no", "[10, 10, 100, 60]");
    write_log({line(1, "a", 0, right), line(1, "a", 1, wrong), line(1, "b", 0, right), line(1, "b", 1, right)});
    std::ofstream(folder_ / "run/config.yaml") << "model: x\nrewards: [answer=1, grounding=2]\n"
                                                  "reward:\n  grounding_threshold: 0\n"
                                                  "sampling:\n  max_new_tokens: 50\n";
  }

  static std::string answered(const std::string& answer, const std::string& box) {
    return "<think>The left lung is clear, so the answer is " + answer + ".</think><response><answer>" + answer +
           "</answer><location><ref>left lung</ref><box>" + box + "</box></location></response>";
  }

  static Json line(int step, const std::string& id, int completion, const std::string& response) {
    return {{"step", step},
            {"id", id},
            {"completion", completion},
            {"type", "closed"},
            {"question", "Is it clear?"},
            {"choices", Json::array()},
            {"reference", "yes"},
            {"reference_think", ""},
            {"reference_regions", {{{"ref", "left lung"}, {"box", {10, 10, 100, 100}}}}},
            {"reference_frame", "letterbox-336"},
            {"image", "x.jpg"},
            {"image_size", {400, 300}},
            {"response", response},
            {"frame", "letterbox-336"},
            {"finish", "stop"},
            {"num_tokens", 45},
            {"reward", 3.0},
            {"rewards", {{"answer", {{"value", 1.0}, {"reason", "x"}}}}}};
  }

  void write_log(const std::vector<Json>& lines) {
    std::ofstream out(log());
    for (const Json& one : lines) out << one.dump() << "\n";
  }
  std::string log() const { return (folder_ / "run/samples/completions.jsonl").string(); }

  ProcessResult run(std::vector<std::string> flags) const {
    flags.insert(flags.begin(), {THINKVG_PROGRAM, "score", "--rollouts", log()});
    return test::run_process(flags);
  }
  Json run_json(std::vector<std::string> flags) const {
    flags.emplace_back("--json");
    const ProcessResult got = run(flags);
    EXPECT_EQ(got.exit_code, 0) << got.err;
    return Json::parse(got.out);
  }

  test::TemporaryFolder folder_;
};

TEST_F(ScoreRolloutsEndToEnd, TakesTheRunsOwnSettings) {
  const Json got = run_json({});
  EXPECT_EQ(got["num_completions"], 4);
  EXPECT_EQ(got["num_groups"], 2);
  EXPECT_EQ(got["frac_reward_zero_std"], 0.5);
  EXPECT_EQ(got["rewards"]["answer"]["mean"], 0.75);
  EXPECT_EQ(got["rewards"]["answer"]["recorded_mean"], 1.0);
  EXPECT_EQ(got["rewards"]["answer"]["reasons"][0]["reason"], "the reference is '#'");
  EXPECT_EQ(got["rewards"]["grounding"]["weight"], 2.0);
  EXPECT_NEAR(got["rewards"]["grounding"]["mean"].get<double>(), (3 + 5.0 / 9) / 4, 1e-12);
  EXPECT_EQ(got["rewards"]["grounding"]["reasons"][0]["reason"], "mean IoU #");
  EXPECT_NEAR(got["reward"]["mean"].get<double>(), 0.75 + 2 * (3 + 5.0 / 9) / 4, 1e-12);
  EXPECT_EQ(got["reward"]["recorded_mean"], 3.0);
  EXPECT_FALSE(got["rewards"].contains("format"));
}

TEST_F(ScoreRolloutsEndToEnd, ModelsWithoutReasoningScore) {
  write_log({line(1, "a", 0,
                  "<response><answer>yes</answer><location><ref>left lung</ref><box>[10, 10, 100, 100]</box></location>"
                  "</response>")});
  const Json needed = run_json({"--rewards", "answer=1,format=1"});
  EXPECT_EQ(needed["rewards"]["answer"]["mean"], 0.0);
  EXPECT_EQ(needed["rewards"]["format"]["mean"], 0.0);
  const Json free = run_json({"--rewards", "answer=1,format=1", "--reward.require_think", "false"});
  EXPECT_EQ(free["rewards"]["answer"]["mean"], 1.0);
  EXPECT_EQ(free["rewards"]["format"]["mean"], 1.0);
}

TEST_F(ScoreRolloutsEndToEnd, OtherSettingsWin) {
  const Json got = run_json({"--rewards", "grounding,length=0.5,consistency", "--reward.grounding_threshold", "0.75"});
  EXPECT_EQ(got["rewards"]["grounding"]["mean"], 0.75);
  EXPECT_EQ(got["rewards"]["grounding"]["weight"], 1.0);
  EXPECT_EQ(got["rewards"]["consistency"]["mean"], 1.0);
  EXPECT_EQ(got["rewards"]["length"]["mean"], -0.5);  // 45 of 50 tokens, the last fifth penalised
  EXPECT_EQ(got["settings"]["reward"]["max_completion_length"], 50);
}

TEST_F(ScoreRolloutsEndToEnd, TakesAProgramAndWritesItsResults) {
  std::ofstream(folder_ / "half.py") << "import sys\nfor line in sys.stdin: print(0.5)\n";
  const std::string out = (folder_ / "out").string();
  const ProcessResult got =
      run({"--rewards", "answer,program:python3 " + (folder_ / "half.py").string() + "=2", "--out", out});
  ASSERT_EQ(got.exit_code, 0) << got.err;
  EXPECT_THAT(got.out, HasSubstr("half"));
  EXPECT_THAT(got.out, HasSubstr("4 completions of 2 groups"));
  EXPECT_EQ(read_json_file(folder_ / "out/rewards.json")["rewards"]["half"]["mean"], 0.5);
  std::ifstream lines(folder_ / "out/rollouts.jsonl");
  std::string first;
  ASSERT_TRUE(std::getline(lines, first));
  EXPECT_EQ(Json::parse(first)["reward"], 2.0);
  EXPECT_EQ(Json::parse(first)["rewards"]["half"]["reason"], "as the program says");
}

TEST_F(ScoreRolloutsEndToEnd, OlderLogsNeedTheDataSet) {
  std::filesystem::remove(folder_ / "run/config.yaml");
  Json old = line(1, "closed/0", 0, answered("yes", "[10, 10, 100, 100]"));
  for (const char* key : {"type", "choices", "reference_think", "reference_frame", "image", "image_size", "num_tokens"})
    old.erase(key);
  write_log({old});
  const ProcessResult without = run({});
  EXPECT_EQ(without.exit_code, 2);
  EXPECT_THAT(without.err, HasSubstr("--data"));
  std::filesystem::create_directories(folder_ / "gemex");
  std::ofstream(folder_ / "gemex/closed_ended_question.jsonl")
      << R"({"question": "Is it clear?", "answer": "yes", "reason": "", "visual_regions": ["left lung"], )"
      << R"("visual_locations": [[10, 10, 100, 100]], "image_path": "p10/p1/s1/x.jpg", "q_id": 0, "row_id": 0})"
      << "\n";
  const Json got = run_json({"--data", (folder_ / "gemex").string()});
  EXPECT_EQ(got["rewards"]["answer"]["mean"], 1.0);
  EXPECT_TRUE(got["frac_reward_zero_std"].is_null());
}

TEST_F(ScoreRolloutsEndToEnd, WrongUseIsSaid) {
  for (const auto& [flags, message] : std::vector<std::pair<std::vector<std::string>, std::string>>{
           {{"--rewards", "groundign"}, "did you mean 'grounding'"},
           {{"--reward.box_rul", "x"}, "did you mean --reward.box_rule"},
           {{"--rewards", "judge"}, "judge.url"}}) {
    const ProcessResult got = run(flags);
    EXPECT_EQ(got.exit_code, 2) << message;
    EXPECT_THAT(got.err, HasSubstr(message));
    EXPECT_EQ(got.out, "");
  }
  write_log({Json("text")});
  const ProcessResult bad = run({});
  EXPECT_EQ(bad.exit_code, 1);
  EXPECT_THAT(bad.err, HasSubstr("line 1"));
}

TEST_F(ScoreRolloutsEndToEnd, LoadsNoTensorLibrary) {
  const ProcessResult got = test::run_shell("LD_DEBUG=libs " + test::shell_quoted(THINKVG_PROGRAM) +
                                            " score --rollouts " + test::shell_quoted(log()));
  ASSERT_EQ(got.exit_code, 0) << got.err;
  EXPECT_THAT(got.err, HasSubstr("libc.so"));
  for (const char* library : {"libtorch", "libc10", "libopencv"}) EXPECT_THAT(got.err, Not(HasSubstr(library)));
}

}  // namespace
}  // namespace thinkvg
