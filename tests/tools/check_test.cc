// `thinkvg check`: what it says of settings, data, an example, parameters and memory before a run.

#include <gmock/gmock.h>

#include <filesystem>
#include <set>
#include <sstream>

#include "tests/support/process.h"
#include "thinkvg/core/files.h"
#include "thinkvg/core/json.h"
#include "thinkvg/core/progress.h"

namespace thinkvg {
namespace {

using test::ProcessResult;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

ProcessResult run(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), THINKVG_PROGRAM);
  return test::run_process(arguments);
}

TEST(CheckCommandEndToEnd, SettingsAreCheckedWithoutAModel) {
  const std::filesystem::path configs = std::filesystem::path(THINKVG_SOURCE_DIR) / "configs";
  for (const auto& [command, config] :
       std::vector<std::pair<std::string, std::string>>{{"sft", "gemex_thinkvg/sft.yaml"},
                                                        {"grpo", "gemex_thinkvg/grpo.yaml"},
                                                        {"sft", "qwen2_5_vl_lora/sft_3b.yaml"},
                                                        {"sft", "qwen2_5_vl_lora/sft_7b.yaml"},
                                                        {"sft", "quickstart/sft.yaml"},
                                                        {"grpo", "quickstart/grpo.yaml"},
                                                        {"sft", "phantom/sft.yaml"},
                                                        {"grpo", "phantom/grpo.yaml"}}) {
    const ProcessResult result = run({"check", command, "--config", (configs / config).string()});
    EXPECT_EQ(result.exit_code, 0) << config << ": " << result.err;
    EXPECT_THAT(result.out, AllOf(HasSubstr("The settings are sound"), HasSubstr("micro_batch_tokens: ")));
    const ProcessResult json = run({"check", command, "--config", (configs / config).string(), "--json"});
    EXPECT_TRUE(Json::parse(json.out).at("settings").contains("optimizer")) << config;
  }
}

TEST(CheckCommandEndToEnd, WrongUseIsExplained) {
  EXPECT_THAT(run({"check"}).err, HasSubstr("needs the command to check: thinkvg check sft"));
  EXPECT_THAT(run({"check", "eval"}).err, HasSubstr("needs the command to check"));
  const ProcessResult unknown = run({"check", "sft", "--optimizer.lrr", "1"});
  EXPECT_EQ(unknown.exit_code, 2);
  EXPECT_THAT(unknown.err, HasSubstr("did you mean --optimizer.lr?"));
  EXPECT_THAT(run({"check", "sft", "--run.steps", "1", "--packing", "tight"}).err,
              HasSubstr("packing must be by_length or in_order, but is 'tight'"));
  EXPECT_THAT(run({"check", "sft", "--help"}).out, AllOf(HasSubstr("--device_memory"), HasSubstr("--eval.every")));
  EXPECT_THAT(run({"check", "--help"}).out, HasSubstr("usage: thinkvg check sft|grpo"));
}

class CheckRunEndToEnd : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = new test::TemporaryFolder;
    ASSERT_EQ(run({"phantom", "--out", path("phantom"), "--num_images", "20", "--num_dev", "2", "--num_test", "2",
                   "--longest_side", "160"})
                  .exit_code,
              0);
    const ProcessResult init = run({"init",
                                    "--data",
                                    path("phantom/data/train.parquet"),
                                    "--out",
                                    path("init"),
                                    "--vocab_size",
                                    "400",
                                    "--image_size",
                                    "56",
                                    "--language.hidden_size",
                                    "32",
                                    "--language.num_layers",
                                    "2",
                                    "--language.intermediate_size",
                                    "48",
                                    "--language.mrope_section",
                                    "1,1,2",
                                    "--vision.hidden_size",
                                    "32",
                                    "--vision.depth",
                                    "2",
                                    "--vision.num_heads",
                                    "2",
                                    "--vision.intermediate_size",
                                    "48",
                                    "--vision.full_attention_blocks",
                                    "1"});
    ASSERT_EQ(init.exit_code, 0) << init.err;
  }
  static void TearDownTestSuite() { delete folder_; }

  static std::string path(const std::string& name) { return (*folder_ / name).string(); }
  static std::vector<std::string> with(const std::string& command, const std::vector<std::string>& more) {
    std::vector<std::string> arguments = {"check",       command,
                                          "--model",     path("init"),
                                          "--data",      path("phantom/data/train.parquet"),
                                          "--images",    path("phantom/files"),
                                          "--run.steps", "10"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }

  static test::TemporaryFolder* folder_;
};
test::TemporaryFolder* CheckRunEndToEnd::folder_ = nullptr;

TEST_F(CheckRunEndToEnd, TellsWhatSftWouldDo) {
  const ProcessResult result =
      run(with("sft", {"--json", "--batch_size", "4", "--lora.rank", "2", "--check_questions", "12"}));
  ASSERT_EQ(result.exit_code, 0) << result.err << result.out;
  const Json report = Json::parse(result.out);
  EXPECT_EQ(report.at("problems"), Json::array());
  EXPECT_EQ(report.at("settings").at("batch_size"), 4);
  const Json& data = report.at("data");
  EXPECT_GT(data.at("num_questions").get<int>(), 50);
  EXPECT_EQ(data.at("hit_rate"), 1.0);
  EXPECT_EQ(report.at("tokens").at("num_questions"), 12);
  EXPECT_LE(report.at("tokens").at("median"), report.at("tokens").at("longest"));

  // The example's loss spans are the answer and its end of turn, nothing else.
  std::string learned, all;
  for (const Json& span : report.at("example").at("spans")) {
    all += span.at("text").get<std::string>();
    if (span.at("loss").get<bool>()) learned += span.at("text").get<std::string>();
  }
  EXPECT_THAT(learned, AllOf(testing::StartsWith("<"), HasSubstr("<response><answer>"),
                             testing::EndsWith("</response><|im_end|>"), Not(HasSubstr("user"))));
  EXPECT_THAT(all, AllOf(HasSubstr("[picture: 4 tokens]"), HasSubstr("<|im_start|>assistant")));

  const Json& parts = report.at("parameters").at("parts");
  EXPECT_EQ(parts.at("language").at("trained"), 0);
  EXPECT_EQ(parts.at("vision").at("trained"), 0);
  EXPECT_EQ(report.at("parameters").at("trained"), parts.at("adapters of language").at("trained"));
  EXPECT_EQ(report.at("steps").at("num_steps"), 10);
  EXPECT_NEAR(report.at("steps").at("epochs").get<double>(), 40.0 / data.at("num_questions").get<double>(), 1e-9);
  EXPECT_TRUE(report.at("memory").at("fits").get<bool>());

  // The run itself says the same.
  std::vector<std::string> arguments = with("sft", {"--batch_size", "4", "--lora.rank", "2", "--out", path("run")});
  arguments.erase(arguments.begin());
  const ProcessResult sft = run(arguments);
  ASSERT_EQ(sft.exit_code, 0) << sft.err;
  EXPECT_THAT(sft.err, HasSubstr(format_count(report.at("parameters").at("trained").get<std::int64_t>()) + " of "));
}

TEST_F(CheckRunEndToEnd, MarksTheLossAndPlansForDevices) {
  const ProcessResult result =
      run(with("sft", {"--check_questions", "4", "--dtype", "bfloat16", "--world_size", "4", "--device_memory", "2G"}));
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, AllOf(HasSubstr("settings\n"), HasSubstr("\u27E6<"), HasSubstr("<|im_end|>\u27E7"),
                                HasSubstr("4 accelerators"), HasSubstr("fp32 masters"),
                                HasSubstr("with dist.sharding gradients"), HasSubstr("with dist.sharding parameters"),
                                HasSubstr("sent by each of 4 processes a step"), HasSubstr("it fits")));
}

TEST_F(CheckRunEndToEnd, PlansSplitWeights) {
  const auto planned = [](const char* sharding) {
    const ProcessResult result =
        run(with("sft", {"--json", "--check_questions", "4", "--world_size", "4", "--dist.sharding", sharding}));
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return Json::parse(result.out);
  };
  const Json whole = planned("gradients"), split = planned("parameters");
  EXPECT_EQ(split.at("memory").at("always").at(0).at("bytes").get<std::int64_t>(),
            whole.at("memory").at("always").at(0).at("bytes").get<std::int64_t>() / 4);
  EXPECT_GT(split.at("communication").at("parameter_bytes"), whole.at("communication").at("parameter_bytes"));
  EXPECT_EQ(split.at("communication").at("sharding"), "parameters");
}

// Shards of two processes hold twice what those of four do; layers that are fetched one by one take less room and are
// sent for every token.
TEST_F(CheckRunEndToEnd, PlansHybridShardsAndRolloutsByLayer) {
  const auto planned = [](std::vector<std::string> more) {
    more.insert(more.end(), {"--json", "--check_questions", "4", "--world_size", "4", "--prompts_per_step", "4",
                             "--group_size", "4", "--dist.sharding", "parameters"});
    const ProcessResult result = run(with("grpo", more));
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return Json::parse(result.out);
  };
  const auto weights = [](const Json& report) {
    return report.at("memory").at("always").at(0).at("bytes").get<std::int64_t>();
  };
  const auto fetched = [](const Json& report) {
    for (const Json& item : report.at("memory").at("rollout"))
      if (item.at("name") == "fetched weights") return item.at("bytes").get<std::int64_t>();
    return std::int64_t{-1};
  };
  const Json all = planned({}), pairs = planned({"--dist.shard_size", "2"}),
             layers = planned({"--dist.rollout_weights", "by_layer"});
  EXPECT_EQ(weights(pairs), 2 * weights(all));
  EXPECT_LT(pairs.at("communication").at("parameter_bytes"), all.at("communication").at("parameter_bytes"));
  EXPECT_LE(fetched(layers), fetched(all)) << "this decoder has two layers, and two are there at a time";
  EXPECT_THAT(layers.at("memory").at("rollout").dump(), HasSubstr("dist.rollout_weights by_layer"));
  EXPECT_THAT(all.at("memory").at("rollout").dump(), HasSubstr("the whole model"));
  EXPECT_GT(layers.at("communication").at("parameter_bytes"), all.at("communication").at("parameter_bytes"));
  EXPECT_EQ(
      run(with("grpo", {"--world_size", "3", "--dist.sharding", "parameters", "--dist.shard_size", "2"})).exit_code, 2);
}

TEST_F(CheckRunEndToEnd, NamesWhatIsInTheWay) {
  const ProcessResult result =
      run(with("sft", {"--max_length", "20", "--device_memory", "900M", "--check_questions", "5"}));
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.out, AllOf(HasSubstr("longer than max_length 20: 5 of 5"), HasSubstr("overlong skip"),
                                HasSubstr("it does not fit"), HasSubstr("gradient_checkpointing true")));
  std::filesystem::create_directories(path("nothing"));
  const ProcessResult empty =
      run({"check", "sft", "--model", path("init"), "--data", path("phantom/data/train.parquet"), "--images",
           path("nothing"), "--run.steps", "10"});
  EXPECT_EQ(empty.exit_code, 1);
  EXPECT_THAT(empty.out, HasSubstr("fewer than data.min_hit_rate 1 asks for"));
  EXPECT_THAT(run({"check", "sft", "--model", path("init"), "--run.steps", "1"}).err, HasSubstr("needs --data FILE"));
}

TEST_F(CheckRunEndToEnd, TellsWhatGrpoWouldDo) {
  const ProcessResult result = run(with("grpo", {"--json", "--prompts_per_step", "4", "--group_size", "4",
                                                 "--sampling.max_new_tokens", "40", "--check_questions", "6"}));
  ASSERT_EQ(result.exit_code, 0) << result.err << result.out;
  const Json report = Json::parse(result.out);
  EXPECT_THAT(report.at("example").at("reference").get<std::string>(), testing::StartsWith("<response>"));
  std::set<std::string> names;
  for (const char* list : {"always", "rollout"})
    for (const Json& item : report.at("memory").at(list)) names.insert(item.at("name").get<std::string>());
  EXPECT_THAT(names, testing::IsSupersetOf({"reference", "KV cache", "optimizer"}));
}

TEST_F(CheckRunEndToEnd, RunsAreEvaluatedWhileTheyTrain) {
  const std::vector<std::string> evaluation = {
      "--eval.every",           "5",  "--eval.data",           path("phantom/data/test.parquet"),
      "--eval.score_questions", "6",  "--eval.loss_questions", "8",
      "--eval.max_new_tokens",  "30", "--run.keep_best",       "parse_rate"};
  for (const std::string command : {"sft", "grpo"}) {
    std::vector<std::string> arguments = with(command, evaluation);
    arguments.erase(arguments.begin());
    for (const std::string& more : {std::string("--out"), path("evaluated-" + command)}) arguments.push_back(more);
    if (command == "grpo")
      for (const char* more :
           {"--prompts_per_step", "2", "--group_size", "2", "--sampling.max_new_tokens", "20", "--run.steps", "5"})
        arguments.push_back(more);
    const ProcessResult result = run(arguments);
    ASSERT_EQ(result.exit_code, 0) << result.err;
    const std::filesystem::path out = path("evaluated-" + command);
    const std::string metrics = read_file(out / "metrics.jsonl");
    std::int64_t num_evaluations = 0;
    std::istringstream stream(metrics);
    for (std::string line; std::getline(stream, line);) {
      const Json json = Json::parse(line);
      if (!json.contains("eval/loss")) continue;
      ++num_evaluations;
      EXPECT_TRUE(json.contains("eval/a_score")) << line;
      EXPECT_TRUE(json.contains("eval/v_score")) << line;
    }
    EXPECT_EQ(num_evaluations, command == "sft" ? 2 : 1);
    EXPECT_TRUE(std::filesystem::exists(out / "eval/step-5/predictions.jsonl"));
    EXPECT_TRUE(std::filesystem::exists(out / "checkpoints/best/model.safetensors"));
    EXPECT_THAT(result.err, HasSubstr("(the best so far)"));
  }
}

}  // namespace
}  // namespace thinkvg
