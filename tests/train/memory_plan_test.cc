#include "thinkvg/train/memory_plan.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/Allocator.h>
#include <c10/util/Exception.h>
#include <c10/util/ThreadLocalDebugInfo.h>
#include <gmock/gmock.h>
#include <torch/csrc/autograd/autograd.h>

#include <atomic>

#include "thinkvg/core/error.h"
#include "thinkvg/core/random.h"
#include "thinkvg/models/pack.h"
#include "thinkvg/models/vision_language_model.h"
#include "thinkvg/nn/adapter.h"
#include "thinkvg/nn/head_stats.h"
#include "thinkvg/train/example.h"
#include "thinkvg/train/out_of_memory.h"
#include "thinkvg/train/trained_model.h"

namespace thinkvg::train {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::ThrowsMessage;

// What tensors held at most while it lives, as LibTorch's allocator tells it.
class PeakMemory {
 public:
  PeakMemory() : guard_(c10::DebugInfoKind::PROFILER_STATE, counter_) {}
  std::int64_t bytes() const { return counter_->peak; }

 private:
  struct Counter : c10::MemoryReportingInfoBase {
    void reportMemoryUsage(void*, std::int64_t size, std::size_t, std::size_t, c10::Device) override {
      const std::int64_t now = (held += size);
      std::int64_t before = peak;
      while (now > before && !peak.compare_exchange_weak(before, now)) {
      }
    }
    bool memoryProfilingEnabled() const override { return true; }
    std::atomic<std::int64_t> held = 0, peak = 0;
  };
  std::shared_ptr<Counter> counter_ = std::make_shared<Counter>();
  c10::DebugInfoGuard guard_;
};

constexpr std::int64_t kVocab = 3000, kTextTokens = 200, kSequences = 4, kSide = 16;  // a picture of 16 x 16 patches

Json config() {
  return {{"model_type", "qwen2_5_vl"},
          {"text_config",
           {{"vocab_size", kVocab},
            {"hidden_size", 256},
            {"intermediate_size", 704},
            {"num_hidden_layers", 6},
            {"num_attention_heads", 8},
            {"num_key_value_heads", 2},
            {"rms_norm_eps", 1e-6},
            {"rope_parameters", {{"rope_type", "default"}, {"rope_theta", 1e4}, {"mrope_section", {4, 6, 6}}}}}},
          {"vision_config",
           {{"depth", 4},
            {"hidden_size", 160},
            {"intermediate_size", 420},
            {"num_heads", 4},
            {"patch_size", 14},
            {"out_hidden_size", 256},
            {"fullatt_block_indexes", {1, 3}}}},
          {"image_token_id", 7},
          {"vision_start_token_id", 8},
          {"vision_end_token_id", 9},
          {"eos_token_id", 2}};
}

struct Case {
  std::string name;
  TuningOptions tuning;
  bool tied = false;
};

std::vector<Case> cases() {
  std::vector<Case> all;
  const auto add = [&](const char* name, auto change) {
    Case& added = all.emplace_back();
    added.name = name;
    change(added);
  };
  add("full", [](Case&) {});
  add("full_tied", [](Case& c) { c.tied = true; });
  add("full_checkpointing", [](Case& c) { c.tuning.gradient_checkpointing = true; });
  add("frozen_tower", [](Case& c) { c.tuning.freeze_vision = c.tuning.freeze_projector = true; });
  add("lora", [](Case& c) { c.tuning.lora.rank = 8; });
  add("lora_dropout", [](Case& c) {
    c.tuning.lora.rank = 8;
    c.tuning.lora.dropout = 0.1;
  });
  add("lora_checkpointing", [](Case& c) {
    c.tuning.lora.rank = 8;
    c.tuning.gradient_checkpointing = true;
  });
  add("bfloat16", [](Case& c) { c.tuning.dtype = "bfloat16"; });
  return all;
}

class MemoryPlanTest : public ::testing::TestWithParam<Case> {};

// The plan against the peak that one step of training reaches, tensors alone. It must not promise less than is needed,
// and not scare anybody away.
TEST_P(MemoryPlanTest, IsNearToTheMeasuredPeak) {
  const Case& c = GetParam();
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  Json json = config();
  json["tie_word_embeddings"] = c.tied;
  const PeakMemory peak;
  models::ModelBundle bundle;
  bundle.model = models::create(json, 1);
  bundle.model->to(c.tuning.dtype == "bfloat16" ? at::kBFloat16 : at::kFloat);
  const TrainedModel trained(bundle, c.tuning, 0);
  AdamW optimizer(trained.groups({}), {});
  models::VisionLanguageModel& model = trained.model();

  const std::int64_t image_tokens = model.num_image_tokens({1, kSide, kSide});
  const std::int64_t length = kTextTokens + image_tokens;
  RandomStream random({5});
  const bool tower = !trained.fixed_features();
  const auto loss = [&](std::int64_t) {
    models::PixelPatches patches;
    patches.values = at::zeros({kSequences * kSide * kSide, 3 * 2 * 14 * 14});
    patches.grids.assign(kSequences, {1, kSide, kSide});
    std::vector<at::Tensor> features;
    if (tower) {
      features = model.encode_images(patches).split(image_tokens);
    } else {
      for (std::int64_t i = 0; i < kSequences; ++i)
        features.push_back(at::zeros({image_tokens, model.hidden_size()}, model.output_weight().options()));
    }
    models::PackBuilder packer;
    std::vector<std::int64_t> rows, targets;
    for (std::int64_t s = 0; s < kSequences; ++s) {
      std::vector<std::int64_t> ids(static_cast<std::size_t>(length)), places;
      for (std::int64_t i = 0; i < length; ++i) {
        ids[static_cast<std::size_t>(i)] = i < image_tokens ? 7 : 10 + static_cast<std::int64_t>(random.below(2000));
        if (i < image_tokens) places.push_back(i);
      }
      const std::int64_t first =
          packer.add({ids, models::text_positions(0, length), places, {features[static_cast<std::size_t>(s)]}, -1});
      for (std::int64_t t = length / 2; t < length; ++t) {
        rows.push_back(first + t - 1);
        targets.push_back(ids[static_cast<std::size_t>(t)]);
      }
    }
    const models::Pack pack = packer.build(at::kCPU);
    nn::PackedAttention attention(pack.layout);
    const at::Tensor hidden = models::run_pack(model, pack, attention).index_select(0, at::tensor(rows, at::kLong));
    return nn::head_token_stats(hidden, model.output_weight(), at::tensor(targets, at::kLong), {}).logprob.sum().neg();
  };
  {
    const nn::DropoutStream dropout(3);
    optimizer.step(accumulate_gradients(optimizer.parameters(), 2, loss), 1e-4);
  }
  at::set_num_threads(threads);

  MemorySettings settings;
  settings.model = read_model_numbers(model.config());
  settings.num_parameters = trained.num_parameters();
  settings.num_trained = trained.num_trained();
  settings.trains_vision = tower;
  settings.trains_head = model.output_weight().requires_grad();
  settings.adapter_rank = c.tuning.lora.rank;
  settings.adapter_dropout = c.tuning.lora.dropout > 0;
  settings.bytes_a_weight = c.tuning.dtype == "bfloat16" ? 2 : 4;
  settings.gradient_checkpointing = c.tuning.gradient_checkpointing;
  settings.pass_tokens = kSequences * length;
  settings.pass_image_tokens = kSequences * image_tokens;
  settings.pass_targets = kSequences * (length - length / 2);
  settings.passes_a_step = 2;
  const MemoryPlan plan = plan_memory(settings);
  const double ratio = static_cast<double>(plan.device_bytes()) / static_cast<double>(peak.bytes());
  std::string items;
  for (const auto* list : {&plan.always, &plan.pass})
    for (const MemoryItem& item : *list) items += "\n  " + item.name + " " + format_bytes(item.bytes);
  RecordProperty("planned_over_measured", fmt::format("{:.3f}", ratio));
  EXPECT_GT(ratio, 0.95) << format_bytes(plan.device_bytes()) << " planned, " << format_bytes(peak.bytes())
                         << " measured" << items;
  EXPECT_LT(ratio, 1.35) << format_bytes(plan.device_bytes()) << " planned, " << format_bytes(peak.bytes())
                         << " measured" << items;
}

INSTANTIATE_TEST_SUITE_P(Runs, MemoryPlanTest, ::testing::ValuesIn(cases()),
                         [](const ::testing::TestParamInfo<Case>& info) { return info.param.name; });

MemorySettings large() {
  MemorySettings settings;
  settings.model = read_model_numbers(config());
  settings.num_parameters = 7'000'000'000;
  settings.num_trained = 7'000'000'000;
  settings.bytes_a_weight = 2;
  settings.on_accelerator = true;
  settings.pass_tokens = 4096;
  settings.pass_targets = 2000;
  return settings;
}

std::int64_t item_bytes(const std::vector<MemoryItem>& items, const std::string& name) {
  for (const MemoryItem& item : items)
    if (item.name == name) return item.bytes;
  return 0;
}

// Weights 2, masters 4, moments 8, sums of gradients 4, gradients of a pass 2.
TEST(PlanMemoryTest, FullFineTuningInBf16TakesTwentyBytesAParameterAndMore) {
  const std::int64_t bytes = plan_memory(large()).device_bytes();
  EXPECT_GT(bytes, 20 * 7'000'000'000);
  EXPECT_LT(bytes, 21 * 7'000'000'000);
}

TEST(PlanMemoryTest, SplittingCheckpointingAndReinforcementChangeIt) {
  MemorySettings settings = large();
  const std::int64_t whole = plan_memory(settings).device_bytes();
  settings.optimizer_shards = 8;
  const std::int64_t optimizer = plan_memory(settings).device_bytes();
  EXPECT_NEAR(static_cast<double>(whole - optimizer), 12.0 * 7e9 * 7 / 8, 1e6);
  settings.gradient_shards = 8;
  const std::int64_t gradients = plan_memory(settings).device_bytes();
  EXPECT_NEAR(static_cast<double>(optimizer - gradients), 4.0 * 7e9 * 7 / 8, 1e6) << "sums alone";
  settings.bucket_bytes = 64 << 20;
  EXPECT_EQ(plan_memory(settings).device_bytes() - gradients, 2 * (64 << 20)) << "what is sent and what comes";

  settings.bucket_bytes = 0;
  settings.parameter_shards = 8;
  settings.split = {.outside = 1'000'000'000,
                    .trained_outside = 1'000'000'000,
                    .in_blocks = 6'000'000'000,
                    .backward = 5'800'000'000,
                    .largest_block = 200'000'000};
  const MemoryPlan split = plan_memory(settings);
  EXPECT_EQ(split.always.front().bytes, 2 * 7'000'000'000 / 8) << "weights";
  // The other weights, a layer's and the next one's; gradients of a pass in fp32, received and sent, in place of all.
  EXPECT_EQ(item_bytes(split.pass, "fetched weights"), 2'800'000'000);
  EXPECT_NEAR(static_cast<double>(gradients - split.device_bytes()), 2.0 * 7e9 * 7 / 8 - 2 * 1.4e9 + 2 * 7e9 - 8 * 1e9,
              1e6);
  EXPECT_TRUE(split.rollout.empty());
  settings.evaluates = true;
  EXPECT_EQ(item_bytes(plan_memory(settings).rollout, "fetched weights"), 2 * 7'000'000'000);

  settings = large();
  settings.pass_tokens = 1'000'000;
  const std::int64_t kept = plan_memory(settings).device_bytes();
  settings.gradient_checkpointing = true;
  EXPECT_LT(plan_memory(settings).device_bytes(), kept);

  settings = large();
  settings.rollout = {.num_prompts = 16, .prompt_tokens = 400, .num_rows = 128, .new_tokens = 256, .reference = true};
  const MemoryPlan plan = plan_memory(settings);
  ASSERT_FALSE(plan.rollout.empty());
  constexpr std::int64_t kTokenBytes = 2 * 6 * 2 * 32 * 2;  // keys and values, layers, heads, numbers, bytes
  settings.rollout->overlaps = true;
  const auto bytes_of = [](const std::vector<MemoryItem>& items) {
    std::int64_t sum = 0;
    for (const MemoryItem& item : items) sum += item.bytes;
    return sum;
  };
  EXPECT_EQ(plan_memory(settings).device_bytes() - plan.device_bytes(),
            std::min(bytes_of(plan.pass), bytes_of(plan.rollout)))
      << "both at the same time";
  EXPECT_EQ(plan.rollout.front().bytes, (16 * 25 + 128 * (41 + 2)) * 16 * kTokenBytes) << "whole pages, all at once";
  EXPECT_NEAR(static_cast<double>(plan.device_bytes() - whole), 14e9, 1e6) << "the reference's weights";
  settings.on_accelerator = false;
  EXPECT_EQ(plan_memory(settings).rollout.front().bytes, (16 * 25 + 128 * (16 + 1)) * 16 * kTokenBytes)
      << "prompts once";
  settings.rollout->cache_bytes = std::int64_t{10} << 20;
  EXPECT_EQ(plan_memory(settings).rollout.front().bytes, std::int64_t{10} << 20);
}

TEST(ModelNumbersTest, AreReadOfEveryLayout) {
  const ModelNumbers qwen = read_model_numbers(config());
  EXPECT_EQ(qwen.language.num_layers, 6);
  EXPECT_EQ(qwen.language.num_kv_heads, 2);
  EXPECT_EQ(qwen.language.head_width, 32);
  EXPECT_EQ(qwen.vision.inner_width, 420);
  EXPECT_TRUE(qwen.vision.gated);
  EXPECT_EQ(qwen.patches_a_token, 4);
  EXPECT_EQ(qwen.vocab_size, kVocab);
  // Settings of transformers 4 at the top level; Qwen2-VL's names of the tower's sizes.
  const Json qwen2 = {{"hidden_size", 64},
                      {"num_hidden_layers", 2},
                      {"num_attention_heads", 4},
                      {"vocab_size", 10},
                      {"intermediate_size", 100},
                      {"tie_word_embeddings", true},
                      {"vision_config",
                       {{"depth", 3},
                        {"embed_dim", 48},
                        {"hidden_size", 64},
                        {"mlp_ratio", 4},
                        {"num_heads", 4},
                        {"spatial_merge_size", 2}}}};
  const ModelNumbers second = read_model_numbers(qwen2);
  EXPECT_EQ(second.vision.width, 48);
  EXPECT_EQ(second.vision.inner_width, 192);
  EXPECT_FALSE(second.vision.gated);
  EXPECT_EQ(second.language.num_kv_heads, 4);
  EXPECT_TRUE(second.tied);
  const Json gemma = {{"text_config",
                       {{"hidden_size", 64},
                        {"num_hidden_layers", 2},
                        {"num_attention_heads", 4},
                        {"head_dim", 32},
                        {"vocab_size", 10},
                        {"intermediate_size", 100}}},
                      {"mm_tokens_per_image", 256},
                      {"vision_config",
                       {{"num_hidden_layers", 3},
                        {"hidden_size", 48},
                        {"num_attention_heads", 4},
                        {"intermediate_size", 100},
                        {"image_size", 896},
                        {"patch_size", 14}}}};
  EXPECT_EQ(read_model_numbers(gemma).patches_a_token, 16);
  EXPECT_EQ(read_model_numbers(gemma).language.head_width, 32);
  Json broken = config();
  broken["text_config"].erase("hidden_size");
  EXPECT_THAT([&] { read_model_numbers(broken); },
              ThrowsMessage<std::runtime_error>(HasSubstr("the language model has no hidden_size")));
}

TEST(OutOfMemoryTest, NamesTheSettingsThatHelp) {
  SftOptions options;
  const auto message = [](const std::function<void()>& body, const MemoryLevers& levers) -> std::string {
    try {
      explaining_memory(levers, body);
    } catch (const std::runtime_error& error) {
      return error.what();
    }
    return "no error";
  };
  const MemoryLevers levers = memory_levers(options);
  EXPECT_THAT(message([] { throw std::bad_alloc(); }, levers),
              AllOf(HasSubstr("out of memory."), HasSubstr("gradient_checkpointing true"),
                    HasSubstr("run.micro_batch_tokens below 4096"), HasSubstr("thinkvg check")));
  // The allocator's own error, with what was asked for.
  EXPECT_THAT(message([] { at::empty({std::int64_t{1} << 58}, at::kByte); }, levers),
              AllOf(HasSubstr("you tried to allocate"), HasSubstr("dtype bfloat16"), Not(HasSubstr("frame #"))));
  EXPECT_THAT(message([] { TORCH_CHECK_WITH(OutOfMemoryError, false, "CUDA out of memory. Tried 2 GiB"); }, levers),
              HasSubstr("(CUDA out of memory. Tried 2 GiB)"));
  options.tuning.gradient_checkpointing = true;
  options.tuning.dtype = "bfloat16";
  options.tuning.lora.rank = 8;
  options.run.micro_batch_tokens = 512;
  options.run.async_save = true;
  EXPECT_THAT(message([] { throw std::bad_alloc(); }, memory_levers(options)),
              AllOf(HasSubstr("run.async_save false"), HasSubstr("max_pixels"), Not(HasSubstr("dtype")),
                    Not(HasSubstr("lora.rank")), Not(HasSubstr("micro_batch_tokens"))));
  // Other errors go on as they are.
  EXPECT_THROW(explaining_memory(levers, [] { throw std::out_of_range("x"); }), std::out_of_range);
  EXPECT_THROW(explaining_memory(levers, [] { TORCH_CHECK(false, "shapes"); }), c10::Error);
  explaining_memory(levers, [] {});
}

}  // namespace
}  // namespace thinkvg::train
