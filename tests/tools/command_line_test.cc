#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/support/process.h"
#include "tests/support/temporary_folder.h"
#include "thinkvg/core/files.h"
#include "thinkvg/core/manifest.h"

namespace thinkvg {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

test::ProcessResult run(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), THINKVG_PROGRAM);
  return test::run_process(arguments);
}

TEST(CommandLine, HelpListsEveryCommand) {
  for (const char* flag : {"--help", "-h", "help"}) {
    const test::ProcessResult result = run({flag});
    EXPECT_EQ(result.exit_code, 0);
    EXPECT_EQ(result.err, "");
    for (const char* command : {"phantom", "inspect", "init", "warmup", "check", "sft", "grpo", "generate", "serve",
                                "eval", "score", "report"})
      EXPECT_THAT(result.out, HasSubstr(std::string("\n  ") + command + " "));
  }
}

TEST(CommandLine, NoCommandIsWrongUse) {
  const test::ProcessResult result = run({});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_EQ(result.out, "");
  EXPECT_THAT(result.err, HasSubstr("usage: thinkvg <command>"));
}

TEST(CommandLine, PrintsItsVersion) { EXPECT_EQ(run({"--version"}).out, "thinkvg " + version() + "\n"); }

TEST(CommandLine, NamesTheNearestCommand) {
  const test::ProcessResult result = run({"scroe"});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_EQ(result.out, "");
  EXPECT_EQ(result.err, "thinkvg: unknown command 'scroe', did you mean 'score'?; 'thinkvg --help' lists them\n");
  EXPECT_EQ(run({"frobnicate"}).err, "thinkvg: unknown command 'frobnicate'; 'thinkvg --help' lists them\n");
}

TEST(CommandLine, NamesTheNearestSetting) {
  const test::ProcessResult result = run({"score", "--predictoins", "a.jsonl"});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_EQ(result.out, "");
  EXPECT_EQ(result.err,
            "thinkvg score: unknown setting --predictoins, did you mean --predictions?; 'thinkvg score --help' lists "
            "them\n");
}

TEST(CommandLine, SaysWhatIsWrongWithASetting) {
  EXPECT_THAT(run({"score", "predictions.jsonl"}).err, HasSubstr("'predictions.jsonl' is not a setting"));
  EXPECT_THAT(run({"score", "--predictions"}).err, HasSubstr("--predictions needs a value"));
  EXPECT_THAT(run({"score", "--json=maybe"}).err, HasSubstr("--json must be true|false, but is 'maybe'"));
  const test::ProcessResult missing = run({"score"});
  EXPECT_EQ(missing.exit_code, 2);
  EXPECT_THAT(missing.err, AllOf(StartsWith("thinkvg score: "), HasSubstr("--predictions")));
}

TEST(CommandLine, HelpOfACommandListsItsSettings) {
  const test::ProcessResult result = run({"score", "--help"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(result.err, "");
  for (const char* text : {"usage: thinkvg score", "--config", "--predictions", "--data", "--frame", "[text]",
                           "true|false, default false]"})
    EXPECT_THAT(result.out, HasSubstr(text));
}

TEST(CommandLine, SaysWhatIsWrongWithAConfigFile) {
  const test::TemporaryFolder folder;
  const std::string file = (folder / "run.yaml").string();
  const test::ProcessResult missing = run({"score", "--config", file});
  EXPECT_EQ(missing.exit_code, 1);
  EXPECT_THAT(missing.err, AllOf(HasSubstr(file), HasSubstr("No such file")));

  write_file_atomically(file, "predictions: [1\n");
  const test::ProcessResult broken = run({"score", "--config", file});
  EXPECT_EQ(broken.exit_code, 1);
  EXPECT_THAT(broken.err, HasSubstr("not YAML"));

  write_file_atomically(file, "predictons: a.jsonl\n");
  const test::ProcessResult unknown = run({"score", "--config", file});
  EXPECT_EQ(unknown.exit_code, 2);
  EXPECT_THAT(unknown.err, HasSubstr("run.yaml: unknown setting 'predictons'; did you mean 'predictions'?"));

  write_file_atomically(file, "json: 5\n");
  EXPECT_THAT(run({"score", "--config", file}).err, HasSubstr("run.yaml: setting 'json' must be true|false, but is 5"));
  EXPECT_EQ(std::count(unknown.err.begin(), unknown.err.end(), '\n'), 1) << "one message is one line";
}

TEST(CommandLine, FlagsWinOverTheConfigFile) {
  const test::TemporaryFolder folder;
  write_file_atomically(folder / "run.yaml", "predictions: from-config.jsonl\ndata: somewhere\n");
  const test::ProcessResult result =
      run({"score", "--config", (folder / "run.yaml").string(), "--predictions", "from-flag.jsonl"});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, AllOf(HasSubstr("from-flag.jsonl"), Not(HasSubstr("from-config.jsonl"))));
}

TEST(CommandLine, SaysThatAProgramIsMissing) {
  const test::TemporaryFolder folder;
  std::filesystem::copy_file(THINKVG_PROGRAM, folder / "thinkvg");
  const test::ProcessResult result = test::run_process({(folder / "thinkvg").string(), "sft", "--help"});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, HasSubstr("the program thinkvg-tensors is missing beside"));
  EXPECT_EQ(test::run_process({(folder / "thinkvg").string(), "--help"}).exit_code, 0);
}

// What needs no tensors must not wait for LibTorch, which takes half a second to load.
TEST(CommandLine, LoadsNeitherLibTorchNorOpenCv) {
  const test::ProcessResult result = test::run_process({"ldd", THINKVG_PROGRAM});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("libc.so"));
  for (const char* library : {"libtorch", "libc10", "libopencv", "libcuda", "libcudart", "not found"})
    EXPECT_THAT(result.out, Not(HasSubstr(library)));
}

TEST(CommandLine, StartsAtOnce) {
  double fastest = 1e9;
  for (int i = 0; i < 10; ++i) fastest = std::min(fastest, run({"--help"}).seconds);
  RecordProperty("milliseconds", static_cast<int>(fastest * 1000));
  EXPECT_LT(fastest, 0.2) << "far from the aim of 0.05 s, even on a busy machine";
}

// Each command of the other programs: their settings, and the messages about wrong ones.
class CommandEndToEnd : public testing::TestWithParam<const char*> {};

TEST_P(CommandEndToEnd, ListsItsSettings) {
  const std::string command = GetParam();
  const test::ProcessResult result = run({command, "--help"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, AllOf(HasSubstr("usage: thinkvg " + command), HasSubstr("\n  --out ")));
}

TEST_P(CommandEndToEnd, NamesAnUnknownSetting) {
  const std::string command = GetParam();
  const test::ProcessResult result = run({command, "--outt", "x"});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_EQ(result.out, "");
  EXPECT_EQ(result.err, "thinkvg " + command + ": unknown setting --outt, did you mean --out?; 'thinkvg " + command +
                            " --help' lists them\n");
}

INSTANTIATE_TEST_SUITE_P(Commands, CommandEndToEnd,
                         testing::Values("phantom", "inspect", "init", "warmup", "sft", "grpo", "eval", "report"));

TEST(CudaEndToEnd, NoProgramNeedsACudaLibraryOfItsOwn) {
  for (const char* program : {THINKVG_PROGRAM "-tensors", THINKVG_PROGRAM "-pictures"}) {
    const test::ProcessResult result = test::run_process({"readelf", "-d", program});
    ASSERT_EQ(result.exit_code, 0) << result.err;
    for (const char* library : {"libtorch_cuda", "libc10_cuda", "libcudart", "libthinkvg_cuda"})
      EXPECT_THAT(result.out, Not(HasSubstr(library))) << program;
  }
}

}  // namespace
}  // namespace thinkvg
