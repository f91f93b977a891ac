#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "tests/support/process.h"
#include "tests/support/temporary_folder.h"
#include "thinkvg/core/files.h"
#include "thinkvg/core/json.h"

namespace thinkvg {
namespace {

using testing::AllOf;
using testing::HasSubstr;

test::ProcessResult inspect(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), "inspect");
  arguments.insert(arguments.begin(), THINKVG_PROGRAM);
  return test::run_process(arguments);
}

TEST(InspectEndToEnd, OneCommandOverEverySet) {
  const test::TemporaryFolder folder;
  const std::string set = (folder / "phantom").string();
  ASSERT_EQ(test::run_process({THINKVG_PROGRAM, "phantom", "--out", set, "--num_images", "6", "--num_dev", "0",
                               "--num_test", "2", "--threads", "1"})
                .exit_code,
            0);
  for (const char* data : {"/data/train.parquet", "/gemex_test"}) {
    const std::string out = (folder / "out").string();
    const test::ProcessResult result = inspect(
        {"--data", set + data, "--images", set + "/files", "--decode_pictures", "true", "--out", out, "--json"});
    ASSERT_EQ(result.exit_code, 0) << result.err;
    const Json report = Json::parse(result.out);
    EXPECT_EQ(report["rows"]["bad"], 0) << data;
    EXPECT_EQ(report["pictures"]["hit_rate"], 1.0) << data;
    EXPECT_EQ(report["pictures"]["unreadable"]["count"], 0) << report["pictures"]["unreadable"];
    EXPECT_EQ(report["pictures"]["flat"]["count"], 0);
    EXPECT_EQ(report["boxes"]["outside"]["count"], 0) << report["boxes"]["outside"];
    EXPECT_EQ(read_json_file(folder / "out/inspect.json"), report);
    EXPECT_THAT(read_file(folder / "out/inspect.html"), HasSubstr("data:image/jpeg;base64,"));
  }
}

TEST(InspectEndToEnd, SaysWhichRowsAndWritesACleanCopy) {
  const test::TemporaryFolder folder;
  const std::string data = (folder / "rows.jsonl").string(), clean = (folder / "clean.jsonl").string();
  const std::string row = R"({"images": ["p10/p10000001/s1/a.jpg"], "question": "Is it clear?", "answer": "yes"})";
  write_file_atomically(data, row + "\nnothing\n" + R"({"images": ["a.jpg"], "question": "?", "answer": ""})");
  const test::ProcessResult result = inspect({"--data", data, "--fix", clean});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, AllOf(HasSubstr("3 rows: 1 usable, 2 bad"), HasSubstr("2 rows cannot be used"),
                                HasSubstr("row 1: not JSON"), HasSubstr("row 2: the answer is empty")));
  EXPECT_THAT(result.err, HasSubstr("1 rows as they were, 0 mended, 2 left out"));
  EXPECT_THAT(inspect({"--data", clean}).out, HasSubstr("nothing is wrong"));

  const test::ProcessResult missing = inspect({"--data", data, "--images", (folder / "no").string()});
  EXPECT_EQ(missing.exit_code, 1);
  EXPECT_EQ(missing.out, "");
  EXPECT_THAT(missing.err, HasSubstr("expected the folder that holds the pictures"));
}

}  // namespace
}  // namespace thinkvg
