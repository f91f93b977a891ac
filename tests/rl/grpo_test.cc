#include "thinkvg/rl/grpo.h"

#include <gmock/gmock.h>

#include <csignal>
#include <fstream>
#include <set>

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
  options.sampling.max_new_tokens = 24;
  options.optimizer.lr = 1e-3;
  // One that differs between the completions of a new model.
  options.rewards = {"repetition=1"};
  options.reward.repetition_unit = "tokens";
  options.reward.repetition_ngram = 1;
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
  options.watch_every = 2;
  options.watched_questions = 3;
  run_grpo(options);
  std::filesystem::copy(folder / "whole", folder / "cut", std::filesystem::copy_options::recursive);
  std::filesystem::remove_all(folder / "cut/checkpoints/step-4");
  options.out = (folder / "cut").string();
  options.resume = true;
  run_grpo(options);
  EXPECT_EQ(weights_of(folder / "cut", "step-4", "model.safetensors"),
            weights_of(folder / "whole", "step-4", "model.safetensors"));
  EXPECT_NE(weights_of(folder / "whole", "step-2", "model.safetensors"),
            weights_of(folder / "whole", "step-4", "model.safetensors"));
  const auto whole = lines_of(folder / "whole/samples/completions.jsonl");
  EXPECT_EQ(lines_of(folder / "cut/samples/completions.jsonl"), whole);
  EXPECT_EQ(lines_of(folder / "cut/metrics.jsonl").size(), 4u);
  const auto watched = lines_of(folder / "whole/samples/watched.jsonl");
  EXPECT_EQ(lines_of(folder / "cut/samples/watched.jsonl"), watched);
  ASSERT_EQ(watched.size(), 9u);
  std::set<std::string> types;
  for (std::size_t i = 0; i < watched.size(); ++i) {
    EXPECT_EQ(watched[i]["step"], 2 * (i / 3));
    EXPECT_EQ(watched[i]["id"], watched[i % 3]["id"]) << "the same questions each time";
    types.insert(watched[i]["type"].get<std::string>());
  }
  EXPECT_EQ(types.size(), 3u) << "of different types";
}

// Which questions are watched, and how often, changes nothing of what is learned.
TEST(GrpoTest, WatchingChangesNothing) {
  const test::TemporaryFolder folder;
  GrpoOptions options = tiny_grpo((folder / "watched").string());
  options.run.steps = options.run.save_every = 2;
  options.watch_every = 1;
  run_grpo(options);
  options.out = (folder / "not").string();
  options.watch_every = 0;
  run_grpo(options);
  EXPECT_EQ(weights_of(folder / "watched", "step-2", "model.safetensors"),
            weights_of(folder / "not", "step-2", "model.safetensors"));
  EXPECT_TRUE(std::filesystem::exists(folder / "watched/samples/watched.jsonl"));
  EXPECT_FALSE(std::filesystem::exists(folder / "not/samples/watched.jsonl"));
}

TEST(GrpoTest, ReasoningIsRequiredUnlessSaidOtherwise) {
  const test::TemporaryFolder folder;
  GrpoOptions options = tiny_grpo((folder / "run").string());
  options.run.steps = 1;
  options.run.save_every = 0;
  options.rewards = {"format=1"};
  std::vector<std::string> reasons;
  for (const bool required : {true, false}) {
    options.reward.require_think = required;
    options.out = (folder / (required ? "with" : "without")).string();
    run_grpo(options);
    reasons.push_back(lines_of(std::filesystem::path(options.out) / "samples/completions.jsonl")
                          .front()["rewards"]["format"]["reason"]
                          .get<std::string>());
  }
  EXPECT_THAT(reasons[0], ::testing::HasSubstr("no <think>"));
  EXPECT_THAT(reasons[1], ::testing::Not(::testing::HasSubstr("no <think>")));
}

TEST(GrpoTest, TheModelBelowAdaptersIsTheReference) {
  const test::TemporaryFolder folder;
  GrpoOptions options = tiny_grpo((folder / "run").string());
  options.tuning.lora.rank = 2;
  options.optimizer.lr = 5e-2;
  options.optimizer.warmup_ratio = 0;
  options.beta = 0.1;
  run_grpo(options);
  const auto metrics = lines_of(folder / "run/metrics.jsonl");
  EXPECT_NEAR(metrics.front()["kl"].get<double>(), 0, 1e-6);
  EXPECT_GT(metrics.back()["kl"].get<double>(), 1e-6);
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

TEST(GrpoTest, RefusesQuantizedRollouts) {
  const test::TemporaryFolder folder;
  GrpoOptions options = tiny_grpo((folder / "run").string());
  EXPECT_NO_THROW(options.check());
  options.engine.quantization = "int8";
  EXPECT_THROW(options.check(), std::invalid_argument);
}

// Every setting that changes what is computed: runs, resumes to the same bits, and differs from the plain run.
TEST(GrpoTest, VariantsRunAndResume) {
  const test::TemporaryFolder folder;
  GrpoOptions plain = tiny_grpo((folder / "plain").string());
  run_grpo(plain);
  const std::string plain_weights = weights_of(folder / "plain", "step-4", "model.safetensors");
  using Change = void (*)(GrpoOptions&);
  const std::pair<const char*, Change> variants[] = {
      {"gdpo", [](GrpoOptions& o) { o.multi_objective_aggregation = "normalize_then_sum"; }},
      {"kl_in_reward", [](GrpoOptions& o) { o.kl_in_reward = true, o.kl_estimator = "k1", o.beta = 0.5; }},
      {"entropy", [](GrpoOptions& o) { o.entropy_coef = 0.1; }},
      {"top_entropy", [](GrpoOptions& o) { o.top_entropy_quantile = 0.3; }},
      {"correction", [](GrpoOptions& o) { o.rollout_correction = "token_mask", o.rollout_correction_min = 1.0000001; }},
      {"two_updates", [](GrpoOptions& o) { o.updates_per_rollout = 2; }},
      {"sync", [](GrpoOptions& o) { o.sync_ref_model = true, o.ref_model_sync_steps = 1; }},
      {"gspo", [](GrpoOptions& o) { o.loss_type = "grpo", o.importance_sampling_level = "sequence"; }},
  };
  for (const auto& [name, change] : variants) {
    SCOPED_TRACE(name);
    GrpoOptions options = plain;
    options.out = (folder / name).string();
    change(options);
    run_grpo(options);
    const std::string weights = weights_of(folder / name, "step-4", "model.safetensors");
    EXPECT_NE(weights, plain_weights);
    std::filesystem::remove_all(folder / name / "checkpoints/step-4");
    options.resume = true;
    run_grpo(options);
    EXPECT_EQ(weights_of(folder / name, "step-4", "model.safetensors"), weights);
  }
}

TEST(GrpoTest, DynamicSamplingDrawsOtherQuestions) {
  const test::TemporaryFolder folder;
  GrpoOptions options = tiny_grpo((folder / "run").string());
  options.rewards = {"repetition=1", "format=1"};
  options.dynamic_sampling = true;
  options.dynamic_sampling_reward = "format";  // never any signal: every question is drawn anew
  options.max_refill = 2;
  options.run.steps = 2;
  run_grpo(options);
  const auto metrics = lines_of(folder / "run/metrics.jsonl");
  EXPECT_EQ(metrics.front()["dynamic_sampling/refills"], 2);
  EXPECT_EQ(metrics.front()["dynamic_sampling/dropped_groups"], 9);
  const Json state = read_json_file(folder / "run/checkpoints/step-2/trainer/state.json");
  EXPECT_EQ(state["extra"]["next_prompt"], 18);
  options.dynamic_sampling_reward = "answers";
  options.out = (folder / "other").string();
  EXPECT_THROW(run_grpo(options), std::invalid_argument);
}

// What is drawn ahead comes from the weights before the last update: the second step's completions are the starting
// model's, whatever the first step learned.
TEST(GrpoTest, OverlappedRolloutsAreOneUpdateBehind) {
  const test::TemporaryFolder folder;
  GrpoOptions options = tiny_grpo((folder / "frozen").string());
  options.run.steps = 3;
  options.run.save_every = 0;
  options.samples_per_step = 12;
  options.optimizer.warmup_ratio = 0;
  options.optimizer.lr = 1e-20;  // no weight is small enough to change by it
  run_grpo(options);
  options.optimizer.lr = 3e-2;
  options.out = (folder / "plain").string();
  run_grpo(options);
  options.out = (folder / "ahead").string();
  options.overlap_rollout = true;
  run_grpo(options);
  const auto responses = [&](const char* run, std::int64_t step) {
    std::vector<std::string> texts;
    for (const Json& line : lines_of(folder / run / "samples/completions.jsonl"))
      if (line["step"] == step) texts.push_back(line["response"].get<std::string>());
    return texts;
  };
  ASSERT_EQ(responses("ahead", 2).size(), 12u);
  EXPECT_EQ(responses("ahead", 1), responses("plain", 1));
  EXPECT_EQ(responses("ahead", 2), responses("frozen", 2));
  EXPECT_NE(responses("plain", 2), responses("frozen", 2));
  EXPECT_NE(responses("ahead", 3), responses("frozen", 3));
  const auto plain = lines_of(folder / "plain/metrics.jsonl"), ahead = lines_of(folder / "ahead/metrics.jsonl");
  EXPECT_EQ(ahead[0]["loss"], plain[0]["loss"]);
  EXPECT_LT(plain[1]["rollout_gap/max"].get<double>(), 1e-3);
  EXPECT_GT(ahead[1]["rollout_gap/max"].get<double>(), 1e-2) << "the update between drawing and learning";
  EXPECT_GT(ahead[1]["clip_ratio/low"].get<double>() + ahead[1]["clip_ratio/high"].get<double>(), 0)
      << "ratios are those to the weights that drew";
}

TEST(GrpoTest, OverlappedRolloutsResumeToTheSameBits) {
  const test::TemporaryFolder folder;
  for (const bool corrected : {false, true}) {
    SCOPED_TRACE(corrected);
    const std::filesystem::path whole = folder / (corrected ? "whole-corrected" : "whole");
    const std::filesystem::path stopped = folder / (corrected ? "stopped-corrected" : "stopped");
    GrpoOptions options = tiny_grpo(whole.string());
    options.overlap_rollout = true;
    if (corrected) options.rollout_correction = "token_truncate";
    run_grpo(options);
    options.out = stopped.string();
    {
      const InterruptGuard guard;
      std::raise(SIGTERM);
      run_grpo(options);
    }
    ASSERT_EQ(models::checkpoints_of(stopped).back().filename(), "step-1");
    options.resume = true;
    run_grpo(options);
    EXPECT_EQ(weights_of(stopped, "step-4", "model.safetensors"), weights_of(whole, "step-4", "model.safetensors"));
    EXPECT_EQ(lines_of(stopped / "samples/completions.jsonl"), lines_of(whole / "samples/completions.jsonl"));
  }
}

TEST(GrpoTest, OverlapRefusesWhatItCannotBeExactWith) {
  GrpoOptions options = tiny_grpo("unused");
  options.overlap_rollout = true;
  EXPECT_NO_THROW(options.check());
  for (const auto change :
       {+[](GrpoOptions& o) { o.dynamic_sampling = true; }, +[](GrpoOptions& o) { o.updates_per_rollout = 2; },
        +[](GrpoOptions& o) { o.dist.sharding = "parameters"; }, +[](GrpoOptions& o) { o.sampling.top_p = 0.9; },
        +[](GrpoOptions& o) { o.sampling.min_new_tokens = 3; }}) {
    GrpoOptions changed = options;
    change(changed);
    EXPECT_THROW(changed.check(), std::invalid_argument);
  }
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
