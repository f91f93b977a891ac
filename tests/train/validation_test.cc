#include "thinkvg/train/validation.h"

#include <gmock/gmock.h>

#include "tests/support/tiny_sft.h"
#include "thinkvg/train/run_folder.h"

namespace thinkvg::train {
namespace {

using test::metrics_of;
using test::tiny_sft;
using test::weights_of;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

SftOptions evaluated_sft(const std::string& out) {
  SftOptions options = tiny_sft(out);
  options.eval.every = 2;
  options.eval.data.path = test::tiny_run().test.string();
  options.eval.loss_questions = 10;
  options.eval.score_questions = 3;
  return options;
}

// Scores by the evaluation's name; notes what it was asked.
struct FakeScorer {
  std::map<std::string, double> a_scores;
  std::shared_ptr<std::vector<std::string>> asked = std::make_shared<std::vector<std::string>>();

  std::map<std::string, double> operator()(const ScoringTask& task) const {
    std::string ids = task.name + ":";
    for (std::int64_t i = 0; i < task.questions->size(); ++i) ids += "|" + task.questions->get(i).id;
    asked->push_back(ids);
    const auto found = a_scores.find(task.name);
    return {{"a_score", found == a_scores.end() ? 0.1 : found->second}, {"v_score", 0.5}};
  }
};

TEST(ValidationTest, IsLoggedAndLeavesTrainingAsItIs) {
  const test::TemporaryFolder folder;
  run_sft(tiny_sft((folder / "plain").string()));
  FakeScorer scorer;
  // Everything that could draw random numbers is on.
  SftOptions options = evaluated_sft((folder / "evaluated").string());
  options.run.steps = 5;
  options.run.log_every = 5;
  run_sft(options, scorer);
  const auto metrics = metrics_of(folder / "evaluated");
  ASSERT_EQ(metrics.size(), 3u) << "evaluations are logged whatever log_every says";
  for (const Json& line : metrics) {
    EXPECT_GT(line.at("eval/loss").get<double>(), 0);
    EXPECT_EQ(line.at("eval/a_score"), 0.1);
    EXPECT_EQ(line.at("eval/v_score"), 0.5);
    EXPECT_TRUE(line.contains("step_time/eval"));
  }
  EXPECT_EQ(metrics[0].at("step"), 2);
  EXPECT_EQ(metrics[2].at("step"), 5) << "the last step is evaluated";
  EXPECT_LT(metrics[2].at("eval/loss").get<double>(), metrics[0].at("eval/loss").get<double>());
  // The same questions each time, and fewer than there are.
  ASSERT_EQ(scorer.asked->size(), 3u);
  const auto ids = [&](std::size_t i) { return (*scorer.asked)[i].substr((*scorer.asked)[i].find(':')); };
  EXPECT_EQ(ids(0), ids(1));
  const std::string first = ids(0);
  EXPECT_EQ(std::count(first.begin(), first.end(), '|'), 3) << first;

  options = evaluated_sft((folder / "whole").string());
  options.tuning.lora.rank = 2;
  options.tuning.lora.dropout = 0.2;
  options.neftune_noise_alpha = 5;
  run_sft(options, scorer);
  options.out = (folder / "without").string();
  options.eval.every = 0;
  run_sft(options, scorer);
  EXPECT_EQ(sha256_file(folder / "whole/checkpoints/step-6/adapter_model.safetensors"),
            sha256_file(folder / "without/checkpoints/step-6/adapter_model.safetensors"));
}

TEST(ValidationTest, LossIsThatOfTraining) {
  const test::TemporaryFolder folder;
  SftOptions options = tiny_sft((folder / "run").string());
  options.data.limit = 7;
  options.batch_size = 7;
  options.run.steps = 1;
  options.optimizer.lr = 1e-30;  // the weights stay
  options.eval = {.every = 1, .data = options.data, .images = "", .loss_questions = 0, .score_questions = 0};
  EXPECT_THROW(run_sft(options), std::invalid_argument) << "nothing to measure";
  options.eval.loss_questions = 100;
  run_sft(options);
  const Json line = metrics_of(folder / "run").front();
  EXPECT_NEAR(line.at("eval/loss").get<double>(), line.at("loss").get<double>(), 1e-5);
  EXPECT_FALSE(line.contains("eval/a_score"));
}

TEST(ValidationTest, TheBestCheckpointIsKeptBesideTheLast) {
  const test::TemporaryFolder folder;
  SftOptions options = evaluated_sft((folder / "run").string());
  options.eval.every = 1;
  options.eval.loss_questions = 0;
  options.run.save_every = 2;
  options.run.keep_last = 1;
  options.run.keep_best = "a_score";
  const FakeScorer scorer{{{"step-1", 0.2}, {"step-3", 0.4}, {"step-4", 0.4}}};
  run_sft(options, scorer);
  const auto kept = models::checkpoints_of(folder / "run");
  ASSERT_EQ(kept.size(), 2u);
  EXPECT_EQ(kept[0].filename(), "step-3") << "saved although save_every does not say so; equal is not better";
  EXPECT_EQ(kept[1].filename(), "step-6");
  EXPECT_EQ(std::filesystem::read_symlink(folder / "run/checkpoints/best"), "step-3");
  EXPECT_NO_THROW(models::load_bundle(folder / "run/checkpoints/best"));
  EXPECT_EQ(models::resolve_model_folder(folder / "run").filename(), "step-6");

  // A run that is cut behind step 4 knows its best one again, and ends with the same.
  options.out = (folder / "cut").string();
  options.run.keep_last = 4;
  run_sft(options, scorer);
  for (const char* step : {"step-6", "step-5"}) std::filesystem::remove_all(folder / "cut/checkpoints" / step);
  options.run.keep_last = 1;
  options.resume = true;
  run_sft(options, scorer);
  EXPECT_EQ(std::filesystem::read_symlink(folder / "cut/checkpoints/best"), "step-3");
  EXPECT_TRUE(std::filesystem::exists(folder / "cut/checkpoints/step-3"));
  EXPECT_EQ(weights_of(folder / "cut", "step-6"), weights_of(folder / "run", "step-6"));
}

TEST(ValidationTest, TheLowestLossIsTheBest) {
  const test::TemporaryFolder folder;
  SftOptions options = evaluated_sft((folder / "run").string());
  options.eval.score_questions = 0;
  options.run.keep_best = "loss";
  options.run.async_save = true;
  run_sft(options);
  EXPECT_EQ(std::filesystem::read_symlink(folder / "run/checkpoints/best"), "step-6");
}

TEST(ValidationTest, SaysWhatIsMissing) {
  const test::TemporaryFolder folder;
  const auto expect_error = [&](const SftOptions& options, const char* text) {
    EXPECT_THAT([&] { run_sft(options); }, ThrowsMessage<std::invalid_argument>(HasSubstr(text)));
  };
  SftOptions options = evaluated_sft((folder / "run").string());
  expect_error(options, "cannot score answers");
  options.eval.score_questions = 0;
  options.run.keep_best = "a_score";
  expect_error(options, "eval.score_questions above 0");
  options.run.keep_best = "accuracy";
  expect_error(options, "must be one of loss, a_score");
  options.run.keep_best = "loss";
  options.eval.every = 0;
  expect_error(options, "give eval.every");
  options.eval = {.every = 1};
  expect_error(options, "--eval.data FILE");
  options.eval = {.every = -1};
  expect_error(options, "eval.every must be 0 or more");
}

}  // namespace
}  // namespace thinkvg::train
