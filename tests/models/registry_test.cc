#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <cmath>
#include <fstream>
#include <set>

#include "thinkvg/core/error.h"
#include "thinkvg/core/files.h"
#include "thinkvg/models/qwen2_5_vl.h"
#include "thinkvg/models/safetensors.h"

namespace thinkvg::models {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::ThrowsMessage;

std::filesystem::path stored(const std::string& checkpoint) {
  return std::filesystem::path(THINKVG_TEST_DATA) / "qwen2_5_vl" / checkpoint;
}

std::filesystem::path new_folder(const std::string& name) {
  const std::filesystem::path folder = std::filesystem::path(testing::TempDir()) / ("thinkvg_registry_" + name);
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  return folder;
}

Json small_config() {
  return {{"model_type", "qwen2_5_vl"},
          {"tie_word_embeddings", true},
          {"image_token_id", 5},
          {"text_config",
           {{"vocab_size", 300},
            {"hidden_size", 32},
            {"intermediate_size", 48},
            {"num_hidden_layers", 1},
            {"num_attention_heads", 4},
            {"num_key_value_heads", 2},
            {"eos_token_id", {3, 4}},
            {"pad_token_id", 1},
            {"rope_parameters", {{"rope_type", "default"}, {"rope_theta", 100.0}, {"mrope_section", {1, 1, 2}}}}}},
          {"vision_config",
           {{"depth", 1},
            {"hidden_size", 16},
            {"intermediate_size", 24},
            {"num_heads", 2},
            {"patch_size", 4},
            {"window_size", 16},
            {"out_hidden_size", 32},
            {"fullatt_block_indexes", {0}}}}};
}

std::map<std::string, at::Tensor> parameters_of(const VisionLanguageModel& model) {
  std::map<std::string, at::Tensor> result;
  for (const auto& item : model.named_parameters()) result.emplace(item.key(), item.value().detach());
  return result;
}

TEST(Registry, RandomWeightsHaveTheirScale) {
  const auto model = create(small_config(), 7);
  const auto parameters = parameters_of(*model);
  const at::Tensor& embedding = parameters.at("model.embed_tokens.weight");
  EXPECT_NEAR(embedding.std().item<double>(), 1 / std::sqrt(32.0), 0.01);
  EXPECT_NEAR(embedding.mean().item<double>(), 0.0, 0.01);
  EXPECT_NEAR(parameters.at("visual.patch_embed.proj.weight").std().item<double>(), 1 / std::sqrt(96.0), 0.005);
  EXPECT_TRUE(parameters.at("model.norm.weight").equal(at::ones(32)));
  EXPECT_TRUE(parameters.at("model.layers.0.self_attn.q_proj.bias").equal(at::zeros(32)));
  EXPECT_FALSE(parameters.contains("lm_head.weight"));

  const auto same = parameters_of(*create(small_config(), 7));
  const auto other = parameters_of(*create(small_config(), 8));
  EXPECT_TRUE(same.at("model.layers.0.mlp.up_proj.weight").equal(parameters.at("model.layers.0.mlp.up_proj.weight")));
  EXPECT_FALSE(other.at("model.layers.0.mlp.up_proj.weight").equal(parameters.at("model.layers.0.mlp.up_proj.weight")));
}

TEST(Registry, SpecialTokensAndSizesAreRead) {
  const auto model = create(small_config(), 1);
  EXPECT_EQ(model->special_tokens().image, 5);
  EXPECT_EQ(model->special_tokens().pad, 1);
  EXPECT_THAT(model->special_tokens().end, ElementsAre(3, 4));
  EXPECT_EQ(model->head_dim(), 8);
  EXPECT_EQ(model->num_kv_heads(), 2);
  EXPECT_EQ(model->num_image_tokens({1, 6, 4}), 6);
  for (const auto& item : model->named_parameters()) {
    if (item.key().starts_with("visual.")) return;
  }
  FAIL() << "no parameter of the tower";
}

TEST(Registry, SavedModelsComeBack) {
  for (const char* checkpoint : {"tied", "untied"}) {
    const auto model = load(stored(checkpoint));
    const auto folder = new_folder(checkpoint);
    save(*model, folder);
    const auto again = load(folder);
    const auto expected = parameters_of(*model);
    const auto got = parameters_of(*again);
    ASSERT_EQ(got.size(), expected.size());
    for (const auto& [name, tensor] : expected) EXPECT_TRUE(got.at(name).equal(tensor)) << name;
    EXPECT_EQ(again->special_tokens().end, model->special_tokens().end);
    EXPECT_EQ(again->special_tokens().image, model->special_tokens().image);
    const Json config = read_json_file(folder / "config.json");
    EXPECT_EQ(config.at("architectures").at(0), "Qwen2_5_VLForConditionalGeneration");
    EXPECT_EQ(config.at("dtype"), "float32");
    EXPECT_TRUE(config.contains("text_config"));
  }
}

TEST(Registry, Bfloat16StaysBfloat16) {
  const auto model = create(small_config(), 1);
  model->to(at::kBFloat16);
  const auto folder = new_folder("bfloat16");
  save(*model, folder);
  EXPECT_EQ(read_json_file(folder / "config.json").at("dtype"), "bfloat16");
  EXPECT_EQ(load(folder)->parameters().front().scalar_type(), at::kBFloat16);
}

TEST(Registry, NewerTensorNamesAreRead) {
  const auto model = create(small_config(), 3);
  const auto folder = new_folder("names");
  save(*model, folder);
  NamedTensors renamed;
  for (const auto& [name, tensor] : read_safetensors(folder / "model.safetensors")) {
    const bool text = name.starts_with("model.");
    renamed.emplace_back(text ? "model.language_model." + name.substr(6) : "model." + name, tensor.clone());
  }
  write_safetensors(renamed, folder / "model.safetensors");
  const auto got = parameters_of(*load(folder));
  for (const auto& [name, tensor] : parameters_of(*model)) EXPECT_TRUE(got.at(name).equal(tensor)) << name;
}

TEST(Registry, OneErrorListsEveryTensorThatDoesNotFit) {
  const auto model = create(small_config(), 3);
  const auto folder = new_folder("strict");
  save(*model, folder);
  auto tensors = read_safetensors(folder / "model.safetensors");
  NamedTensors changed;
  for (const auto& [name, tensor] : tensors) {
    if (name == "model.norm.weight" || name == "visual.merger.mlp.0.bias") continue;
    changed.emplace_back(name, name == "visual.merger.ln_q.weight" ? at::ones(9) : tensor.clone());
  }
  changed.emplace_back("model.layers.1.mlp.up_proj.weight", at::ones({2, 2}));
  write_safetensors(changed, folder / "model.safetensors");
  EXPECT_THAT([&] { load(folder); },
              ThrowsMessage<std::runtime_error>(
                  AllOf(HasSubstr("missing (2): model.norm.weight, visual.merger.mlp.0.bias"),
                        HasSubstr("unexpected (1): model.layers.1.mlp.up_proj.weight"),
                        HasSubstr("of another shape (1): visual.merger.ln_q.weight is [9], expected [16]"),
                        HasSubstr(folder.string()))));
}

TEST(Registry, ATiedHeadMustBeTheEmbedding) {
  const auto model = create(small_config(), 3);
  const auto folder = new_folder("head");
  save(*model, folder);
  const auto tensors = read_safetensors(folder / "model.safetensors");
  NamedTensors with_head(tensors.begin(), tensors.end());
  with_head.emplace_back("lm_head.weight", tensors.at("model.embed_tokens.weight").clone());
  write_safetensors(with_head, folder / "model.safetensors");
  EXPECT_NO_THROW(load(folder));
  with_head.back().second = with_head.back().second + 1;
  write_safetensors(with_head, folder / "model.safetensors");
  EXPECT_THAT([&] { load(folder); }, ThrowsMessage<std::runtime_error>(HasSubstr("tie_word_embeddings")));
}

TEST(Registry, BadFoldersAreNamed) {
  const auto folder = new_folder("bad");
  EXPECT_THAT([&] { load(folder); }, ThrowsMessage<std::runtime_error>(HasSubstr("config.json")));
  write_file_atomically(folder / "config.json", R"({"model_type": "llama"})");
  EXPECT_THAT([&] { load(folder); },
              ThrowsMessage<std::runtime_error>(AllOf(HasSubstr("\"llama\""), HasSubstr("qwen2_5_vl"))));
  write_file_atomically(folder / "config.json", small_config().dump());
  EXPECT_THAT([&] { load(folder); }, ThrowsMessage<std::runtime_error>(HasSubstr("neither model.safetensors nor")));
}

// A config with one key changed must be refused with a message that names the key.
TEST(Registry, BadConfigsAreNamed) {
  const auto refuse = [](const char* section, const char* key, const Json& value, const std::string& message) {
    Json config = small_config();
    (section[0] == '\0' ? config : config[section])[key] = value;
    EXPECT_THAT([&] { create(config, 0); }, ThrowsMessage<std::invalid_argument>(HasSubstr(message))) << key;
  };
  refuse("", "model_type", "gpt", "known model types: qwen2_5_vl");
  refuse("text_config", "hidden_size", nullptr, "text_config.hidden_size is missing");
  refuse("text_config", "hidden_size", "32", "text_config.hidden_size is \"32\", expected an integer");
  refuse("text_config", "num_attention_heads", 5, "whole, even head width");
  refuse("text_config", "num_key_value_heads", 3, "multiple of num_key_value_heads");
  refuse("text_config", "hidden_act", "gelu", "hidden_act is 'gelu'");
  refuse("text_config", "rope_parameters", {{"rope_type", "yarn"}, {"mrope_section", {1, 1, 2}}}, "'yarn'");
  refuse("text_config", "rope_parameters", {{"mrope_section", {1, 1, 1}}}, "sum to 4");
  refuse("vision_config", "out_hidden_size", 16, "must equal text_config.hidden_size");
  refuse("vision_config", "num_heads", 8, "4 divides");
  refuse("vision_config", "window_size", 7, "smaller than one merged cell");
  refuse("vision_config", "depth", 0, "depth is 0, expected a positive integer");
}

// The other families: their checkpoints' config.json with one key changed.
TEST(Registry, BadConfigsOfEachFamilyAreNamed) {
  const auto refuse = [](const char* checkpoint, const char* section, const char* key, const Json& value,
                         const std::string& message) {
    Json config = read_json_file(std::filesystem::path(THINKVG_TEST_DATA) / checkpoint / "config.json");
    (section[0] == '\0' ? config : config[section])[key] = value;
    EXPECT_THAT([&] { create(config, 0); }, ThrowsMessage<std::invalid_argument>(HasSubstr(message)))
        << checkpoint << " " << key;
  };
  refuse("qwen2_vl/untied", "vision_config", "hidden_size", 12, "must equal text_config.hidden_size");
  refuse("qwen2_vl/untied", "vision_config", "hidden_act", "mish", "hidden_act is 'mish'; supported are silu");
  refuse("qwen3_vl/tied", "vision_config", "deepstack_visual_indexes", {0, 3}, "holds 3; there are layers 0 to 2");
  refuse("llava/vicuna", "text_config", "model_type", "phi", "'phi'; supported are llama, mistral");
  refuse("llava/vicuna", "vision_config", "model_type", "dinov2", "'dinov2'; supported are clip_vision_model");
  refuse("llava/vicuna", "text_config", "rope_parameters", {{"rope_type", "llama3"}}, "'llama3'");
  refuse("llava/vicuna", "", "vision_feature_layer", -5, "vision_feature_layer -5 of a tower of 3 layers");
  refuse("llava/vicuna", "", "vision_feature_select_strategy", "cls", "'cls', expected 'default' or 'full'");
  refuse("gemma3/tied", "", "mm_tokens_per_image", 16, "a square whose side divides the 6 patches");
  refuse("gemma3/tied", "text_config", "final_logit_softcapping", 30.0, "soft caps are not supported");
  refuse("gemma3/tied", "text_config", "layer_types", {"chunked"}, "expected a list of 3 kinds");
}

// Weights are views of the file, not copies of it; writing to them leaves it as it is.
TEST(Registry, LoadingCopiesNothing) {
  const auto folder = new_folder("mapped");
  save(*load(stored("tied")), folder);
  const auto model = load(folder);
  std::uintptr_t begin = 0, end = 0;
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    if (!line.ends_with((folder / "model.safetensors").string())) continue;
    std::size_t used = 0;
    begin = std::stoull(line, &used, 16);
    end = std::stoull(line.substr(used + 1), nullptr, 16);
  }
  ASSERT_GT(end, begin) << "the file is not mapped";
  for (const auto& item : model->named_parameters()) {
    const auto place = reinterpret_cast<std::uintptr_t>(item.value().const_data_ptr());
    EXPECT_TRUE(begin <= place && place < end) << item.key();
  }
  const at::NoGradGuard no_grad;
  const std::string before = sha256_file(folder / "model.safetensors");
  for (at::Tensor& parameter : model->parameters()) parameter.fill_(2);
  EXPECT_EQ(sha256_file(folder / "model.safetensors"), before);
  EXPECT_FALSE(load(folder)->parameters().front().equal(model->parameters().front()));
}

TEST(Registry, LargeModelsAreWrittenInShards) {
  const auto model = load(stored("tied"));
  FolderContent content = model_content(*model);
  EXPECT_TRUE(split_weights(content).tensors.contains("model.safetensors"));
  content.max_file_bytes = 60'000;
  content = split_weights(content);
  EXPECT_FALSE(content.tensors.contains("model.safetensors"));
  const Json index = Json::parse(content.texts.at("model.safetensors.index.json"));
  const std::size_t count = content.tensors.size();
  EXPECT_GT(count, 2u);
  std::size_t total = 0;
  for (const auto& [file, tensors] : content.tensors) {
    EXPECT_TRUE(file.ends_with(fmt::format("-of-{:05}.safetensors", count))) << file;
    std::size_t bytes = 0;
    for (const auto& [name, tensor] : tensors) {
      EXPECT_EQ(index.at("weight_map").at(name), file);
      bytes += tensor.nbytes();
    }
    EXPECT_TRUE(bytes <= 60'000 || tensors.size() == 1) << file;
    total += bytes;
  }
  EXPECT_EQ(index.at("metadata").at("total_size"), total);
  const auto folder = new_folder("shards");
  FolderContent whole = model_content(*model);
  whole.max_file_bytes = 60'000;
  write_content(whole, folder);
  EXPECT_FALSE(std::filesystem::exists(folder / "model.safetensors"));
  const auto expected = parameters_of(*model), got = parameters_of(*load(folder));
  ASSERT_EQ(got.size(), expected.size());
  for (const auto& [name, tensor] : expected) EXPECT_TRUE(got.at(name).equal(tensor)) << name;
}

// A folder that is written again holds the new weights alone, whatever files the old ones lay in.
TEST(Registry, OlderWeightsAreNotLeftBehind) {
  const auto folder = new_folder("rewritten");
  write_file_atomically(folder / "notes.txt", "kept");
  const auto model = load(stored("tied"));
  const auto rewrite = [&](double value, std::int64_t max_file_bytes) {
    const at::NoGradGuard no_grad;
    for (at::Tensor& parameter : model->parameters()) parameter.fill_(value);
    FolderContent content = model_content(*model);
    content.max_file_bytes = max_file_bytes;
    write_content(content, folder);
    for (const at::Tensor& parameter : load(folder)->parameters())
      EXPECT_TRUE(parameter.eq(value).all().item<bool>()) << value;
  };
  const std::int64_t whole = 1 << 30;
  rewrite(1, whole);
  rewrite(2, 60'000);
  EXPECT_FALSE(std::filesystem::exists(folder / "model.safetensors"));
  rewrite(3, 30'000);  // more of them
  rewrite(4, 60'000);
  rewrite(5, whole);
  std::set<std::string> left;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) left.insert(entry.path().filename().string());
  EXPECT_THAT(left, ElementsAre("config.json", "generation_config.json", "model.safetensors", "notes.txt"));
  // What holds no weights of a model, such as an adapter, leaves them alone.
  write_content({.tensors = {{"adapter_model.safetensors", {{"x", at::ones(2)}}}}, .texts = {}}, folder);
  EXPECT_TRUE(std::filesystem::exists(folder / "model.safetensors"));
}

TEST(Registry, OneErrorListsEveryShardThatDoesNotFit) {
  const auto folder = new_folder("bad_shards");
  FolderContent content = model_content(*load(stored("tied")));
  content.max_file_bytes = 60'000;
  write_content(content, folder);
  Json index = read_json_file(folder / "model.safetensors.index.json");
  const std::string first = "model-00001-of-", second = "model-00002-of-";
  std::string cut, gone;
  for (const auto& [name, file] : index["weight_map"].items()) {
    if (file.get<std::string>().starts_with(first)) cut = file;
    if (file.get<std::string>().starts_with(second)) gone = file;
  }
  std::filesystem::resize_file(folder / cut, 5000);
  std::filesystem::remove(folder / gone);
  index["weight_map"]["no.such.tensor"] = index["weight_map"]["model.norm.weight"];
  index["weight_map"]["no.file"] = 3;
  write_file_atomically(folder / "model.safetensors.index.json", index.dump());
  EXPECT_THAT([&] { load(folder); },
              ThrowsMessage<std::runtime_error>(
                  AllOf(HasSubstr(cut), HasSubstr("truncated"), HasSubstr(gone), HasSubstr("cannot be opened"),
                        HasSubstr("'no.such.tensor' should be in"), HasSubstr("names no file for 'no.file'"))));
}

// Of any dtype, into any dtype, from whole files and shards.
TEST(Registry, WeightsAreConvertedOnLoading) {
  const auto folder = new_folder("converted");
  const auto expected = parameters_of(*load(stored("untied")));
  for (const at::ScalarType written : {at::kFloat, at::kBFloat16, at::kHalf}) {
    FolderContent content = model_content(*load(stored("untied")));
    content.dtype = written;
    content.max_file_bytes = written == at::kHalf ? 30'000 : 1 << 30;
    write_content(content, folder);
    EXPECT_EQ(load(folder)->parameters().front().scalar_type(), written);
    for (const at::ScalarType asked : {at::kFloat, at::kBFloat16, at::kHalf}) {
      const auto got = parameters_of(*load(folder, asked));
      ASSERT_EQ(got.size(), expected.size());
      for (const auto& [name, tensor] : expected) {
        EXPECT_EQ(got.at(name).scalar_type(), asked);
        EXPECT_TRUE(got.at(name).equal(tensor.to(written).to(asked))) << name << written << asked;
      }
    }
  }
}

TEST(Registry, CentredNormsStartAtZero) {
  const auto config = read_json_file(std::filesystem::path(THINKVG_TEST_DATA) / "gemma3/tied/config.json");
  const auto parameters = parameters_of(*create(config, 3));
  EXPECT_TRUE(parameters.at("language_model.model.norm.weight").equal(at::zeros(20)));
  EXPECT_TRUE(parameters.at("vision_tower.vision_model.post_layernorm.weight").equal(at::ones(18)));
}

// LLaVA's own layout: what it lacks is named.
TEST(Registry, ReleasedLlavaSaysWhatIsMissing) {
  const auto data = std::filesystem::path(THINKVG_TEST_DATA) / "llava_med";
  const auto folder = new_folder("llava_med");
  const auto copy = [&](const char* checkpoint) {
    std::filesystem::copy_file(data / checkpoint / "model.safetensors", folder / "model.safetensors",
                               std::filesystem::copy_options::overwrite_existing);
    return read_json_file(data / checkpoint / "config.json");
  };
  Json config = copy("v1");
  write_file_atomically(folder / "config.json", config.dump());
  EXPECT_THAT([&] { load(folder); }, ThrowsMessage<std::runtime_error>(
                                         AllOf(HasSubstr("holds no vision tower"), HasSubstr("somebody/tiny-clip"))));
  config["mm_vision_tower"] = (data / "tiny-clip").string();
  write_file_atomically(folder / "config.json", config.dump());
  EXPECT_EQ(load(folder)->config().at("conversation"), "llava_v1");
  // A tower in the checkpoint needs no CLIP folder: its settings come from its weights.
  config = copy("v1_5");
  config["mm_vision_tower"] = "nowhere/clip";
  write_file_atomically(folder / "config.json", config.dump());
  const auto model = load(folder);
  EXPECT_EQ(model->num_image_tokens({1, 3, 3}), 9);
  EXPECT_EQ(model->config().at("vision_config").at("num_attention_heads"), 1);
  config["mm_projector_type"] = "mlp3x_gelu";
  write_file_atomically(folder / "config.json", config.dump());
  EXPECT_THAT([&] { load(folder); },
              ThrowsMessage<std::runtime_error>(HasSubstr("'mlp3x_gelu'; supported are linear, mlp2x_gelu")));
}

TEST(Registry, TowersOfOneSizeNameOtherGrids) {
  const auto model = load(std::filesystem::path(THINKVG_TEST_DATA) / "llava/vicuna");
  EXPECT_THAT(
      [&] {
        model->encode_images({at::ones({6, 48}), {{1, 2, 3}}});
      },
      ThrowsMessage<std::invalid_argument>(HasSubstr("this tower sees 1 x 3 x 3")));
}

TEST(Qwen2_5Vl, BadInputsAreNamed) {
  const auto model = create(small_config(), 0);
  EXPECT_THAT(
      [&] {
        model->token_positions({5, 5, 7}, {{1, 4, 4}});
      },
      ThrowsMessage<std::invalid_argument>(HasSubstr("picture 1 needs 4 image tokens, 2 came")));
  EXPECT_THAT([&] { model->token_positions({5}, {}); },
              ThrowsMessage<std::invalid_argument>(HasSubstr("there are 0 grids")));
  EXPECT_THAT(
      [&] {
        model->token_positions({7}, {{1, 4, 4}});
      },
      ThrowsMessage<std::invalid_argument>(HasSubstr("1 grids, but image tokens for 0 pictures")));
  EXPECT_THAT(
      [&] {
        model->encode_images({at::ones({16, 95}), {{1, 4, 4}}});
      },
      ThrowsMessage<std::invalid_argument>(HasSubstr("ask for patches [16, 96], got [16, 95]")));
  EXPECT_THAT(
      [&] {
        model->encode_images({at::ones({15, 96}), {{1, 3, 5}}});
      },
      ThrowsMessage<std::invalid_argument>(HasSubstr("multiples of 2")));
  EXPECT_THAT(
      [&] {
        model->embed(at::tensor({5, 5}, at::kLong), at::tensor({0, 1}, at::kLong), at::ones({1, 32}));
      },
      ThrowsMessage<std::invalid_argument>(HasSubstr("2 image rows")));
}

// Two pictures without a token between them are two pictures.
TEST(Qwen2_5Vl, NeighbouringPicturesKeepTheirOwnPositions) {
  const auto model = create(small_config(), 0);
  const TokenPositions got = model->token_positions({5, 5, 5, 9}, {{1, 2, 4}, {1, 2, 2}});
  EXPECT_TRUE(got.positions.equal(at::tensor({0, 0, 2, 3, 0, 0, 2, 3, 0, 1, 2, 3}, at::kLong).view({3, 4})))
      << got.positions;
  EXPECT_EQ(got.next, 4);
}

}  // namespace
}  // namespace thinkvg::models
