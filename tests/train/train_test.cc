#include <gmock/gmock.h>

#include <cmath>
#include <fstream>

#include "tests/support/tiny_sft.h"
#include "thinkvg/core/error.h"
#include "thinkvg/core/files.h"
#include "thinkvg/grounding/response.h"
#include "thinkvg/models/adapters.h"
#include "thinkvg/train/example.h"
#include "thinkvg/train/optimizer.h"
#include "thinkvg/train/run_folder.h"
#include "thinkvg/train/sft.h"

namespace thinkvg::train {
namespace {

TEST(LearningRateTest, WarmsUpThenFollowsTheSchedule) {
  OptimizerOptions options;
  options.lr = 1.0;
  options.warmup_ratio = 0.1;
  EXPECT_DOUBLE_EQ(learning_rate(options, 0, 100), 0.1);
  EXPECT_DOUBLE_EQ(learning_rate(options, 9, 100), 1.0);
  EXPECT_DOUBLE_EQ(learning_rate(options, 10, 100), 1.0);
  EXPECT_NEAR(learning_rate(options, 55, 100), 0.5, 1e-12);
  EXPECT_LT(learning_rate(options, 99, 100), 0.001);
  options.schedule = "linear";
  EXPECT_NEAR(learning_rate(options, 55, 100), 0.5, 1e-12);
  options.schedule = "constant";
  EXPECT_DOUBLE_EQ(learning_rate(options, 99, 100), 1.0);
  options.schedule = "sine";
  EXPECT_THROW(options.check(), std::invalid_argument);
}

// Expected values: torch.optim.AdamW(lr=0.1, weight_decay=0.1) on p = [[1, -2]], gradients [[0.5, -1]] then [[-0.3,
// 2]].
TEST(AdamWTest, UpdatesAsTorchDoes) {
  at::Tensor parameter = at::tensor({1.0f, -2.0f}).view({1, 2}).set_requires_grad(true);
  OptimizerOptions options;
  options.weight_decay = 0.1;
  options.grad_clip = 0;
  AdamW optimizer({{{{"p", parameter}}, 1.0, options.weight_decay}}, options);
  EXPECT_NEAR(optimizer.step({at::tensor({0.5f, -1.0f}).view({1, 2})}, 0.1), std::sqrt(1.25), 1e-6);
  EXPECT_NEAR(parameter[0][0].item<float>(), 0.8900000, 1e-6);
  EXPECT_NEAR(parameter[0][1].item<float>(), -1.8800000, 1e-6);
  optimizer.step({at::tensor({-0.3f, 2.0f}).view({1, 2})}, 0.1);
  EXPECT_NEAR(parameter[0][0].item<float>(), 0.8619503, 1e-6);
  EXPECT_NEAR(parameter[0][1].item<float>(), -1.8978103, 1e-6);
}

TEST(AdamWTest, ClipsToTheGlobalNormAndSkipsWhatIsNotFinite) {
  at::Tensor parameter = at::zeros({2}).set_requires_grad(true);
  OptimizerOptions options;
  options.grad_clip = 1.0;
  AdamW optimizer({{{{"p", parameter}}, 1.0, 0.0}}, options);
  EXPECT_NEAR(optimizer.step({at::tensor({30.0f, 40.0f})}, 0.1), 50, 1e-4);
  const auto state = optimizer.state();
  EXPECT_NEAR(state[0].second[0].item<float>(), 0.1 * 0.6, 1e-5);  // first moment of the clipped gradient
  const at::Tensor before = parameter.detach().clone();
  EXPECT_FALSE(std::isfinite(optimizer.step({at::tensor({NAN, 1.0f})}, 0.1)));
  EXPECT_TRUE(at::equal(parameter, before));
}

TEST(BatchIndicesTest, EachPassTakesEveryIndexOnceInAnOrderOfItsOwn) {
  std::vector<std::int64_t> first, second;
  for (std::int64_t step = 0; step < 5; ++step)
    for (const std::int64_t index : batch_indices(20, 4, step, 3)) first.push_back(index);
  for (std::int64_t step = 5; step < 10; ++step)
    for (const std::int64_t index : batch_indices(20, 4, step, 3)) second.push_back(index);
  EXPECT_NE(first, second);
  std::sort(first.begin(), first.end());
  std::sort(second.begin(), second.end());
  for (std::int64_t i = 0; i < 20; ++i) EXPECT_EQ(first[static_cast<std::size_t>(i)], i);
  EXPECT_EQ(first, second);
  EXPECT_NE(batch_indices(20, 4, 0, 3), batch_indices(20, 4, 0, 4));
  EXPECT_EQ(batch_indices(3, 7, 0, 1).size(), 7u);
}

TEST(SplitBySizeTest, FillsUpToTheLimit) {
  using Runs = std::vector<std::pair<std::size_t, std::size_t>>;
  EXPECT_EQ(split_by_size({3, 3, 3, 9, 1}, 6), (Runs{{0, 2}, {2, 3}, {3, 4}, {4, 5}}));
  EXPECT_EQ(split_by_size({}, 6), Runs{});
}

TEST(SplitEvenlyTest, TheLargestRunIsAsSmallAsTheirNumberAllows) {
  using Runs = std::vector<std::pair<std::size_t, std::size_t>>;
  EXPECT_EQ(split_evenly({3, 3, 3, 3, 3, 3, 3, 3, 3, 3}, {12, 1}), (Runs{{0, 4}, {4, 8}, {8, 10}}));
  EXPECT_EQ(split_evenly({3, 3, 3, 3, 3, 3, 3, 3, 3, 3}, {12, 2}), (Runs{{0, 3}, {3, 6}, {6, 9}, {9, 10}}));
  EXPECT_EQ(split_evenly({3, 3, 3, 3}, {100, 2}), (Runs{{0, 2}, {2, 4}}));
  EXPECT_EQ(split_evenly({9, 1, 1}, {4, 1}), (Runs{{0, 1}, {1, 3}}));
  EXPECT_EQ(split_evenly({9, 3, 3, 3}, {4, 1}), (Runs{{0, 1}, {1, 2}, {2, 3}, {3, 4}}))
      << "none hides behind a longer one";
  EXPECT_EQ(split_evenly({5}, {4, 8}), (Runs{{0, 1}}));
  EXPECT_EQ(split_evenly({}, {4, 8}), Runs{});
}

TEST(TargetTextTest, WritesBoxesInTheModelsFrameAndReadsThemBack) {
  const auto dataset = data::open_dataset(test::tiny_run().train);
  const grounding::ImageGeometry geometry({160, 192});
  const auto frame = grounding::BoxFrame::letterbox(112);
  for (std::int64_t i = 0; i < dataset->size(); ++i) {
    const data::Sample sample = dataset->get(i);
    const std::string text = target_text(sample, geometry, frame, true);
    const auto parsed = grounding::parse_response(text, frame);
    EXPECT_TRUE(parsed.complete) << text << parsed.problem;
    ASSERT_EQ(parsed.regions.size(), sample.regions.size());
    for (std::size_t k = 0; k < sample.regions.size(); ++k)
      EXPECT_NEAR(grounding::iou(geometry.convert(parsed.regions[k].box, sample.frame), sample.regions[k].box), 1,
                  1e-9);
    EXPECT_TRUE(target_text(sample, geometry, frame, false).starts_with("<response>"));
  }
}

using models::ModelPart;
using test::metrics_of;
using test::tiny_sft;
using test::weights_of;

TEST(SftTest, LossFallsAndFrozenTowerStays) {
  const test::TemporaryFolder folder;
  SftOptions options = tiny_sft((folder / "run").string());
  options.run.steps = 40;
  options.run.save_every = 0;
  run_sft(options);
  const auto metrics = metrics_of(folder / "run");
  ASSERT_EQ(metrics.size(), 40u);
  EXPECT_LT(metrics.back()["loss"].get<double>(), 0.7 * metrics.front()["loss"].get<double>());
  const auto before = models::load(test::tiny_run().model);
  const auto after = models::load(folder / "run/checkpoints/step-40");
  const auto old_parameters = before->named_parameters();
  for (const auto& item : after->named_parameters()) {
    const bool vision = after->part_of(item.key()) != ModelPart::language;
    EXPECT_EQ(at::equal(item.value(), old_parameters[item.key()]), vision) << item.key();
  }
}

TEST(SftTest, ResumesToTheSameBits) {
  const test::TemporaryFolder folder;
  run_sft(tiny_sft((folder / "whole").string()));
  // The schedule spans six steps in both runs; the second one stops behind the checkpoint of step three.
  std::filesystem::copy(folder / "whole", folder / "cut", std::filesystem::copy_options::recursive);
  std::filesystem::remove_all(folder / "cut/checkpoints/step-6");
  SftOptions options = tiny_sft((folder / "cut").string());
  options.resume = true;
  run_sft(options);
  EXPECT_EQ(weights_of(folder / "cut", "step-6"), weights_of(folder / "whole", "step-6"));
  const auto whole = metrics_of(folder / "whole"), cut = metrics_of(folder / "cut");
  ASSERT_EQ(cut.size(), whole.size());
  for (std::size_t i = 0; i < cut.size(); ++i) EXPECT_EQ(cut[i]["loss"], whole[i]["loss"]);
}

// Each sequence alone is the plain loss; packed ones, in any way, must give the same.
TEST(SftTest, GradientDoesNotDependOnPasses) {
  const test::TemporaryFolder folder;
  SftOptions options = tiny_sft((folder / "alone").string());
  options.tuning.freeze_vision = options.tuning.freeze_projector = false;
  options.batch_size = 8;
  options.run.steps = 1;
  options.run.micro_batch_tokens = 1;
  run_sft(options);
  const Json alone = metrics_of(folder / "alone").front();
  EXPECT_EQ(alone["num_passes"], 8);
  for (const char* packing : {"by_length", "in_order"}) {
    for (const std::int64_t tokens : {1000, 100000}) {
      options.packing = packing;
      options.run.micro_batch_tokens = tokens;
      options.out = (folder / fmt::format("{}-{}", packing, tokens)).string();
      run_sft(options);
      const Json packed = metrics_of(options.out).front();
      EXPECT_LT(packed["num_passes"].get<int>(), 8);
      EXPECT_GT(packed["packing_fill"].get<double>(), 0);
      EXPECT_LE(packed["packing_fill"].get<double>(), 1);
      EXPECT_EQ(packed["num_tokens"], alone["num_tokens"]) << "the same questions, in other passes";
      EXPECT_NEAR(packed["loss"].get<double>(), alone["loss"].get<double>(), 1e-5) << packing;
      EXPECT_NEAR(packed["grad_norm"].get<double>(), alone["grad_norm"].get<double>(),
                  1e-4 * alone["grad_norm"].get<double>())
          << packing;
    }
  }
}

TEST(SftTest, AnExistingRunIsNotOverwritten) {
  const test::TemporaryFolder folder;
  SftOptions options = tiny_sft((folder / "run").string());
  options.run.steps = 1;
  run_sft(options);
  EXPECT_THROW(run_sft(options), std::invalid_argument);
}

TEST(SftTest, CheckpointsBeyondTheLastAreRemoved) {
  const test::TemporaryFolder folder;
  SftOptions options = tiny_sft((folder / "run").string());
  options.run.save_every = 1;
  options.run.keep_last = 2;
  run_sft(options);
  const auto kept = models::checkpoints_of(folder / "run");
  ASSERT_EQ(kept.size(), 2u);
  EXPECT_EQ(kept[0].filename(), "step-5");
  EXPECT_EQ(kept[1].filename(), "step-6");
}

TEST(SftTest, AdaptersLearnAndTheModelBelowThemStays) {
  const test::TemporaryFolder folder;
  SftOptions options = tiny_sft((folder / "run").string());
  options.tuning.lora.rank = 4;
  options.tuning.lora.dropout = 0.1;
  options.optimizer.lr = 2e-2;
  options.run.steps = 30;
  options.run.save_every = 15;
  run_sft(options);
  const auto metrics = metrics_of(folder / "run");
  EXPECT_LT(metrics.back()["loss"].get<double>(), 0.95 * metrics.front()["loss"].get<double>());
  const auto last = folder / "run/checkpoints/step-30";
  EXPECT_TRUE(models::is_adapter_folder(last));
  EXPECT_FALSE(std::filesystem::exists(last / "model.safetensors"));
  // The folder opens as the model with the adapter merged into it: some of its weights differ from the start's.
  const auto before = models::load(test::tiny_run().model), after = models::load_bundle(last).model;
  const auto old_parameters = before->named_parameters();
  std::int64_t num_changed = 0;
  for (const auto& item : after->named_parameters())
    num_changed += at::equal(item.value(), old_parameters[item.key()]) ? 0 : 1;
  EXPECT_EQ(num_changed, 2 * 7);  // the linear layers of two decoder layers

  std::filesystem::copy(folder / "run", folder / "cut", std::filesystem::copy_options::recursive);
  std::filesystem::remove_all(folder / "cut/checkpoints/step-30");
  options.out = (folder / "cut").string();
  options.resume = true;
  run_sft(options);
  EXPECT_EQ(sha256_file(folder / "cut/checkpoints/step-30/adapter_model.safetensors"),
            sha256_file(last / "adapter_model.safetensors"));
  const auto resumed = metrics_of(folder / "cut");
  for (std::size_t i = 0; i < metrics.size(); ++i) EXPECT_EQ(resumed[i]["loss"], metrics[i]["loss"]) << i;
}

TEST(SftTest, CheckpointingGivesTheSameGradients) {
  const test::TemporaryFolder folder;
  SftOptions options = tiny_sft((folder / "plain").string());
  options.tuning.freeze_vision = options.tuning.freeze_projector = false;
  options.run.steps = 2;
  run_sft(options);
  options.out = (folder / "repeated").string();
  options.tuning.gradient_checkpointing = true;
  run_sft(options);
  EXPECT_EQ(weights_of(folder / "plain", "step-2"), weights_of(folder / "repeated", "step-2"));
}

TEST(SftTest, Bf16FollowsFp32AndResumesToTheSameBits) {
  const test::TemporaryFolder folder;
  SftOptions options = tiny_sft((folder / "full").string());
  options.run.steps = 20;
  options.run.save_every = 10;
  run_sft(options);
  options.out = (folder / "half").string();
  options.tuning.dtype = "bfloat16";
  run_sft(options);
  const auto full = metrics_of(folder / "full"), half = metrics_of(folder / "half");
  for (std::size_t i = 0; i < full.size(); ++i)
    EXPECT_NEAR(half[i]["loss"].get<double>(), full[i]["loss"].get<double>(), 0.03 * full[i]["loss"].get<double>());
  const auto weights = models::read_safetensors(folder / "half/checkpoints/step-20/model.safetensors");
  EXPECT_EQ(weights.begin()->second.scalar_type(), at::kBFloat16);
  const auto state = models::read_safetensors(folder / "half/checkpoints/step-20/trainer/optimizer.safetensors");
  EXPECT_EQ(state.at("model.norm.weight.master").scalar_type(), at::kFloat);

  std::filesystem::copy(folder / "half", folder / "cut", std::filesystem::copy_options::recursive);
  std::filesystem::remove_all(folder / "cut/checkpoints/step-20");
  options.out = (folder / "cut").string();
  options.resume = true;
  run_sft(options);
  EXPECT_EQ(weights_of(folder / "cut", "step-20"), weights_of(folder / "half", "step-20"));
}

TEST(SftTest, PartsHaveLearningRatesOfTheirOwn) {
  const test::TemporaryFolder folder;
  SftOptions options = tiny_sft((folder / "run").string());
  options.tuning.freeze_vision = options.tuning.freeze_projector = false;
  options.optimizer.warmup_ratio = 0;
  options.optimizer.vision_lr = 1e-12;
  options.run.steps = 1;
  run_sft(options);
  const auto before = models::load(test::tiny_run().model), after = models::load(folder / "run/checkpoints/step-1");
  const auto old_parameters = before->named_parameters();
  double vision = 0, projector = 0;
  for (const auto& item : after->named_parameters()) {
    const double change = (item.value() - old_parameters[item.key()]).abs().max().item<double>();
    const ModelPart part = after->part_of(item.key());
    if (part == ModelPart::vision) vision = std::max(vision, change);
    if (part == ModelPart::projector) projector = std::max(projector, change);
  }
  EXPECT_LT(vision, 1e-7);
  EXPECT_GT(projector, 1e-3);
}

TEST(TrainedModelTest, PartsHaveWeightDecaysOfTheirOwn) {
  OptimizerOptions options;
  options.weight_decay = 0.1;
  options.vision_weight_decay = 0;
  options.projector_weight_decay = 0.5;
  const TrainedModel model(test::tiny_run().model, {}, 0);
  const auto groups = model.groups(options);
  ASSERT_EQ(groups.size(), 3u);
  for (const ParameterGroup& group : groups) {
    const ModelPart part = model.part_of_parameter(group.parameters.front().first);
    EXPECT_EQ(group.weight_decay, part == ModelPart::vision ? 0 : part == ModelPart::projector ? 0.5 : 0.1);
  }
  // Gradients of zero leave the decay alone: matrices shrink by lr * decay, norms and biases stay.
  std::map<std::string, at::Tensor> before;
  for (const auto& [name, parameter] : model.parameters()) before[name] = parameter.detach().clone();
  AdamW optimizer(groups, options);
  std::vector<at::Tensor> zeros;
  for (const auto& [name, parameter] : optimizer.parameters()) zeros.push_back(at::zeros_like(parameter));
  optimizer.step(zeros, 0.1);
  for (const auto& [name, parameter] : model.parameters()) {
    const ModelPart part = model.part_of_parameter(name);
    const double decay = parameter.dim() < 2            ? 0
                         : part == ModelPart::vision    ? 0
                         : part == ModelPart::projector ? 0.5
                                                        : 0.1;
    EXPECT_TRUE(at::allclose(parameter, before[name] * (1 - 0.1 * decay), 1e-6, 1e-7)) << name;
  }
  options.vision_weight_decay = -1;  // as weight_decay
  for (const ParameterGroup& group : model.groups(options))
    if (model.part_of_parameter(group.parameters.front().first) == ModelPart::vision)
      EXPECT_EQ(group.weight_decay, 0.1);
}

TEST(SftTest, LongerSequencesAreRefusedOrSkippedAndNamed) {
  const test::TemporaryFolder folder;
  SftOptions options = tiny_sft((folder / "run").string());
  options.max_length = 8;
  EXPECT_THAT([&] { run_sft(options); },
              ::testing::ThrowsMessage<std::runtime_error>(::testing::AllOf(
                  ::testing::HasSubstr("more than max_length 8"), ::testing::HasSubstr("overlong=skip"))));
  options.out = (folder / "skip").string();
  options.overlong = "skip";
  options.run.steps = 2;
  run_sft(options);
  const auto metrics = metrics_of(folder / "skip");
  EXPECT_EQ(metrics.back()["num_skipped"], 8);
  std::ifstream skipped(folder / "skip/samples/skipped.jsonl");
  std::size_t num_lines = 0;
  for (std::string line; std::getline(skipped, line); ++num_lines) EXPECT_TRUE(Json::parse(line).contains("id"));
  EXPECT_EQ(num_lines, 8u);
}

TEST(SftTest, NoiseOnEmbeddingsChangesTrainingButNotItsRepetition) {
  const test::TemporaryFolder folder;
  SftOptions options = tiny_sft((folder / "plain").string());
  options.run.steps = 2;
  run_sft(options);
  for (const char* name : {"noisy", "again"}) {
    options.out = (folder / name).string();
    options.neftune_noise_alpha = 5;
    run_sft(options);
  }
  EXPECT_EQ(weights_of(folder / "noisy", "step-2"), weights_of(folder / "again", "step-2"));
  EXPECT_NE(weights_of(folder / "noisy", "step-2"), weights_of(folder / "plain", "step-2"));
  // A question's noise is its own, whatever shares its pass.
  options.out = (folder / "alone").string();
  options.run.micro_batch_tokens = 1;
  run_sft(options);
  const double loss = metrics_of(folder / "noisy").front()["loss"].get<double>();
  EXPECT_NEAR(metrics_of(folder / "alone").front()["loss"].get<double>(), loss, 1e-5);
}

TEST(SftTest, ADamagedCheckpointIsPassedOver) {
  const test::TemporaryFolder folder;
  SftOptions options = tiny_sft((folder / "run").string());
  options.run.async_save = true;
  run_sft(options);
  const std::string whole = weights_of(folder / "run", "step-6");
  EXPECT_EQ(checkpoint_damage(folder / "run/checkpoints/step-6"), "");
  std::string bytes = read_file(folder / "run/checkpoints/step-6/model.safetensors");
  bytes[bytes.size() / 2] ^= 1;
  write_file_atomically(folder / "run/checkpoints/step-6/model.safetensors", bytes);
  EXPECT_THAT(checkpoint_damage(folder / "run/checkpoints/step-6"), ::testing::HasSubstr("model.safetensors"));
  options.resume = true;
  run_sft(options);
  EXPECT_EQ(weights_of(folder / "run", "step-6"), whole);
  EXPECT_EQ(checkpoint_damage(folder / "run/checkpoints/step-6"), "");
}

TEST(SftTest, TracesStepsOnRequest) {
  const test::TemporaryFolder folder;
  SftOptions options = tiny_sft((folder / "run").string());
  options.run.steps = 3;
  options.run.profile_steps = 1;
  run_sft(options);
  const Json trace = read_json_file(folder / "run/profile.json");
  EXPECT_TRUE(trace.contains("traceEvents"));
  EXPECT_THAT(trace.dump(), ::testing::HasSubstr("aten::mm"));
}

TEST(WarmupTest, TheTowerLearnsTheAnnotations) {
  const test::TinyRun& tiny = test::tiny_run();
  const test::TemporaryFolder folder;
  WarmupOptions options;
  options.model = tiny.model.string();
  options.annotations = tiny.annotations.string();
  options.images = tiny.images.string();
  options.out = (folder / "run").string();
  options.steps = 40;
  options.batch_size = 8;
  run_warmup(options);
  const auto metrics = metrics_of(folder / "run");
  EXPECT_LT(metrics.back()["loss"].get<double>(), 0.8 * metrics.front()["loss"].get<double>());
  EXPECT_NO_THROW(models::load_bundle(models::resolve_model_folder(folder / "run")));
}

}  // namespace
}  // namespace thinkvg::train
