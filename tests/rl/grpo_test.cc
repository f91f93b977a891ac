#include "thinkvg/rl/grpo.h"

#include <gmock/gmock.h>

#include <csignal>
#include <fstream>

#include "tests/support/tiny_run.h"
#include "thinkvg/core/files.h"
#include "thinkvg/core/interrupt.h"
#include "thinkvg/models/adapters.h"
#include "thinkvg/models/bundle.h"

namespace thinkvg::rl {
namespace {

GrpoOptions tiny_grpo(const std::string& out) {
  const test::TinyRun& tiny = test::tiny_run();
  GrpoOptions options;
  options.model = tiny.model.string();
  options.data.path = tiny.train.string();
  options.images = tiny.images.string();
  options.out = out;
  options.prompts_per_step = 3;
  options.group_size = 4;
  options.tuning.freeze_vision = options.tuning.freeze_projector = true;
  options.sampling.max_new_tokens = 12;
  options.optimizer.lr = 1e-3;
  options.run.steps = 4;
  options.run.save_every = 2;
  return options;
}

std::vector<Json> lines_of(const std::filesystem::path& file) {
  std::vector<Json> lines;
  std::ifstream stream(file);
  for (std::string line; std::getline(stream, line);) lines.push_back(Json::parse(line));
  return lines;
}

std::string weights_of(const std::filesystem::path& run, const std::string& step, const std::string& file) {
  return sha256_file(run / "checkpoints" / step / file);
}

TEST(GrpoTest, ResumesToTheSameBits) {
  const test::TemporaryFolder folder;
  GrpoOptions options = tiny_grpo((folder / "whole").string());
  run_grpo(options);
  std::filesystem::copy(folder / "whole", folder / "cut", std::filesystem::copy_options::recursive);
  std::filesystem::remove_all(folder / "cut/checkpoints/step-4");
  options.out = (folder / "cut").string();
  options.resume = true;
  run_grpo(options);
  EXPECT_EQ(weights_of(folder / "cut", "step-4", "model.safetensors"),
            weights_of(folder / "whole", "step-4", "model.safetensors"));
  const auto whole = lines_of(folder / "whole/samples/completions.jsonl");
  EXPECT_EQ(lines_of(folder / "cut/samples/completions.jsonl"), whole);
  EXPECT_EQ(lines_of(folder / "cut/metrics.jsonl").size(), 4u);
}

TEST(GrpoTest, TheModelBelowAdaptersIsTheReference) {
  const test::TemporaryFolder folder;
  GrpoOptions options = tiny_grpo((folder / "run").string());
  options.tuning.lora.rank = 2;
  options.optimizer.lr = 5e-2;
  options.optimizer.warmup_ratio = 0;
  options.rewards = {"format=1"};
  // Every reward is 0 for a new model; the group's spread must come from somewhere for the weights to move.
  options.beta = 0.1;
  run_grpo(options);
  const auto metrics = lines_of(folder / "run/metrics.jsonl");
  EXPECT_NEAR(metrics.front()["kl"].get<double>(), 0, 1e-6);
  EXPECT_TRUE(models::is_adapter_folder(folder / "run/checkpoints/step-4"));
  EXPECT_NO_THROW(models::load_bundle(folder / "run/checkpoints/step-4"));
}

TEST(GrpoTest, TruncatedCompletionsCanBeLeftOut) {
  const test::TemporaryFolder folder;
  GrpoOptions options = tiny_grpo((folder / "run").string());
  options.run.steps = 1;
  options.run.save_every = 0;
  options.sampling.max_new_tokens = 1;  // all of them are cut
  options.mask_truncated = true;
  run_grpo(options);
  const auto metrics = lines_of(folder / "run/metrics.jsonl");
  EXPECT_EQ(metrics.front()["completions/clipped_ratio"], 1.0);
  EXPECT_EQ(metrics.front()["grad_norm"], 0.0);
  const auto before = models::load(options.model), after = models::load(folder / "run/checkpoints/step-1");
  const auto old_parameters = before->named_parameters();
  for (const auto& item : after->named_parameters()) EXPECT_TRUE(at::equal(item.value(), old_parameters[item.key()]));
}

TEST(GrpoTest, ASignalSavesAndTheRunGoesOn) {
  const test::TemporaryFolder folder;
  GrpoOptions options = tiny_grpo((folder / "whole").string());
  run_grpo(options);
  options.out = (folder / "stopped").string();
  {
    const InterruptGuard guard;
    std::raise(SIGTERM);
    run_grpo(options);
  }
  EXPECT_EQ(models::checkpoints_of(folder / "stopped").back().filename(), "step-1");
  options.resume = true;
  run_grpo(options);
  EXPECT_EQ(weights_of(folder / "stopped", "step-4", "model.safetensors"),
            weights_of(folder / "whole", "step-4", "model.safetensors"));
}

}  // namespace
}  // namespace thinkvg::rl
