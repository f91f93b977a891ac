// The same training in one and in several processes.
#include <algorithm>
#include <cmath>
#include <map>

#include "tests/dist/workers.h"
#include "tests/support/tiny_run.h"
#include "thinkvg/dist/plan.h"
#include "thinkvg/models/bundle.h"
#include "thinkvg/models/vision_language_model.h"
#include "thinkvg/train/parameter_shards.h"
#include "thinkvg/train/run_folder.h"

namespace thinkvg::dist {
namespace {

namespace fs = std::filesystem;

// A batch that three ranks cannot share evenly, in micro-batches of one or two questions.
Json sft_options(const fs::path& out) {
  const test::TinyRun& tiny = test::tiny_run();
  return {{"model", tiny.model.string()},
          {"data", {{"path", tiny.train.string()}}},
          {"images", tiny.images.string()},
          {"out", out.string()},
          {"batch_size", 5},
          {"optimizer", {{"lr", 3e-3}, {"weight_decay", 0.1}}},
          {"run", {{"steps", 5}, {"micro_batch_tokens", 150}, {"tensorboard", false}, {"num_threads", 1}}}};
}

Json grpo_options(const fs::path& out) {
  const test::TinyRun& tiny = test::tiny_run();
  return {{"model", tiny.model.string()},
          {"data", {{"path", tiny.train.string()}}},
          {"images", tiny.images.string()},
          {"out", out.string()},
          {"prompts_per_step", 3},
          {"group_size", 4},
          {"scale_rewards", "batch"},
          {"freeze_vision", true},
          {"freeze_projector", true},
          {"samples_per_step", 12},
          {"sampling", {{"max_new_tokens", 24}}},
          {"rewards", {"repetition=1"}},
          {"reward", {{"repetition_unit", "tokens"}, {"repetition_ngram", 1}}},
          {"optimizer", {{"lr", 1e-3}}},
          {"run", {{"steps", 4}, {"micro_batch_tokens", 150}, {"tensorboard", false}, {"num_threads", 1}}}};
}

struct Training {
  std::vector<Json> metrics;
  std::vector<Json> samples;
  WorkersResult workers;
};

Training train(const std::string& mode, std::int64_t processes, const Json& options,
               const Json& dist = Json::object()) {
  const fs::path out = options.at("out").get<std::string>();
  Training training;
  training.workers = run_workers(mode, processes, {{"options", options}, {"dist", dist}});
  expect_success(training.workers);
  training.metrics = json_lines(out / "metrics.jsonl");
  if (fs::exists(out / "samples/completions.jsonl")) training.samples = json_lines(out / "samples/completions.jsonl");
  return training;
}

void expect_same_curves(const Training& got, const Training& expected, double tolerance = 1e-5) {
  ASSERT_EQ(got.metrics.size(), expected.metrics.size());
  ASSERT_FALSE(expected.metrics.empty());
  for (std::size_t i = 0; i < expected.metrics.size(); ++i) {
    for (const char* name : {"loss", "grad_norm", "lr", "reward", "reward_std", "kl", "entropy", "advantage_abs_mean",
                             "completions/mean_length", "frac_reward_zero_std"}) {
      if (!expected.metrics[i].contains(name)) continue;
      const double value = expected.metrics[i][name].get<double>();
      EXPECT_NEAR(got.metrics[i][name].get<double>(), value, tolerance * std::max(1.0, std::abs(value)))
          << name << " of step " << i + 1;
    }
    for (const char* name : {"num_tokens", "num_target_tokens", "num_skipped"})
      if (expected.metrics[i].contains(name)) EXPECT_EQ(got.metrics[i][name], expected.metrics[i][name]) << name;
  }
}

void expect_same_weights(const fs::path& got, const fs::path& expected, double tolerance) {
  const auto a = models::load(got), b = models::load(expected);
  const auto others = b->named_parameters();
  for (const auto& item : a->named_parameters())
    EXPECT_LT((item.value() - others[item.key()]).abs().max().item<double>(), tolerance) << item.key();
}

TEST(SftDist, LossesDoNotDependOnTheNumberOfProcesses) {
  const test::TemporaryFolder folder;
  const Training one = train("sft", 1, sft_options(folder / "1"));
  ASSERT_EQ(one.metrics.size(), 5u);
  EXPECT_FALSE(one.metrics.front().contains("communication_bytes"));
  EXPECT_LT(one.metrics.back()["loss"].get<double>(), one.metrics.front()["loss"].get<double>());
  for (const std::int64_t size : {2, 3, 4}) {
    SCOPED_TRACE(size);
    const Training several = train("sft", size, sft_options(folder / std::to_string(size)));
    expect_same_curves(several, one);
    EXPECT_GT(several.metrics.front()["communication_bytes"].get<std::int64_t>(), 0);
  }
  expect_same_weights(folder / "4/checkpoints/step-5", folder / "1/checkpoints/step-5", 2e-4);
}

TEST(SftDist, ShardingDoesNotChangeTheLosses) {
  const test::TemporaryFolder folder;
  const Training one = train("sft", 1, sft_options(folder / "1"));
  for (const char* sharding : {"optimizer", "gradients", "parameters"}) {
    for (const std::int64_t size : {2, 4}) {
      SCOPED_TRACE(std::string(sharding) + " " + std::to_string(size));
      const fs::path out = folder / (sharding + std::to_string(size));
      const Training several = train("sft", size, sft_options(out), {{"sharding", sharding}, {"bucket_mb", 1}});
      expect_same_curves(several, one);
      EXPECT_EQ(train::checkpoint_damage(out / "checkpoints/step-5"), "");
      for (std::int64_t rank = 0; rank < size; ++rank)
        EXPECT_TRUE(fs::exists(out / "checkpoints/step-5/trainer" / train::optimizer_file(rank, size)));
      // The folder is a whole model.
      expect_same_weights(out / "checkpoints/step-5", folder / "1/checkpoints/step-5", 2e-4);
    }
  }
}

// Gradients and weights of a device, reduced, split and gathered.
TEST(SftDist, AnotherDeviceLearnsTheSame) {
  const test::TemporaryFolder folder;
  const Training one = train("sft", 1, sft_options(folder / "1"));
  for (const char* sharding : {"none", "optimizer", "gradients", "parameters"}) {
    SCOPED_TRACE(sharding);
    Json options = sft_options(folder / sharding);
    options["device"] = "checking";
    options["gradient_checkpointing"] = true;
    expect_same_curves(train("sft", 2, options, {{"sharding", sharding}}), one, 1e-4);
    expect_same_weights(folder / sharding / "checkpoints/step-5", folder / "1/checkpoints/step-5", 2e-3);
  }
}

// Two shards of two processes, which hold the same.
TEST(SftDist, ShardsOfSomeProcessesDoNotChangeTheLosses) {
  const test::TemporaryFolder folder;
  const Training one = train("sft", 1, sft_options(folder / "1"));
  for (const char* sharding : {"optimizer", "gradients", "parameters"}) {
    SCOPED_TRACE(sharding);
    const fs::path out = folder / sharding;
    const Training several =
        train("sft", 4, sft_options(out), {{"sharding", sharding}, {"shard_size", 2}, {"bucket_mb", 1}});
    expect_same_curves(several, one);
    EXPECT_EQ(train::checkpoint_damage(out / "checkpoints/step-5"), "");
    for (std::int64_t rank = 0; rank < 2; ++rank)
      EXPECT_TRUE(fs::exists(out / "checkpoints/step-5/trainer" / train::optimizer_file(rank, 2)));
    expect_same_weights(out / "checkpoints/step-5", folder / "1/checkpoints/step-5", 2e-4);
  }
  Json options = sft_options(folder / "parameters");
  options["resume"] = true;
  options["run"]["steps"] = 7;
  const Training on = train("sft", 2, options, {{"sharding", "optimizer"}});
  EXPECT_EQ(on.metrics.size(), 7u);
  const WorkersResult uneven = run_workers(
      "sft", 3, {{"options", sft_options(folder / "3")}, {"dist", {{"sharding", "parameters"}, {"shard_size", 2}}}});
  EXPECT_THAT(uneven.error(0), ::testing::HasSubstr("dist.shard_size 2 must divide the number of processes, 3"));
}

TEST(SftDist, AdaptersAndFrozenPartsShardToo) {
  const test::TemporaryFolder folder;
  const auto options = [&](const std::string& name) {
    Json json = sft_options(folder / name);
    json["freeze_vision"] = true;
    json["lora"] = {{"rank", 3}};
    json["gradient_checkpointing"] = true;
    json["neftune_noise_alpha"] = 5;
    if (name == "2") json["run"]["num_threads"] = 2;  // passes side by side
    return json;
  };
  const Training one = train("sft", 1, options("1"));
  expect_same_curves(train("sft", 2, options("2")), one);
  expect_same_curves(train("sft", 4, options("4"), {{"sharding", "gradients"}}), one);
  expect_same_curves(train("sft", 3, options("3"), {{"sharding", "parameters"}}), one);
}

TEST(SftDist, MastersOfBfloat16WeightsShard) {
  const test::TemporaryFolder folder;
  const auto options = [&](const std::string& name) {
    Json json = sft_options(folder / name);
    json["dtype"] = "bfloat16";
    return json;
  };
  const Training one = train("sft", 1, options("1"));
  for (const char* sharding : {"none", "optimizer", "parameters"})
    expect_same_curves(train("sft", 2, options(sharding), {{"sharding", sharding}}), one, 3e-2);
}

// A run that stops in the middle goes on in another number of processes, under another sharding.
TEST(SftDist, ResumesOnAnotherNumberOfProcesses) {
  using Processes = std::pair<std::int64_t, std::string>;  // their number and dist.sharding
  const std::pair<Processes, std::vector<Processes>> resumptions[] = {
      {{4, "optimizer"}, {{1, "none"}, {2, "gradients"}, {3, "none"}, {3, "parameters"}, {4, "optimizer"}}},
      {{3, "parameters"}, {{1, "none"}, {2, "parameters"}, {4, "gradients"}}}};
  for (const auto& [first, others] : resumptions) {
    SCOPED_TRACE(first.second);
    const test::TemporaryFolder folder;
    Json options = sft_options(folder / "whole");
    options["run"]["save_every"] = 3;
    const Training whole = train("sft", first.first, options, {{"sharding", first.second}});
    for (const auto& [size, sharding] : others) {
      SCOPED_TRACE(sharding + " " + std::to_string(size));
      const fs::path out = folder / (sharding + std::to_string(size));
      fs::copy(folder / "whole", out, fs::copy_options::recursive);
      fs::remove_all(out / "checkpoints/step-5");
      Json resumed = options;
      resumed["out"] = out.string();
      resumed["resume"] = true;
      expect_same_curves(train("sft", size, resumed, {{"sharding", sharding}}), whole);
      expect_same_weights(out / "checkpoints/step-5", folder / "whole/checkpoints/step-5", 2e-4);
    }
  }
}

TEST(SftDist, SkippedQuestionsAreListedOnce) {
  const test::TemporaryFolder folder;
  Json options = sft_options(folder / "run");
  options["max_length"] = 8;
  options["overlong"] = "skip";
  options["run"]["steps"] = 2;
  const Training training = train("sft", 2, options);
  EXPECT_EQ(training.metrics.back()["num_skipped"], 10);
  EXPECT_EQ(json_lines(folder / "run/samples/skipped.jsonl").size(), 10u);
  options["overlong"] = "refuse";
  options["out"] = (folder / "refused").string();
  const WorkersResult refused = run_workers("sft", 2, {{"options", options}});
  for (std::size_t rank = 0; rank < 2; ++rank)
    EXPECT_THAT(refused.error(rank), ::testing::HasSubstr("more than max_length 8"));
}

// Rank 0 measures; all know the best step, so that they save together.
TEST(SftDist, EvaluationsAreOfOneProcessAndKnownToAll) {
  const test::TemporaryFolder folder;
  const auto options = [&](const std::string& name) {
    Json json = sft_options(folder / name);
    json["eval"] = {{"every", 2},
                    {"data", {{"path", test::tiny_run().train.string()}}},
                    {"loss_questions", 6},
                    {"score_questions", 0}};
    json["run"]["keep_best"] = "loss";
    json["run"]["keep_last"] = 1;
    return json;
  };
  const Training one = train("sft", 1, options("1"));
  const Training several = train("sft", 3, options("3"), {{"sharding", "parameters"}});
  expect_same_curves(several, one);
  std::vector<double> losses;
  for (std::size_t i = 0; i < one.metrics.size(); ++i) {
    ASSERT_EQ(several.metrics[i].contains("eval/loss"), one.metrics[i].contains("eval/loss")) << i;
    if (!one.metrics[i].contains("eval/loss")) continue;
    losses.push_back(one.metrics[i]["eval/loss"].get<double>());
    EXPECT_NEAR(several.metrics[i]["eval/loss"].get<double>(), losses.back(), 1e-5 * losses.back());
  }
  ASSERT_EQ(losses.size(), 3u) << "after steps 2, 4 and 5";
  const auto best = std::min_element(losses.begin(), losses.end()) - losses.begin();
  const std::string step = std::vector<std::string>{"step-2", "step-4", "step-5"}[static_cast<std::size_t>(best)];
  EXPECT_EQ(fs::read_symlink(folder / "3/checkpoints/best"), step);
  EXPECT_EQ(train::checkpoint_damage(folder / "3/checkpoints" / step), "");
}

TEST(OptimizerDist, ManyBucketsGiveTheSameStep) {
  const auto steps_of = [](std::int64_t processes, const char* sharding) {
    const WorkersResult result =
        run_workers("optimizer", processes, {{"dist", {{"sharding", sharding}, {"bucket_mb", 1}}}});
    expect_success(result);
    if (processes > 1)
      EXPECT_GE(result.ranks.front()["stats"]["gradients"]["count"].get<std::int64_t>(), 3 * 2) << "several buckets";
    for (const Json& rank : result.ranks) EXPECT_EQ(rank["steps"], result.ranks.front()["steps"]);
    return result.ranks.front()["steps"];
  };
  const Json one = steps_of(1, "none");
  ASSERT_EQ(one.size(), 3u);
  EXPECT_EQ(one[2]["sums"][5], 32.0);  // no gradient, no decay
  for (const std::int64_t processes : {2, 3, 4}) {
    for (const char* sharding : {"none", "optimizer", "gradients"}) {
      SCOPED_TRACE(std::string(sharding) + " " + std::to_string(processes));
      const Json several = steps_of(processes, sharding);
      for (std::size_t step = 0; step < 3; ++step) {
        EXPECT_NEAR(several[step]["norm"].get<double>(), one[step]["norm"].get<double>(), 1e-6);
        for (std::size_t i = 0; i < 6; ++i) {
          const double value = one[step]["sums"][i].get<double>();
          EXPECT_NEAR(several[step]["sums"][i].get<double>(), value, 1e-5 * std::max(1.0, std::abs(value))) << i;
        }
      }
    }
  }
}

// What was counted is what the sharding needs: all gradients, in fp32, once a step.
TEST(SftDist, SendsNoMoreThanItMust) {
  const test::TemporaryFolder folder;
  const auto model = models::load(test::tiny_run().model);
  std::int64_t numbers = 0, padded = 0;
  for (const at::Tensor& parameter : model->parameters()) {
    numbers += parameter.numel();
    padded += (parameter.numel() + 1) / 2 * 2;
  }
  const auto bytes = [&](const Training& training, const char* name) {
    return training.workers.ranks.front().at("stats").at(name).at("bytes").get<std::int64_t>();
  };
  const Training plain = train("sft", 2, sft_options(folder / "none"));
  EXPECT_EQ(bytes(plain, "gradients"), 5 * all_reduce_bytes(4 * numbers, 2));
  const Training sharded = train("sft", 2, sft_options(folder / "optimizer"), {{"sharding", "optimizer"}});
  EXPECT_EQ(bytes(sharded, "gradients"), 5 * gather_bytes(4 * padded, 2));
  EXPECT_EQ(bytes(sharded, "parameters"), 5 * gather_bytes(4 * padded, 2));

  // Split weights, with one pass a process and step, and the checkpoint at the end. All tensors here are multiples of
  // 16 numbers: nothing is padded.
  Json options = sft_options(folder / "parameters");
  options["run"]["micro_batch_tokens"] = 100'000;
  const Training split = train("sft", 2, options, {{"sharding", "parameters"}});
  const SplitWeights weights = train::split_weights(train::TrainedModel(test::tiny_run().model, {}, 0));
  EXPECT_EQ(weights.total(), numbers);
  EXPECT_EQ(weights.trained_outside, weights.outside);
  const PlannedCommunication planned = plan_communication({numbers, 4, "parameters", weights}, 2, 1);
  EXPECT_EQ(bytes(split, "gradients"), 5 * planned.gradients);
  EXPECT_EQ(bytes(split, "parameters"), 5 * planned.parameters + gather_bytes(4 * numbers, 2));
  options["out"] = (folder / "hybrid").string();
  const Training hybrid = train("sft", 4, options, {{"sharding", "parameters"}, {"shard_size", 2}});
  const PlannedCommunication in_shards = plan_communication({numbers, 4, "parameters", weights, 0, 0, 2}, 4, 1);
  EXPECT_EQ(bytes(hybrid, "gradients"), 5 * in_shards.gradients);
  EXPECT_EQ(bytes(hybrid, "parameters"), 5 * in_shards.parameters + gather_bytes(4 * numbers, 2));
}

// Processes with other numbers of questions, refills and passes without gradient fetch the layers together.
TEST(GrpoDist, RolloutsLayerByLayerAreTheSame) {
  const test::TemporaryFolder folder;
  const auto options = [&](const std::string& name) {
    Json json = grpo_options(folder / name);
    json["beta"] = 0.04;
    json["updates_per_rollout"] = 2;
    json["dynamic_sampling"] = true;
    json["max_refill"] = 2;
    json["watch_every"] = 2;
    json["eval"] = {{"every", 2},
                    {"data", {{"path", test::tiny_run().train.string()}}},
                    {"loss_questions", 6},
                    {"score_questions", 0}};
    return json;
  };
  const Training one = train("grpo", 1, options("1"));
  for (const std::int64_t size : {2, 4}) {
    SCOPED_TRACE(size);
    Json split = options(std::to_string(size));
    if (size == 4) split["freeze_vision"] = split["freeze_projector"] = false;
    const Training plain = size == 4 ? train("grpo", 1,
                                             [&] {
                                               Json json = split;
                                               json["out"] = (folder / "4-alone").string();
                                               return json;
                                             }())
                                     : one;
    const Training several =
        train("grpo", size, split,
              {{"sharding", "parameters"}, {"rollout_weights", "by_layer"}, {"shard_size", size == 4 ? 2 : 0}});
    expect_same_curves(several, plain);
    EXPECT_EQ(several.samples.size(), plain.samples.size());
  }
}

TEST(GrpoDist, AnotherDeviceLearnsTheSame) {
  const test::TemporaryFolder folder;
  const Training one = train("grpo", 1, grpo_options(folder / "1"));
  for (const char* sharding : {"none", "parameters"}) {
    SCOPED_TRACE(sharding);
    Json options = grpo_options(folder / sharding);
    options["device"] = "checking";
    expect_same_curves(train("grpo", 2, options, {{"sharding", sharding}}), one, 1e-3);
  }
}

TEST(GrpoDist, CompletionsRewardsAndLossesDoNotDependOnTheNumberOfProcesses) {
  const test::TemporaryFolder folder;
  const Training one = train("grpo", 1, grpo_options(folder / "1"));
  ASSERT_EQ(one.metrics.size(), 4u);
  ASSERT_EQ(one.samples.size(), 4u * 12u);
  EXPECT_GT(one.metrics.front()["grad_norm"].get<double>(), 0);
  for (const std::int64_t size : {2, 4}) {
    SCOPED_TRACE(size);
    const Training several = train("grpo", size, grpo_options(folder / std::to_string(size)));
    expect_same_curves(several, one);
    ASSERT_EQ(several.samples.size(), one.samples.size());
    for (std::size_t i = 0; i < one.samples.size(); ++i) {
      EXPECT_EQ(several.samples[i]["id"], one.samples[i]["id"]);
      EXPECT_EQ(several.samples[i]["response"], one.samples[i]["response"]);
      EXPECT_NEAR(several.samples[i]["advantage"].get<double>(), one.samples[i]["advantage"].get<double>(), 1e-6);
    }
  }
}

TEST(GrpoDist, VariantsDoNotDependOnIt) {
  const test::TemporaryFolder folder;
  const std::pair<const char*, Json> variants[] = {
      {"gdpo", {{"multi_objective_aggregation", "normalize_then_sum"}, {"updates_per_rollout", 2}}},
      {"entropy", {{"top_entropy_quantile", 0.3}, {"entropy_coef", 0.1}, {"loss_type", "grpo"}}},
      {"penalty", {{"kl_in_reward", true}, {"kl_estimator", "k1"}, {"beta", 0.5}, {"scale_rewards", "group"}}},
      {"refill",
       {{"dynamic_sampling", true},
        {"rewards", {"repetition=1", "format=1"}},
        {"dynamic_sampling_reward", "format"},
        {"max_refill", 1}}},
      {"gradients", Json::object()},
      {"parameters", {{"updates_per_rollout", 2}, {"freeze_projector", false}, {"watch_every", 2}}},
      {"adapters", {{"beta", 0.5}, {"lora", {{"rank", 2}}}, {"gradient_checkpointing", true}}},
      {"overlap", {{"overlap_rollout", true}}},
  };
  const std::map<std::string, std::string> sharding = {
      {"gradients", "gradients"}, {"parameters", "parameters"}, {"adapters", "parameters"}};
  for (const auto& [name, change] : variants) {
    SCOPED_TRACE(name);
    Json options = grpo_options(folder / (std::string(name) + "1"));
    options["run"]["steps"] = 3;
    options.update(change);
    const Training one = train("grpo", 1, options);
    options["out"] = (folder / (std::string(name) + "2")).string();
    const Json dist = {{"sharding", sharding.contains(name) ? sharding.at(name) : "none"}};
    expect_same_curves(train("grpo", std::string(name) == "parameters" ? 3 : 2, options, dist), one);
  }
}

TEST(EvalDist, AnswersAndScoresDoNotDependOnTheNumberOfProcesses) {
  const test::TinyRun& tiny = test::tiny_run();
  const test::TemporaryFolder folder;
  const auto evaluate = [&](std::int64_t processes, const fs::path& out) {
    const Json options = {{"model", tiny.model.string()},
                          {"data", {{"path", tiny.test.string()}}},
                          {"images", tiny.images.string()},
                          {"out", out.string()},
                          {"limit", 22},
                          {"batch_questions", 7},
                          {"num_threads", 1},
                          {"sampling", {{"max_new_tokens", 12}}}};
    expect_success(run_workers("eval", processes, {{"options", options}}));
    Json metrics = read_json_file(out / "metrics.json");
    metrics.erase("generation_seconds");
    return std::pair(metrics, json_lines(out / "predictions.jsonl"));
  };
  const auto one = evaluate(1, folder / "1");
  ASSERT_EQ(one.second.size(), 22u);
  for (const std::int64_t size : {2, 4}) {
    const auto several = evaluate(size, folder / std::to_string(size));
    EXPECT_EQ(several.first, one.first);
    ASSERT_EQ(several.second.size(), one.second.size());
    for (std::size_t i = 0; i < one.second.size(); ++i) {
      Json got = several.second[i], expected = one.second[i];
      // A probability, which what else is in the batch may round otherwise.
      EXPECT_NEAR(got.value("confidence", 0.0), expected.value("confidence", 0.0), 1e-5);
      got.erase("confidence");
      expected.erase("confidence");
      EXPECT_EQ(got, expected) << size << " processes";
    }
  }
}

}  // namespace
}  // namespace thinkvg::dist
