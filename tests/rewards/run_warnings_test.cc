#include "thinkvg/rewards/run_warnings.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "tests/support/temporary_folder.h"
#include "thinkvg/core/error.h"
#include "thinkvg/core/files.h"

namespace thinkvg::rewards {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

// A run in which nothing is wrong.
Json sound_step(std::int64_t step) {
  return {{"step", step},
          {"frac_reward_zero_std", 0.2},
          {"completions/mean_length", 100.0},
          {"completions/clipped_ratio", 0.05},
          {"kl", 0.02},
          {"entropy", 0.8},
          {"rollout_gap/mean", 0.001},
          {"rewards/format/mean", 0.95},
          {"rewards/format/std", 0.1},
          {"rewards/length/mean", 0.0},
          {"rewards/length/std", 0.0}};
}

using Change = std::function<void(Json&, double progress)>;

// The names of the warnings of 40 steps, `progress` from 0 to 1.
std::vector<std::string> warnings_of(const Change& change) {
  RunWatch watch;
  std::vector<std::string> names;
  for (std::int64_t i = 0; i < 40; ++i) {
    Json line = sound_step(i + 1);
    change(line, static_cast<double>(i) / 39);
    for (const RunWarning& warning : watch.add_step(line)) names.push_back(warning.name);
  }
  EXPECT_EQ(watch.warnings().size(), names.size());
  return names;
}

TEST(RunWarnings, EachFailureHasItsName) {
  EXPECT_THAT(warnings_of([](Json&, double) {}), IsEmpty());
  const std::vector<std::pair<std::string, Change>> failures = {
      {"zero_signal", [](Json& line, double) { line["frac_reward_zero_std"] = 0.85; }},
      {"zero_signal", [](Json& line, double p) { line["frac_reward_zero_std"] = 0.2 + 0.5 * p; }},
      {"length_collapse", [](Json& line, double p) { line["completions/mean_length"] = 100 - 80 * p; }},
      {"truncated", [](Json& line, double) { line["completions/clipped_ratio"] = 0.4; }},
      {"kl", [](Json& line, double p) { line["kl"] = 0.9 * p; }},
      {"kl", [](Json& line, double p) { line["kl"] = -0.9 * p; }},
      {"entropy_low", [](Json& line, double p) { line["entropy"] = 0.8 - 0.75 * p; }},
      {"entropy_low", [](Json& line, double) { line["entropy"] = 0.001; }},
      {"entropy_high", [](Json& line, double p) { line["entropy"] = 0.5 + 2 * p; }},
      {"rollout_gap", [](Json& line, double) { line["rollout_gap/mean"] = 0.2; }},
      {"format", [](Json& line, double) { line["rewards/format/mean"] = 0.5; }},
      {"reward_zero/answer",
       [](Json& line, double) { line["rewards/answer/mean"] = line["rewards/answer/std"] = 0.0; }},
  };
  for (const auto& [name, change] : failures) EXPECT_THAT(warnings_of(change), ElementsAre(name));
}

TEST(RunWarnings, WhatLooksLikeAFailureAndIsNone) {
  const std::vector<std::pair<const char*, Change>> sound = {
      {"signal as at the start", [](Json& line, double) { line["frac_reward_zero_std"] = 0.7; }},
      {"short all along", [](Json& line, double) { line["completions/mean_length"] = 5.0; }},
      {"a few tokens less", [](Json& line, double p) { line["completions/mean_length"] = 12 - 7 * p; }},
      {"sure from the start", [](Json& line, double) { line["entropy"] = 0.02; }},
      {"one step out of ten", [](Json& line, double p) { line["kl"] = p > 0.5 && p < 0.52 ? 3.0 : 0.1; }},
      {"a format that is learned", [](Json& line, double p) { line["rewards/format/mean"] = 0.1 + 0.7 * p; }},
      {"a reward that is 0 on average",
       [](Json& line, double) { line["rewards/cosine/mean"] = 0.0, line["rewards/cosine/std"] = 0.4; }},
      {"numbers that are missing", [](Json& line, double) { line["kl"] = nullptr, line.erase("entropy"); }},
  };
  for (const auto& [what, change] : sound) {
    SCOPED_TRACE(what);
    EXPECT_THAT(warnings_of(change), IsEmpty());
  }
}

Json completion(std::int64_t step, const Json& value, const std::string& reason) {
  return {{"step", step}, {"rewards", {{"grounding", {{"value", value}, {"reason", reason}}}}}};
}

TEST(RunWarnings, AZeroRewardTellsItsCommonestReason) {
  RunWatch watch;
  for (std::int64_t step = 1; step <= 10; ++step) {
    watch.add_completion(completion(step, 0.0, fmt::format("{} boxes in place of 1", step + 1)));
    watch.add_completion(completion(step, 0.0, "the response has no <answer>"));
    watch.add_completion(completion(step, 0.0, fmt::format("{} boxes in place of 2", step + 1)));
    watch.add_completion(Json::array());
    Json line = sound_step(step);
    line["rewards/grounding/mean"] = line["rewards/grounding/std"] = 0.0;
    watch.add_step(line);
  }
  ASSERT_THAT(watch.warnings(), SizeIs(1));
  EXPECT_EQ(watch.warnings()[0].step, 10);
  EXPECT_THAT(watch.warnings()[0].text,
              HasSubstr("was 0 for every completion in 10 steps. The commonest reason: # boxes in place of # (20 of 30 "
                        "logged completions)."));
}

TEST(RunWarnings, ARewardThatNeverAppliesSaysSo) {
  RunWatch watch;
  for (std::int64_t step = 1; step <= 10; ++step) {
    watch.add_completion(completion(step, nullptr, "the reference has no boxes"));
    Json line = sound_step(step);
    line["rewards/grounding/mean"] = line["rewards/grounding/std"] = 0.0;
    watch.add_step(line);
  }
  ASSERT_THAT(watch.warnings(), SizeIs(1));
  EXPECT_THAT(watch.warnings()[0].text, HasSubstr("had nothing to judge in 10 steps. The commonest reason: the "
                                                  "reference has no boxes (10 of 10"));
}

TEST(RunWarnings, ARunFolderGivesWhatTheRunGave) {
  const test::TemporaryFolder folder;
  std::filesystem::create_directories(folder / "samples");
  RunWatch live;
  std::string metrics, completions;
  for (std::int64_t step = 1; step <= 25; ++step) {
    const Json said = completion(step, 0.0, step <= 10 ? "one reason" : "another reason");
    live.add_completion(said);
    completions += said.dump() + "\n";
    Json line = sound_step(step);
    line["rewards/grounding/mean"] = line["rewards/grounding/std"] = 0.0;
    line["kl"] = step > 12 ? 2.0 : 0.0;
    live.add_step(line);
    metrics += line.dump() + "\n";
  }
  write_file_atomically(folder / "metrics.jsonl", metrics);
  write_file_atomically(folder / "samples/completions.jsonl", completions + "{\"step\": 2");
  const RunWatch read = watch_run(folder.path());
  ASSERT_THAT(read.warnings(), SizeIs(2));
  ASSERT_EQ(read.warnings().size(), live.warnings().size());
  for (std::size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(read.warnings()[i].name, live.warnings()[i].name);
    EXPECT_EQ(read.warnings()[i].step, live.warnings()[i].step);
    EXPECT_EQ(read.warnings()[i].text, live.warnings()[i].text);
  }
  EXPECT_THAT(watch_run(folder / "nothing").warnings(), IsEmpty());
}

}  // namespace
}  // namespace thinkvg::rewards
