// What a second device computes equals what the CPU does, in every family, trainer and engine; the checking device also
// shows where tensors of both are mixed.
#include "thinkvg/nn/device.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>

#include "tests/device/checking_device.h"
#include "tests/support/oracle.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/tiny_sft.h"
#include "thinkvg/eval/evaluator.h"
#include "thinkvg/generation/question.h"
#include "thinkvg/generation/rollout_engine.h"
#include "thinkvg/models/bundle.h"
#include "thinkvg/models/pack.h"
#include "thinkvg/models/safetensors.h"
#include "thinkvg/nn/cuda.h"
#include "thinkvg/nn/head_stats.h"
#include "thinkvg/rl/grpo.h"

namespace thinkvg {
namespace {

using testing::HasSubstr;

const at::Device kOther = test::checking_device();

TEST(DeviceSetting, NamesAreUnderstood) {
  EXPECT_EQ(nn::device_setting("cpu"), at::Device(at::kCPU));
  EXPECT_EQ(nn::device_setting(test::kCheckingDevice), kOther);
  for (const char* name : {"gpu", "", "cuda:", "cuda:x", "cuda:-1", "CPU", "meta:x"})
    EXPECT_THROW(nn::device_setting(name), std::invalid_argument) << name;
  try {
    nn::device_setting("gpu");
    FAIL();
  } catch (const std::invalid_argument& error) {
    EXPECT_THAT(error.what(), HasSubstr("device must be cpu, cuda, cuda:N or auto, but is 'gpu'"));
  }
}

TEST(DeviceSetting, WithoutAGpuAutoIsTheCpuAndCudaSaysWhyNot) {
  if (nn::num_gpus() > 0) GTEST_SKIP() << "there is a GPU";
  EXPECT_EQ(nn::device_setting("auto", 3), at::Device(at::kCPU));
  for (const char* name : {"cuda", "cuda:1"}) EXPECT_THROW(nn::device_setting(name), std::runtime_error);
  EXPECT_THROW(nn::device_memory(at::kCPU), std::invalid_argument);
}

// The device does what it is for.
TEST(CheckingDevice, RefusesWhatAGpuWould) {
  const at::Tensor here = at::arange(6, at::kFloat), there = here.to(kOther);
  EXPECT_TRUE((there + there * 2).cpu().equal(here * 3));
  EXPECT_TRUE((there + at::scalar_tensor(1.0)).cpu().equal(here + 1));
  EXPECT_ANY_THROW(there + here);
  EXPECT_ANY_THROW(at::cat({there, here}));
  EXPECT_DEATH(static_cast<void>(*static_cast<volatile const float*>(there.const_data_ptr<float>())), "");
}

double difference(const at::Tensor& got, const at::Tensor& expected) {
  return (got.detach().cpu().to(at::kDouble) - expected.detach().to(at::kDouble)).abs().max().item<double>();
}

class DeviceFamilies : public testing::TestWithParam<std::string> {
 protected:
  void compare(at::Device other, double tolerance) const;
};

// Logits and every gradient of a conversation with a picture, a second sequence that continues the first, one that
// stands alone, and a page of text through the head in chunks.
void DeviceFamilies::compare(at::Device other, double tolerance) const {
  const std::filesystem::path folder = test::parity_data() / GetParam();
  struct Outcome {
    at::Tensor hidden, logprob;
    std::map<std::string, at::Tensor> gradients;
  };
  const auto run = [&](at::Device device, bool checkpointing) {
    const auto model = models::load(folder, at::kFloat, device);
    for (const auto& item : model->named_parameters()) {
      EXPECT_EQ(item.value().device(), device) << item.key();
      item.value().set_requires_grad(true);
    }
    model->set_checkpointing(checkpointing);
    const auto state = models::read_safetensors(folder / "case_one.safetensors");
    const at::Tensor given = state.at("ids").contiguous(), grid = state.at("grids");
    const std::vector<std::int64_t> ids(given.const_data_ptr<std::int64_t>(),
                                        given.const_data_ptr<std::int64_t>() + given.numel());
    const std::vector<models::ImageGrid> grids = {
        {grid[0][0].item<std::int64_t>(), grid[0][1].item<std::int64_t>(), grid[0][2].item<std::int64_t>()}};
    const at::Tensor features = model->encode_images({state.at("pixel_values").to(device), grids});
    models::PackBuilder packer;
    models::PackBuilder::Sequence first;
    first.ids = ids;
    const models::TokenPositions positions = model->token_positions(ids, grids);
    first.positions = positions.positions;
    for (std::size_t i = 0; i < ids.size(); ++i)
      if (ids[i] == model->special_tokens().image) first.image_rows.push_back(static_cast<std::int64_t>(i));
    first.image_features = {features};
    packer.add(first);
    const std::vector<std::int64_t> more = {5, 6, 7, 8, 9};
    packer.add({more, models::text_positions(positions.next, std::ssize(more)), {}, {}, 0});
    packer.add({more, models::text_positions(0, std::ssize(more)), {}, {}, -1});
    const models::Pack pack = packer.build(device);
    nn::PackedAttention attention(pack.layout);
    Outcome outcome;
    outcome.hidden = models::run_pack(*model, pack, attention);
    const at::Tensor targets = at::arange(outcome.hidden.size(0), at::kLong).remainder(50).to(device);
    const nn::TokenStats stats = nn::head_token_stats(
        outcome.hidden, model->output_weight(), targets,
        {.temperature = 0.8, .banned = at::tensor({51, 52}, at::kLong).to(device), .chunk_rows = 7});
    outcome.logprob = stats.logprob;
    (stats.logprob.mean() - 0.1 * stats.entropy.mean()).backward();
    for (const auto& item : model->named_parameters())
      outcome.gradients[item.key()] =
          item.value().grad().defined() ? item.value().grad() : at::zeros_like(item.value());
    return outcome;
  };
  const Outcome expected = run(at::kCPU, false);
  for (const bool checkpointing : {false, true}) {
    const Outcome got = run(other, checkpointing);
    EXPECT_LT(difference(got.hidden, expected.hidden), tolerance);
    EXPECT_LT(difference(got.logprob, expected.logprob), tolerance);
    for (const auto& [name, gradient] : expected.gradients)
      EXPECT_LT(difference(got.gradients.at(name), gradient), tolerance * (1 + gradient.abs().max().item<double>()))
          << name;
  }
}

TEST_P(DeviceFamilies, PassesEqualTheCpus) {
  const long before = test::num_device_operators();
  compare(kOther, 1e-4);
  EXPECT_GT(test::num_device_operators(), before + 100);
}

class DeviceFamiliesGpu : public DeviceFamilies {};

TEST_P(DeviceFamiliesGpu, PassesEqualTheCpus) {
  if (const std::string reason = nn::cuda_unavailable_reason(); !reason.empty()) GTEST_SKIP() << reason;
  compare(at::Device(at::kCUDA, 0), 1e-3);
}

std::string family_name(const testing::TestParamInfo<std::string>& info) {
  std::string name = info.param;
  std::replace(name.begin(), name.end(), '/', '_');
  return name;
}

const auto kFamilies =
    testing::Values("qwen2_5_vl/tied", "qwen2_vl/tied", "qwen3_vl/tied", "llava/mistral", "gemma3/tied");
INSTANTIATE_TEST_SUITE_P(All, DeviceFamilies, kFamilies, family_name);
INSTANTIATE_TEST_SUITE_P(All, DeviceFamiliesGpu, kFamilies, family_name);

std::vector<double> series(const std::filesystem::path& run, const char* name) {
  std::vector<double> values;
  for (const Json& line : test::metrics_of(run)) values.push_back(line.at(name).get<double>());
  return values;
}

void expect_equal_runs(const std::filesystem::path& got, const std::filesystem::path& expected, double tolerance) {
  for (const char* name : {"loss", "grad_norm"})
    EXPECT_THAT(series(got, name), testing::Pointwise(testing::DoubleNear(tolerance), series(expected, name))) << name;
}

TEST(DeviceTraining, SftLearnsTheSame) {
  const test::TemporaryFolder folder;
  train::SftOptions options = test::tiny_sft((folder / "cpu").string());
  options.tuning.device = "cpu";
  options.tuning.freeze_vision = options.tuning.freeze_projector = false;
  options.eval.every = 3;
  options.eval.data.path = test::tiny_run().test.string();
  options.eval.loss_questions = 4;
  options.eval.score_questions = 0;
  run_sft(options);
  options.tuning.device = test::kCheckingDevice;
  options.out = (folder / "other").string();
  run_sft(options);
  expect_equal_runs(folder / "other", folder / "cpu", 2e-4);
  // What was saved opens anywhere; what was cut goes on.
  const auto got = models::load(folder / "other/checkpoints/step-6"),
             expected = models::load(folder / "cpu/checkpoints/step-6");
  const auto others = expected->named_parameters();
  for (const auto& item : got->named_parameters()) EXPECT_LT(difference(item.value(), others[item.key()]), 2e-3);
  std::filesystem::remove_all(folder / "other/checkpoints/step-6");
  options.resume = true;
  run_sft(options);
  expect_equal_runs(folder / "other", folder / "cpu", 2e-4);
}

TEST(DeviceTraining, AdaptersWithDropoutCheckpointingAndNoiseLearnTheSame) {
  const test::TemporaryFolder folder;
  train::SftOptions options = test::tiny_sft((folder / "cpu").string());
  options.tuning.device = "cpu";
  options.tuning.lora.rank = 4;
  options.tuning.lora.dropout = 0.2;
  options.tuning.gradient_checkpointing = true;
  options.neftune_noise_alpha = 5;
  options.run.num_threads = 1;  // the same passes
  run_sft(options);
  options.tuning.device = test::kCheckingDevice;
  options.out = (folder / "other").string();
  run_sft(options);
  expect_equal_runs(folder / "other", folder / "cpu", 2e-4);
}

TEST(DeviceTraining, Bfloat16WithMastersLearnsTheSame) {
  const test::TemporaryFolder folder;
  train::SftOptions options = test::tiny_sft((folder / "cpu").string());
  options.tuning.device = "cpu";
  options.tuning.dtype = "bfloat16";
  run_sft(options);
  options.tuning.device = test::kCheckingDevice;
  options.out = (folder / "other").string();
  options.run.async_save = true;
  run_sft(options);
  expect_equal_runs(folder / "other", folder / "cpu", 5e-2);
}

rl::GrpoOptions tiny_grpo(const std::string& out) {
  const test::TinyRun& tiny = test::tiny_run();
  rl::GrpoOptions options;
  options.model = tiny.model.string();
  options.data.path = tiny.train.string();
  options.images = tiny.images.string();
  options.out = out;
  options.prompts_per_step = 2;
  options.group_size = 4;
  options.sampling.max_new_tokens = 20;
  options.optimizer.lr = 1e-3;
  options.rewards = {"repetition=1"};
  options.reward.repetition_unit = "tokens";
  options.reward.repetition_ngram = 1;
  options.run.steps = 3;
  options.run.save_every = 2;
  return options;
}

TEST(DeviceTraining, GrpoLearnsTheSame) {
  const test::TemporaryFolder folder;
  rl::GrpoOptions options = tiny_grpo((folder / "cpu").string());
  options.tuning.device = "cpu";
  options.tuning.freeze_vision = options.tuning.freeze_projector = false;
  options.beta = 0.04;
  options.updates_per_rollout = 2;
  options.entropy_coef = 0.01;
  options.sync_ref_model = true;
  options.ref_model_sync_steps = 2;
  options.watch_every = 2;
  run_grpo(options);
  options.tuning.device = test::kCheckingDevice;
  options.out = (folder / "other").string();
  run_grpo(options);
  expect_equal_runs(folder / "other", folder / "cpu", 1e-3);
  // The engine's probabilities are those of the trainer.
  EXPECT_THAT(series(folder / "other", "rollout_gap/max"), testing::Each(testing::Lt(1e-3)));
  options.resume = true;
  std::filesystem::remove_all(folder / "other/checkpoints/step-3");
  run_grpo(options);
  expect_equal_runs(folder / "other", folder / "cpu", 1e-3);
}

TEST(DeviceTraining, GrpoWithAdaptersLearnsTheSame) {
  const test::TemporaryFolder folder;
  rl::GrpoOptions options = tiny_grpo((folder / "cpu").string());
  options.tuning.device = "cpu";
  options.tuning.lora.rank = 4;
  options.beta = 0.04;
  options.overlap_rollout = true;
  run_grpo(options);
  options.tuning.device = test::kCheckingDevice;
  options.out = (folder / "other").string();
  run_grpo(options);
  expect_equal_runs(folder / "other", folder / "cpu", 1e-3);
}

TEST(DeviceTraining, WhatOnlyTheCpuOffersIsRefused) {
  const test::TemporaryFolder folder;
  rl::GrpoOptions options = tiny_grpo((folder / "run").string());
  options.tuning.device = test::kCheckingDevice;
  options.engine.exact = true;
  EXPECT_THROW(run_grpo(options), std::invalid_argument);
  const auto model = models::load(test::tiny_run().model, {}, kOther);
  EXPECT_THROW(generation::RolloutEngine(*model, {.exact = true}), std::invalid_argument);
  EXPECT_THROW(generation::RolloutEngine(*model, {.quantization = "int8"}), std::invalid_argument);
}

// Greedy completions of prompts of several lengths that share pictures and pages, in a cache too small for all.
TEST(DeviceGeneration, CompletionsEqualTheCpus) {
  const auto complete = [](at::Device device, at::ScalarType dtype) {
    const models::ModelBundle bundle = models::load_bundle(test::tiny_run().model, dtype, device);
    const auto data = data::open_data({.path = test::tiny_run().test.string()});
    generation::QuestionBuilder builder(bundle, {.images = test::tiny_run().images});
    std::vector<data::Sample> samples;
    for (std::int64_t i = 0; i < 6; ++i) samples.push_back(data->get(i));
    std::vector<generation::GenerationRequest> requests;
    for (const generation::Question& question : builder.build(samples)) {
      requests.push_back({question.prompt, question.grids, {question.features}});
      requests.back().num_completions = 3;
      requests.back().stream = {static_cast<std::uint64_t>(requests.size())};
    }
    generation::RolloutEngine engine(*bundle.model, {.max_rows = 7});
    std::vector<std::vector<std::int64_t>> ids;
    for (const auto& group : engine.generate(requests, {.max_new_tokens = 40, .temperature = 0}))
      for (const generation::Completion& completion : group) ids.push_back(completion.ids);
    EXPECT_GT(engine.stats().new_tokens, 100);
    return ids;
  };
  EXPECT_EQ(complete(kOther, at::kFloat), complete(at::kCPU, at::kFloat));
}

TEST(DeviceGeneration, EvaluationsEqualTheCpus) {
  const test::TemporaryFolder folder;
  eval::EvalOptions options;
  options.model = test::tiny_run().model.string();
  options.data.path = test::tiny_run().test.string();
  options.images = test::tiny_run().images.string();
  options.limit = 12;
  options.sampling.max_new_tokens = 24;
  options.baselines = false;
  const auto answers = [&](const char* device) {
    options.device = device;
    options.out = (folder / device).string();
    eval::evaluate(options);
    std::vector<Json> lines;
    std::ifstream file(folder / device / "predictions.jsonl");
    for (std::string line; std::getline(file, line);) lines.push_back(Json::parse(line).at("response"));
    return lines;
  };
  const auto expected = answers("cpu");
  EXPECT_EQ(expected.size(), 12u);
  EXPECT_EQ(answers(test::kCheckingDevice), expected);
}

}  // namespace
}  // namespace thinkvg
