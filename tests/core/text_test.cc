#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <limits>

#include "tests/support/temporary_folder.h"
#include "thinkvg/core/error.h"
#include "thinkvg/core/files.h"
#include "thinkvg/core/log.h"
#include "thinkvg/core/manifest.h"
#include "thinkvg/core/progress.h"

namespace thinkvg {
namespace {

TEST(NearestName, FindsSlipsOnly) {
  const std::vector<std::string> names = {"model", "max_new_tokens", "temperature", "top_p", "top_k"};
  EXPECT_EQ(nearest_name("modle", names), "model");  // two letters swapped
  EXPECT_EQ(nearest_name("max_tokens", names), "max_new_tokens");
  EXPECT_EQ(nearest_name("tempreature", names), "temperature");
  EXPECT_EQ(nearest_name("top_p", names), "top_p");
  EXPECT_EQ(nearest_name("top_x", names), "top_p");  // the first of equals
  EXPECT_EQ(nearest_name("banana", names), "");
  EXPECT_EQ(nearest_name("", names), "");
  EXPECT_EQ(nearest_name("model", {}), "");
}

TEST(Errors, CarryTheFormattedText) {
  try {
    throw_invalid("expected {}, got {:.1f}", "x", 2.0);
  } catch (const std::invalid_argument& error) {
    EXPECT_STREQ(error.what(), "expected x, got 2.0");
  }
  EXPECT_THROW(throw_failure("no {}", "disk"), std::runtime_error);
}

TEST(FormatDuration, ReadsLikeAClock) {
  EXPECT_EQ(format_duration(0), "0:00");
  EXPECT_EQ(format_duration(59.4), "0:59");
  EXPECT_EQ(format_duration(59.6), "1:00");
  EXPECT_EQ(format_duration(3599), "59:59");
  EXPECT_EQ(format_duration(3723), "1:02:03");
  EXPECT_EQ(format_duration(360000), "100:00:00");
  EXPECT_EQ(format_duration(-5), "0:00");
  EXPECT_EQ(format_duration(std::nan("")), "0:00");
}

TEST(FormatCount, GroupsThreeDigits) {
  EXPECT_EQ(format_count(0), "0");
  EXPECT_EQ(format_count(999), "999");
  EXPECT_EQ(format_count(1000), "1,000");
  EXPECT_EQ(format_count(-12345678), "-12,345,678");
  EXPECT_EQ(format_count(-100), "-100");
  EXPECT_EQ(format_count(std::numeric_limits<std::int64_t>::min()), "-9,223,372,036,854,775,808");
}

std::string progress_output(const std::function<void()>& action) {
  testing::internal::CaptureStderr();
  action();
  return testing::internal::GetCapturedStderr();
}

TEST(Progress, WritesPlainLinesWhereThereIsNoTerminal) {
  const std::string text = progress_output([] {
    Progress progress("sft", 3, 0, std::chrono::seconds(0));
    for (int step = 1; step <= 3; ++step) progress.update(step, "loss 0.5");
  });
  EXPECT_THAT(text, testing::MatchesRegex("sft 1/3 loss 0.5, 0:0. left\nsft 2/3 loss 0.5, 0:0. left\n"
                                          "sft 3/3 loss 0.5, 0:00 left\n"));
}

TEST(Progress, KeepsPlainLinesRare) {
  const std::string text = progress_output([] {
    Progress progress("sft", 1000, 0, std::chrono::seconds(60));
    for (int step = 401; step <= 1000; ++step) progress.update(step, "x");
  });
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 2) << text;
  EXPECT_THAT(text, testing::HasSubstr("sft 1,000/1,000 x, 0:00 left\n"));
}

TEST(Logging, ShowsWhatIsAskedForAndNeverGoesQuietByMistake) {
  const auto output = [](const char* level) {
    setenv("THINKVG_LOG", level, 1);
    testing::internal::CaptureStderr();
    set_up_logging();
    spdlog::debug("fine detail");
    spdlog::info("news");
    unsetenv("THINKVG_LOG");
    spdlog::default_logger()->flush();
    return testing::internal::GetCapturedStderr();
  };
  EXPECT_THAT(output("debug"), testing::HasSubstr("fine detail"));
  EXPECT_THAT(output("info"), testing::Not(testing::HasSubstr("fine detail")));
  EXPECT_THAT(output("error"), testing::Not(testing::HasSubstr("news")));
  EXPECT_THAT(output("verbose"), testing::AllOf(testing::HasSubstr("news"), testing::HasSubstr("THINKVG_LOG must be"),
                                                testing::HasSubstr("verbose")));
  EXPECT_EQ(output("off"), "");
}

TEST(Manifest, SaysWhatARunWasMadeOf) {
  const test::TemporaryFolder folder;
  write_file_atomically(folder / "data.jsonl", "abc");
  const Json manifest = make_manifest("sft", 7, {{"data", folder / "data.jsonl"}, {"images", folder.path()}});
  EXPECT_EQ(manifest["command"], "sft");
  EXPECT_EQ(manifest["seed"], 7);
  EXPECT_EQ(manifest["version"], version());
  EXPECT_EQ(manifest["inputs"]["data"]["bytes"], 3);
  EXPECT_EQ(manifest["inputs"]["data"]["sha256"], sha256_text("abc"));
  EXPECT_FALSE(manifest["inputs"]["images"].contains("sha256"));
  EXPECT_GT(manifest["machine"]["cores"].get<int>(), 0);
  EXPECT_THAT(manifest["started"].get<std::string>(), testing::MatchesRegex("....-..-..T..:..:..Z"));
}

TEST(Manifest, HasTheVersionOfTheBuild) {
  EXPECT_THAT(read_file(std::string(THINKVG_SOURCE_DIR) + "/CMakeLists.txt"),
              testing::HasSubstr("project(thinkvg VERSION " + version() + " "));
}

}  // namespace
}  // namespace thinkvg
