// Against states that tests/parity/write_lora.py stored with peft.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <fstream>

#include "tests/support/oracle.h"
#include "tests/support/temporary_folder.h"
#include "thinkvg/core/files.h"
#include "thinkvg/models/adapters.h"
#include "thinkvg/nn/attention.h"

namespace thinkvg::models {
namespace {

using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

std::filesystem::path data(const std::string& area, const std::string& name) {
  return test::parity_data() / area / name;
}

// The inputs of the case "several" of tests/parity/write_qwen2_5_vl.py.
struct Case {
  explicit Case(const std::string& checkpoint)
      : state(read_safetensors(data("qwen2_5_vl", checkpoint) / "case_several.safetensors")) {
    const at::Tensor grids = state.at("grids");
    patches.values = state.at("pixel_values").clone();
    for (std::int64_t i = 0; i < grids.size(0); ++i)
      patches.grids.push_back(
          {grids[i][0].item<std::int64_t>(), grids[i][1].item<std::int64_t>(), grids[i][2].item<std::int64_t>()});
  }
  at::Tensor logits(VisionLanguageModel& model) const {
    const at::Tensor ids = state.at("ids").clone();
    nn::PackedAttention attention({{ids.size(0)}, {}});
    const at::Tensor rows = (ids == model.special_tokens().image).nonzero().flatten();
    const at::Tensor embeddings = model.embed(ids, rows, model.encode_images(patches));
    return model.logits(model.decode(embeddings, state.at("positions").clone(), attention));
  }
  at::Tensor loss(const at::Tensor& logits) const {
    const at::Tensor labels = state.at("labels").clone();
    return at::cross_entropy_loss(logits.narrow(0, 0, labels.size(0) - 1), labels.narrow(0, 1, labels.size(0) - 1));
  }

  std::map<std::string, at::Tensor> state;
  PixelPatches patches;
};

double largest_difference(const at::Tensor& a, const at::Tensor& b) { return (a - b).abs().max().item<double>(); }

class AdaptersParity : public ::testing::TestWithParam<const char*> {};

TEST_P(AdaptersParity, LogitsLossAndGradientsEqualPeft) {
  const std::string name = GetParam();
  const auto expected = read_safetensors(data("lora", name) / "expected.safetensors");
  const auto model = load(data("qwen2_5_vl", name));
  for (const at::Tensor& parameter : model->parameters()) parameter.set_requires_grad(false);
  const Case input(name);
  const at::Tensor before = input.logits(*model);
  Adapters adapters(model, data("lora", name));
  for (const bool checkpointing : {false, true}) {
    model->set_checkpointing(checkpointing);
    const at::Tensor logits = input.logits(*model);
    EXPECT_LT(largest_difference(logits, expected.at("logits")), 1e-4);
    const at::Tensor loss = input.loss(logits);
    EXPECT_LT(largest_difference(loss, expected.at("loss")[0]), 1e-4);
    std::vector<at::Tensor> tensors;
    for (const auto& [key, tensor] : adapters.tensors()) tensors.push_back(tensor);
    const auto gradients = torch::autograd::grad({loss}, tensors);
    std::size_t i = 0;
    for (const auto& [key, tensor] : adapters.tensors()) {
      const at::Tensor& gradient = expected.at("grad:base_model.model." + model->transformers_name(key));
      EXPECT_LT(largest_difference(gradients[i++], gradient), 1e-4 * (1e-3 + gradient.norm().item<double>())) << key;
    }
    std::size_t num_gradients = 0;
    for (const auto& [key, tensor] : expected) num_gradients += key.starts_with("grad:") ? 1 : 0;
    EXPECT_EQ(i, num_gradients);
  }
  const nn::AdaptersOff off;
  EXPECT_TRUE(at::equal(input.logits(*model), before));
}

TEST_P(AdaptersParity, SavedAdaptersComeBackAndMerge) {
  const std::string name = GetParam();
  const auto expected = read_safetensors(data("lora", name) / "expected.safetensors");
  const test::TemporaryFolder folder;
  const Case input(name);
  {
    const auto model = load(data("qwen2_5_vl", name));
    const Adapters adapters(model, data("lora", name));
    write_content(adapters.content("base"), folder.path());
  }
  EXPECT_TRUE(is_adapter_folder(folder.path()));
  const auto stored = read_safetensors(data("lora", name) / "adapter_model.safetensors");
  const auto written = read_safetensors(folder / "adapter_model.safetensors");
  ASSERT_EQ(written.size(), stored.size());
  for (const auto& [key, tensor] : stored) EXPECT_TRUE(at::equal(written.at(key), tensor)) << key;

  const auto model = load(data("qwen2_5_vl", name));
  {
    Adapters adapters(model, folder.path());
    adapters.merge();
    EXPECT_EQ(adapters.size(), 0u);
  }
  const at::NoGradGuard no_grad;
  EXPECT_LT(largest_difference(input.logits(*model), expected.at("logits")), 1e-4);
}

TEST_P(AdaptersParity, TheModelIsItselfAgainWhenTheyGo) {
  const std::string name = GetParam();
  const auto model = load(data("qwen2_5_vl", name));
  const at::NoGradGuard no_grad;
  const Case input(name);
  const at::Tensor before = input.logits(*model);
  {
    LoraOptions options;
    options.rank = 2;
    const Adapters adapters(model, options, 1);
    EXPECT_TRUE(at::equal(input.logits(*model), before));  // new adapters change nothing
    EXPECT_EQ(adapters.tensors().front().second.requires_grad(), true);
    EXPECT_THROW(Adapters(model, options, 1), std::invalid_argument);
  }
  EXPECT_TRUE(at::equal(input.logits(*model), before));
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, AdaptersParity, ::testing::Values("tied", "untied"));

TEST(AdaptersTest, TargetsAreChosenByPartAndName) {
  const auto model = load(data("qwen2_5_vl", "tied"));
  const auto modules = [&](const LoraOptions& options) {
    std::vector<std::string> names;
    for (const auto& [name, tensor] : Adapters(model, options, 1).tensors())
      if (name.ends_with("lora_A.weight")) names.push_back(name);
    return names;
  };
  LoraOptions options;
  options.rank = 2;
  EXPECT_EQ(modules(options).size(), 14u);  // two layers of seven
  options.target_modules = {"q_proj", "mlp.down_proj"};
  EXPECT_EQ(modules(options).size(), 4u);
  options.parts = {"projector"};
  options.target_modules = {"all-linear"};
  EXPECT_THAT(modules(options), ::testing::Each(HasSubstr("visual.merger.")));
  options.parts = {"vision"};
  EXPECT_EQ(modules(options).size(), 15u);  // three blocks of five
  options.target_modules = {"query"};
  EXPECT_THAT([&] { modules(options); }, ThrowsMessage<std::invalid_argument>(HasSubstr("qkv")));
  options.parts = {"head"};
  EXPECT_THAT([&] { modules(options); }, ThrowsMessage<std::invalid_argument>(HasSubstr("language, projector")));
}

// PEFT's patterns are regular expressions.
TEST(AdaptersTest, PatternsNameRankAndAlpha) {
  const at::NoGradGuard no_grad;
  const auto model = load(data("qwen2_5_vl", "untied"));
  const Case input("untied");
  const auto expected = read_safetensors(data("lora", "untied") / "expected.safetensors");
  const test::TemporaryFolder folder;
  std::filesystem::copy(data("lora", "untied"), folder.path(),
                        std::filesystem::copy_options::recursive | std::filesystem::copy_options::overwrite_existing);
  Json config = read_json_file(folder / "adapter_config.json");
  const Json ranks = config["rank_pattern"], alphas = config["alpha_pattern"];
  const auto logits_with = [&](const std::string& rank, const std::string& alpha) {
    config["rank_pattern"] = {{rank, ranks.front()}};
    config["alpha_pattern"] = {{alpha, alphas.front()}};
    write_file_atomically(folder / "adapter_config.json", config.dump());
    const Adapters adapters(model, folder.path());
    return input.logits(*model);
  };
  for (const char* pattern :
       {"q_proj", "self_attn.q_proj", "self_attn\\.q_.*", ".*layers\\.[0-9]+\\.self_attn.(q|k)_proj",
        "^model.language_model.layers.\\d+.self_attn.q_proj$"})
    EXPECT_LT(largest_difference(logits_with(pattern, pattern), expected.at("logits")), 1e-4) << pattern;
  EXPECT_GT(largest_difference(logits_with("q_proj", "_proj"), expected.at("logits")), 1e-2) << "no whole name";
  EXPECT_THAT([&] { logits_with("q_proj", "(q_proj"); },
              ThrowsMessage<std::runtime_error>(HasSubstr("alpha_pattern holds '(q_proj'")));
}

TEST(AdaptersTest, UnusableFoldersAreNamed) {
  const auto model = load(data("qwen2_5_vl", "untied"));
  EXPECT_THAT([&] { Adapters(model, data("lora", "tied")); },
              ThrowsMessage<std::runtime_error>(HasSubstr("does not fit the model")));
  const test::TemporaryFolder folder;
  std::filesystem::copy(data("lora", "untied"), folder.path(),
                        std::filesystem::copy_options::recursive | std::filesystem::copy_options::overwrite_existing);
  const Json config = read_json_file(folder / "adapter_config.json");
  for (const auto& [key, value] : {std::pair<const char*, Json>("use_dora", true),
                                   {"init_lora_weights", "pissa_niter_4"},
                                   {"alora_invocation_tokens", {3, 4}},
                                   {"target_parameters", {"experts.gate_up_proj"}},
                                   {"bias", "all"},
                                   {"modules_to_save", {"lm_head"}}}) {
    Json changed = config;
    changed[key] = value;
    write_file_atomically(folder / "adapter_config.json", changed.dump());
    EXPECT_THAT([&] { Adapters(model, folder.path()); },
                ThrowsMessage<std::runtime_error>(HasSubstr(std::string(key) + " is " + value.dump())));
  }
}

}  // namespace
}  // namespace thinkvg::models
