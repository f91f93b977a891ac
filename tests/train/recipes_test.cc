// The runs in configs/ that SFT and GRPO of published models start from.
#include <gtest/gtest.h>

#include <filesystem>

#include "thinkvg/train/memory_plan.h"
#include "thinkvg/train/sft.h"

namespace thinkvg::train {
namespace {

SftOptions recipe(const std::string& name) {
  const std::string file = (std::filesystem::path(THINKVG_SOURCE_DIR) / "configs" / name).string();
  SftOptions options;
  read_settings(options, read_yaml_file(file), file);
  options.check();
  return options;
}

// GEMeX's own numbers: FIELD facts that a change must not lose.
TEST(RecipeTest, GemexIsAsPublished) {
  const SftOptions options = recipe("gemex_thinkvg/sft.yaml");
  EXPECT_EQ(options.epochs, 3);
  EXPECT_EQ(options.batch_size, 2 * 8 * 4);
  EXPECT_EQ(options.max_length, 2048);
  EXPECT_EQ(options.optimizer.lr, 2e-5);
  EXPECT_EQ(options.optimizer.schedule, "cosine");
  EXPECT_EQ(options.optimizer.warmup_ratio, 0.03);
  EXPECT_EQ(options.optimizer.weight_decay, 0);
  EXPECT_EQ(options.tuning.dtype, "bfloat16");
  EXPECT_TRUE(options.tuning.gradient_checkpointing);
  EXPECT_EQ(options.tuning.lora.rank, 0);
}

struct Published {
  const char* recipe;
  Json config;  // of Qwen2.5-VL, the numbers that memory depends on
  std::int64_t num_parameters = 0;
  std::int64_t num_adapters = 0;  // of rank 16 on every matrix of the decoder's layers
};

Json qwen2_5_vl(std::int64_t layers, std::int64_t width, std::int64_t inner, std::int64_t heads, std::int64_t kv_heads,
                std::int64_t vocab) {
  return {{"num_hidden_layers", layers},
          {"hidden_size", width},
          {"intermediate_size", inner},
          {"num_attention_heads", heads},
          {"num_key_value_heads", kv_heads},
          {"vocab_size", vocab},
          {"vision_config",
           {{"depth", 32},
            {"hidden_size", 1280},
            {"intermediate_size", 3420},
            {"num_heads", 16},
            {"spatial_merge_size", 2}}}};
}

TEST(RecipeTest, AdaptersFitOnOneGpu) {
  const std::vector<Published> all = {
      {"qwen2_5_vl_lora/sft_3b.yaml", qwen2_5_vl(36, 2048, 11008, 16, 2, 151936), 3'754'622'976, 29'933'568},
      {"qwen2_5_vl_lora/sft_7b.yaml", qwen2_5_vl(28, 3584, 18944, 28, 4, 152064), 8'292'166'656, 40'370'176}};
  for (const Published& published : all) {
    const SftOptions options = recipe(published.recipe);
    EXPECT_GT(options.tuning.lora.rank, 0);
    MemorySettings settings;
    settings.model = read_model_numbers(published.config);
    settings.num_parameters = published.num_parameters + published.num_adapters;
    settings.num_trained = published.num_adapters;
    settings.trains_head = settings.trains_vision = false;
    settings.adapter_rank = options.tuning.lora.rank;
    settings.adapter_dropout = options.tuning.lora.dropout > 0;
    settings.bytes_a_weight = 2;
    settings.gradient_checkpointing = options.tuning.gradient_checkpointing;
    settings.pass_tokens = options.run.micro_batch_tokens;
    settings.pass_targets = options.run.micro_batch_tokens / 2;
    settings.passes_a_step = 4;
    settings.on_accelerator = true;
    const std::int64_t bytes = plan_memory(settings).device_bytes();
    EXPECT_LT(bytes, std::int64_t{24} << 30) << published.recipe << " " << format_bytes(bytes);
    EXPECT_GT(bytes, 2 * published.num_parameters);
  }
}

}  // namespace
}  // namespace thinkvg::train
