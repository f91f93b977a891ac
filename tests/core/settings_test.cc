#include "thinkvg/core/settings.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/temporary_folder.h"
#include "thinkvg/core/files.h"

namespace thinkvg {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

struct OptimizerOptions {
  double lr = 1e-5;
  double weight_decay = 0;
  void visit(SettingsVisitor& v) {
    v.setting("lr", lr, "Peak learning rate.");
    v.setting("weight_decay", weight_decay, "Decay.");
  }
};

struct RunOptions {
  std::int64_t steps = 100;
  bool resume = false;
  std::string model = "small";
  std::vector<std::int64_t> sizes = {1, 2};
  std::vector<std::string> names = {"a"};
  OptimizerOptions optimizer;
  void visit(SettingsVisitor& v) {
    v.setting("steps", steps, "Number of steps.");
    v.setting("resume", resume, "Go on.");
    v.setting("model", model, "Model folder.");
    v.setting("sizes", sizes, "Sizes.");
    v.setting("names", names, "Names.");
    v.section("optimizer", optimizer, "How weights are updated.");
  }
};

std::string read_error(const char* json) {
  RunOptions options;
  try {
    read_settings(options, Json::parse(json), "run.yaml");
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "no error";
}

std::string assign_error(const char* name, const char* text) {
  RunOptions options;
  try {
    assign_setting(options, name, text);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "no error";
}

TEST(Settings, ReadsWhatIsNamedAndLeavesTheRest) {
  RunOptions options;
  read_settings(
      options,
      Json::parse(R"({"steps": 7, "resume": true, "names": ["x", "y"], "optimizer": {"lr": 1, "weight_decay": null}})"),
      "run.yaml");
  EXPECT_EQ(options.steps, 7);
  EXPECT_TRUE(options.resume);
  EXPECT_EQ(options.model, "small");
  EXPECT_THAT(options.sizes, ElementsAre(1, 2));
  EXPECT_THAT(options.names, ElementsAre("x", "y"));
  EXPECT_EQ(options.optimizer.lr, 1.0);
  EXPECT_EQ(options.optimizer.weight_decay, 0.0);
  read_settings(options, Json(), "an empty file");
  read_settings(options, Json::parse(R"({"optimizer": null})"), "run.yaml");
  EXPECT_EQ(options.steps, 7);
}

TEST(Settings, NamesUnknownKeysWithPathAndNearestName) {
  EXPECT_EQ(read_error(R"({"optimizer": {"weigth_decay": 1}})"),
            "run.yaml: unknown setting 'optimizer.weigth_decay'; did you mean 'optimizer.weight_decay'?");
  EXPECT_EQ(read_error(R"({"optimzer": {"lr": 1}})"),
            "run.yaml: unknown setting 'optimzer'; did you mean 'optimizer'?");
  EXPECT_EQ(read_error(R"({"lr": 1})"), "run.yaml: unknown setting 'lr'; did you mean 'optimizer.lr'?");
  EXPECT_EQ(read_error(R"({"temperature": 1})"), "run.yaml: unknown setting 'temperature'");
  EXPECT_THAT(read_error(R"({"optimizer.lr": 1})"),
              HasSubstr("'optimizer.lr' must be nested here: write 'optimizer:'"));
}

TEST(Settings, NamesValuesOfAnotherType) {
  EXPECT_EQ(read_error(R"({"steps": "7"})"), "run.yaml: setting 'steps' must be integer, but is \"7\"");
  EXPECT_EQ(read_error(R"({"steps": 7.5})"), "run.yaml: setting 'steps' must be integer, but is 7.5");
  EXPECT_THAT(read_error(R"({"steps": 18446744073709551615})"), HasSubstr("must be integer"));
  EXPECT_EQ(read_error(R"({"resume": 1})"), "run.yaml: setting 'resume' must be true|false, but is 1");
  EXPECT_EQ(read_error(R"({"model": 5})"), "run.yaml: setting 'model' must be text, but is 5");
  EXPECT_EQ(read_error(R"({"sizes": [1, "b"]})"),
            "run.yaml: setting 'sizes' must be list of integers, but is [1,\"b\"]");
  EXPECT_EQ(read_error(R"({"optimizer": {"lr": {"a": 1}}})"),
            "run.yaml: setting 'optimizer.lr' must be number, but is {\"a\":1}");
  EXPECT_EQ(read_error(R"({"optimizer": 3})"), "run.yaml: 'optimizer' must be a mapping of settings, but is 3");
  EXPECT_EQ(read_error("[1]"), "run.yaml: the file must be a mapping of settings, but is [1]");
}

TEST(Settings, ReadsAllOrNothing) {
  RunOptions options;
  EXPECT_THROW(read_settings(options, Json::parse(R"({"steps": 7, "optimizer": {"lr": "fast"}})"), "run.yaml"),
               std::invalid_argument);
  EXPECT_EQ(options.steps, 100);
}

TEST(Settings, AssignsFlags) {
  RunOptions options;
  assign_setting(options, "steps", "-3");
  assign_setting(options, "resume", "true");
  assign_setting(options, "model", "a b, c");
  assign_setting(options, "sizes", "4,5,6");
  assign_setting(options, "names", "");
  assign_setting(options, "optimizer.lr", "2e-4");
  EXPECT_EQ(options.steps, -3);
  EXPECT_TRUE(options.resume);
  EXPECT_EQ(options.model, "a b, c");
  EXPECT_THAT(options.sizes, ElementsAre(4, 5, 6));
  EXPECT_TRUE(options.names.empty());
  EXPECT_EQ(options.optimizer.lr, 2e-4);
}

TEST(Settings, RefusesFlagsThatDoNotFit) {
  EXPECT_EQ(assign_error("steps", "1.5"), "--steps must be integer, but is '1.5'");
  EXPECT_EQ(assign_error("steps", "9223372036854775808"), "--steps must be integer, but is '9223372036854775808'");
  EXPECT_EQ(assign_error("optimizer.lr", "fast"), "--optimizer.lr must be number, but is 'fast'");
  EXPECT_EQ(assign_error("optimizer.lr", "nan"), "--optimizer.lr must be number, but is 'nan'");
  EXPECT_EQ(assign_error("resume", "yes"), "--resume must be true|false, but is 'yes'");
  EXPECT_EQ(assign_error("sizes", "1,b"), "--sizes must be list of integers, but is '1,b'");
  EXPECT_EQ(assign_error("stepz", "1"), "command line: unknown setting 'stepz'; did you mean 'steps'?");
}

TEST(Settings, ListsEverySettingWithItsValue) {
  RunOptions options;
  options.steps = 5;
  const std::vector<SettingInfo> list = list_settings(options);
  ASSERT_EQ(list.size(), 7u);
  EXPECT_EQ(list[0].name, "steps");
  EXPECT_EQ(list[0].type, "integer");
  EXPECT_EQ(list[0].value, "5");
  EXPECT_EQ(list[0].help, "Number of steps.");
  EXPECT_EQ(list[3].value, "1,2");
  EXPECT_EQ(list[5].name, "optimizer.lr");
  EXPECT_EQ(list[5].value, "1e-05");
}

TEST(Settings, ComeBackFromTheResolvedConfig) {
  RunOptions options;
  options.steps = 123456789012345;
  options.model = "#1: \"quoted\" text\n";
  options.names = {"true", "5", "", "a, b"};
  options.sizes = {};
  options.optimizer.lr = 0.1;
  const test::TemporaryFolder folder;
  write_file_atomically(folder / "config.yaml", to_yaml(settings_to_json(options)));
  RunOptions back;
  read_settings(back, read_yaml_file(folder / "config.yaml"), "config.yaml");
  EXPECT_EQ(settings_to_json(back), settings_to_json(options));
}

}  // namespace
}  // namespace thinkvg
