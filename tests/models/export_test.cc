#include "thinkvg/models/export.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <cstdlib>

#include "tests/support/oracle.h"
#include "tests/support/tiny_run.h"
#include "thinkvg/core/files.h"
#include "thinkvg/models/adapters.h"
#include "thinkvg/models/bundle.h"
#include "thinkvg/models/pack.h"

namespace thinkvg::models {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

ExportOptions options_to(const fs::path& out) {
  ExportOptions options;
  options.model = test::tiny_run().model.string();
  options.out = out.string();
  return options;
}

std::map<std::string, at::Tensor> weights_of(const fs::path& folder) {
  std::map<std::string, at::Tensor> weights;
  const auto model = load(folder);
  for (const auto& item : model->named_parameters()) weights[item.key()] = item.value().detach();
  return weights;
}

fs::path some_picture() {
  for (const auto& entry : fs::recursive_directory_iterator(test::tiny_run().images))
    if (entry.is_regular_file()) return entry.path();
  throw std::runtime_error("no picture");
}

TEST(Export, KeepsAModelAsItIs) {
  const test::TemporaryFolder made;
  ExportOptions options = options_to(made / "new" / "model");
  options.verify = true;
  options.image = some_picture().string();
  const ExportPlan plan = plan_export(options);
  EXPECT_FALSE(fs::exists(made / "new"));
  EXPECT_EQ(plan.loaded_dtype, "float32");
  EXPECT_EQ(plan.written_dtype, "float32");
  EXPECT_EQ(plan.written_bytes, 4 * plan.num_parameters);
  EXPECT_GE(plan.memory_bytes, plan.written_bytes);
  const ExportReport report = export_model(options);
  ASSERT_TRUE(report.verified);
  EXPECT_GT(report.verified->num_positions, 10);
  EXPECT_LT(report.verified->largest_difference, 1e-5);
  EXPECT_EQ(report.verified->same_choice, 1.0);
  const auto before = weights_of(options.model), after = weights_of(options.out);
  ASSERT_EQ(before.size(), after.size());
  for (const auto& [name, tensor] : before) EXPECT_TRUE(tensor.equal(after.at(name))) << name;
  for (const char* name : {"tokenizer.model", "tokenizer_config.json", "preprocessor_config.json",
                           "generation_config.json", "chat_template.jinja"}) {
    if (!fs::exists(fs::path(options.model) / name)) continue;
    EXPECT_EQ(sha256_file(fs::path(options.model) / name), sha256_file(fs::path(options.out) / name)) << name;
  }
  std::size_t num_files = 0;
  for (const auto& entry : fs::directory_iterator(options.out)) num_files += entry.is_regular_file() ? 1 : 0;
  EXPECT_EQ(report.files.size(), num_files);
  EXPECT_THAT([&] { export_model(options); }, ThrowsMessage<std::invalid_argument>(HasSubstr("exists already")));
}

TEST(Export, ShardsHoldAtMostWhatIsAskedForAndLoadAsOne) {
  const test::TemporaryFolder made;
  for (const auto& [dtype, type] : {std::pair("bfloat16", at::kBFloat16), std::pair("float16", at::kHalf)}) {
    ExportOptions options = options_to(made / dtype);
    options.dtype = dtype;
    options.shard_size = "20KB";
    options.verify = true;
    const ExportReport report = export_model(options);
    ASSERT_TRUE(report.verified);
    EXPECT_GT(report.verified->largest_difference, 0);
    const Json index = read_json_file(fs::path(options.out) / "model.safetensors.index.json");
    EXPECT_EQ(index["metadata"]["total_size"], plan_export([&] {
                                                 ExportOptions again = options;
                                                 again.out += "-again";
                                                 return again;
                                               }())
                                                   .written_bytes);
    std::size_t num_shards = 0;
    for (const auto& [name, bytes] : report.files) {
      if (!name.ends_with(".safetensors")) continue;
      ++num_shards;
      const auto tensors = read_safetensors(fs::path(options.out) / name);
      std::size_t data = 0;
      for (const auto& [key, tensor] : tensors) {
        EXPECT_EQ(index["weight_map"][key], name);
        EXPECT_EQ(tensor.scalar_type(), type);
        data += tensor.nbytes();
      }
      EXPECT_TRUE(data <= 20000 || tensors.size() == 1) << name;
    }
    EXPECT_GT(num_shards, 3u);
    EXPECT_EQ(read_json_file(fs::path(options.out) / "config.json")["dtype"], dtype);
    const auto before = weights_of(options.model), after = weights_of(options.out);
    for (const auto& [name, tensor] : before) EXPECT_TRUE(tensor.to(type).equal(after.at(name))) << name;
    // Once more, from float16 or bfloat16 as it is: nothing may change.
    ExportOptions again = options_to(made / (std::string(dtype) + "-kept"));
    again.model = options.out;
    again.verify = true;
    EXPECT_LT(export_model(again).verified->largest_difference, 1e-5);
    for (const auto& [name, tensor] : weights_of(again.out)) EXPECT_TRUE(tensor.equal(after.at(name))) << name;
  }
}

TEST(Export, AdaptersAreMerged) {
  const test::TemporaryFolder made;
  const fs::path adapter = made / "adapter";
  fs::create_directories(adapter);
  at::Tensor change;
  {
    const at::NoGradGuard no_grad;
    const auto model = load(test::tiny_run().model);
    Adapters adapters(model, LoraOptions{.rank = 2, .alpha = 8, .target_modules = {"q_proj", "down_proj"}}, 3);
    for (auto& [name, tensor] : adapters.tensors())
      if (name.ends_with("lora_B.weight")) tensor.fill_(0.05);
    write_content(adapters.content(test::tiny_run().model.string()), adapter);
  }
  ExportOptions options = options_to(made / "merged");
  options.model = adapter.string();
  options.verify = true;
  EXPECT_EQ(plan_export(options).adapter, adapter);
  const ExportReport report = export_model(options);
  ASSERT_TRUE(report.verified);
  EXPECT_LT(report.verified->largest_difference, 1e-3);
  EXPECT_FALSE(fs::exists(made / "merged" / "adapter_config.json"));
  const auto before = weights_of(test::tiny_run().model), after = weights_of(options.out);
  std::size_t num_changed = 0;
  for (const auto& [name, tensor] : before) {
    const bool changed = !tensor.equal(after.at(name));
    num_changed += changed ? 1 : 0;
    const bool language = name.find("visual") == std::string::npos;
    const bool adapted = name.ends_with("q_proj.weight") || name.ends_with("down_proj.weight");
    EXPECT_EQ(changed, language && adapted) << name;
  }
  EXPECT_EQ(num_changed, 4u);
}

// What the conversion would spoil is not written, nor left half-written.
TEST(Export, SpoiledModelsAreNotWritten) {
  const test::TemporaryFolder made;
  const auto changed_model = [&](const std::string& name,
                                 const std::function<void(const std::string&, at::Tensor&)>& change) {
    const at::NoGradGuard no_grad;
    ModelBundle bundle = load_bundle(test::tiny_run().model);
    for (auto& item : bundle.model->named_parameters()) change(item.key(), item.value());
    fs::create_directories(made / name);
    save_bundle(bundle, made / name);
    return (made / name).string();
  };
  ExportOptions options = options_to(made / "out");
  options.dtype = "float16";
  options.model = changed_model("large", [](const std::string& name, at::Tensor& tensor) {
    if (name.ends_with("norm.weight")) tensor.fill_(1e5);
  });
  EXPECT_THAT([&] { export_model(options); },
              ThrowsMessage<std::runtime_error>(HasSubstr("norm.weight' holds numbers above")));
  options.dtype = "bfloat16";
  options.verify = true;
  options.model = changed_model("flat", [](const std::string& name, at::Tensor& tensor) {
    if (name.ends_with("embed_tokens.weight") || name == "lm_head.weight") tensor.add_(100);
  });
  EXPECT_THAT([&] { export_model(options); }, ThrowsMessage<std::runtime_error>(HasSubstr("nats in the mean")));
  EXPECT_FALSE(fs::exists(made / "out"));
  for (const auto& entry : fs::directory_iterator(made.path()))
    EXPECT_TRUE(entry.path() == made / "large" || entry.path() == made / "flat") << entry.path();
}

TEST(Export, WrongSettingsAreNamed) {
  const test::TemporaryFolder made;
  const auto expect = [&](const std::function<void(ExportOptions&)>& change, const char* message) {
    ExportOptions options = options_to(made / "out");
    change(options);
    EXPECT_THAT([&] { plan_export(options); }, ThrowsMessage<std::invalid_argument>(HasSubstr(message)));
  };
  expect([](ExportOptions& o) { o.dtype = "int8"; }, "must be keep, float32, bfloat16 or float16, but is 'int8'");
  for (const char* size : {"5", "GB", "0GB", "-1GB", "5 GB", "5gb", "99999999GB"})
    expect([&](ExportOptions& o) { o.shard_size = size; }, "shard_size should be");
  expect([](ExportOptions& o) { o.out = ""; }, "a folder to write");
  ExportOptions options = options_to(made / "out");
  options.model = made.path().string();
  EXPECT_THROW(plan_export(options), std::runtime_error);
}

TEST(ExportOpenInTransformersParity, ShardsGiveTheSameLogits) {
  const test::Oracle oracle = test::find_oracle("torch transformers peft");
  if (oracle.python.empty()) GTEST_SKIP() << oracle.reason;
  const at::NoGradGuard no_grad;
  const test::TemporaryFolder made;
  for (const char* dtype : {"float32", "bfloat16"}) {
    ExportOptions options = options_to(made / dtype);
    options.dtype = dtype;
    options.shard_size = "30KB";
    export_model(options);
    ModelBundle bundle = load_bundle(options.out);
    VisionLanguageModel& model = *bundle.model;
    model.to(at::kFloat);
    const ProcessedPicture processed = bundle.processor->process(image::read_picture(some_picture()));
    const ImageGrid grid = processed.patches.grids.front();
    const text::Prompt prompt = text::chat_prompt(*bundle.tokenizer, *bundle.chat, "", "Is there an opacity?",
                                                  {{model.num_image_tokens(grid)}, model.special_tokens().image});
    PackBuilder builder;
    builder.add({prompt.ids,
                 model.token_positions(prompt.ids, {grid}).positions,
                 prompt.image_rows,
                 {model.encode_images(processed.patches)}});
    const Pack pack = builder.build(at::kCPU);
    nn::PackedAttention attention(pack.layout);
    const fs::path numbers = fs::path(options.out) / "numbers.safetensors";
    write_safetensors({{"ids", pack.ids},
                       {"pixel_values", processed.patches.values},
                       {"grids", at::tensor(std::vector<std::int64_t>{grid.t, grid.h, grid.w}, at::kLong).view({1, 3})},
                       {"logits", model.logits(run_pack(model, pack, attention))},
                       {"end", at::tensor(model.special_tokens().end, at::kLong)}},
                      numbers);
    const std::string command =
        oracle.python + " " THINKVG_SOURCE_DIR "/tests/parity/open_in_transformers.py " + options.out;
    EXPECT_EQ(std::system(command.c_str()), 0) << command;
  }
}

// Tokenizer, template and processor, too: transformers' ids and pixels of a conversation about a picture.
void expect_same_in_transformers(const std::string& python, const ModelBundle& bundle, const fs::path& folder,
                                 const std::vector<text::Message>& messages) {
  // A square, which the padding to one leaves alone: Qwen's processor knows of none.
  image::Picture picture{.width = 130, .height = 130, .pixels = {}};
  for (std::int64_t i = 0; i < 3 * 130 * 130; ++i) picture.pixels.push_back(static_cast<std::uint8_t>(i * i / 97 + i));
  const ProcessedPicture processed = bundle.processor->process(picture);
  const VisionLanguageModel& model = *bundle.model;
  const text::Prompt prompt = text::build_prompt(
      *bundle.tokenizer, *bundle.chat, messages,
      {{model.num_image_tokens(processed.patches.grids.front())}, model.special_tokens().image}, true);
  write_safetensors({{"picture", at::tensor(picture.pixels, at::kByte).view({130, 130, 3})},
                     {"pixel_values", processed.patches.values},
                     {"ids", at::tensor(prompt.ids, at::kLong)}},
                    folder / "processed.safetensors");
  Json written = Json::array();
  for (const text::Message& message : messages) {
    Json content = Json::array();
    for (const text::MessagePart& part : message.parts)
      content.push_back(part.kind == text::MessagePart::Kind::kImage ? Json({{"type", "image"}})
                                                                     : Json({{"type", "text"}, {"text", part.text}}));
    const char* role = message.role == text::Role::kUser     ? "user"
                       : message.role == text::Role::kSystem ? "system"
                                                             : "assistant";
    written.push_back({{"role", role}, {"content", content}});
  }
  write_file_atomically(folder / "processed.json", written.dump());
  const test::ProcessResult result =
      test::run_process({python, THINKVG_SOURCE_DIR "/tests/parity/open_processor.py", folder.string()});
  EXPECT_EQ(result.exit_code, 0) << result.err;
}

text::MessagePart said(const char* text) { return {text::MessagePart::Kind::kText, text}; }

TEST(ExportOpenInTransformersParity, ProcessorsMakeTheSameIdsAndPixels) {
  const test::Oracle oracle = test::find_oracle("torch torchvision transformers");
  if (oracle.python.empty()) GTEST_SKIP() << oracle.reason;
  const test::TemporaryFolder folder;
  const ModelBundle bundle = load_bundle(test::tiny_run().model);
  save_bundle(bundle, folder.path());
  expect_same_in_transformers(
      oracle.python, bundle, folder.path(),
      {{text::Role::kUser, {text::MessagePart::image(), said("Is there an opacity, or a nodule (3 mm)?")}}});
}

// A checkpoint in LLaVA's own layout with a tokenizer, read from `folder`/given and saved in `folder`/saved.
// `has_patch_token`: its training had added <im_patch>.
ModelBundle saved_llava(const fs::path& folder, const char* checkpoint, bool has_patch_token = false) {
  const fs::path data = fs::path(THINKVG_TEST_DATA) / "llava_med", given = folder / "given";
  fs::create_directories(given);
  fs::create_directories(folder / "saved");
  fs::copy_file(test::tiny_run().model / "tokenizer.model", given / "tokenizer.model");
  // The released settings name no template.
  Json settings = read_json_file(test::tiny_run().model / "tokenizer_config.json");
  settings.erase("chat_template");
  write_file_atomically(given / "tokenizer_config.json", settings.dump());
  std::int64_t pieces = text::load_tokenizer(given)->vocab_size();
  if (has_patch_token) write_file_atomically(given / "added_tokens.json", Json({{"<im_patch>", pieces++}}).dump());
  Json config = read_json_file(data / checkpoint / "config.json");
  config["vocab_size"] = pieces;
  config["mm_vision_tower"] = (data / "tiny-clip").string();
  write_file_atomically(given / "config.json", config.dump());
  NamedTensors weights;
  for (const auto& [name, tensor] : read_safetensors(data / checkpoint / "model.safetensors"))
    weights.emplace_back(name, name.ends_with("embed_tokens.weight") || name == "lm_head.weight"
                                   ? at::randn({pieces, tensor.size(1)})
                                   : tensor);
  write_safetensors(weights, given / "model.safetensors");
  ModelBundle bundle = load_bundle(given);
  save_bundle(bundle, folder / "saved");
  return bundle;
}

TEST(Bundle, ReleasedLlavaIsSavedWithWhatItsLayoutLacked) {
  for (const char* checkpoint : {"v1", "v1_5"}) {
    for (const bool has_patch_token : {false, true}) {
      const test::TemporaryFolder made;
      const ModelBundle bundle = saved_llava(made.path(), checkpoint, has_patch_token);
      const ModelBundle again = load_bundle(made / "saved");
      const char* name = has_patch_token ? "<im_patch>" : "<image>";
      EXPECT_EQ(again.chat, bundle.chat);
      const std::int64_t image = bundle.model->special_tokens().image;
      EXPECT_EQ(again.model->special_tokens().image, image);
      EXPECT_EQ(again.tokenizer->vocab_size(), image + 1);
      EXPECT_EQ(again.tokenizer->token_id(name), image);
      const Json processor = read_json_file(made / "saved/processor_config.json");
      EXPECT_EQ(processor.at("processor_class"), "LlavaProcessor");
      EXPECT_EQ(processor.at("image_token"), name);
      EXPECT_THAT(read_file(made / "saved/chat_template.jinja"), HasSubstr(name));
      EXPECT_EQ(&text::load_chat_template(made / "saved"), bundle.chat);
      auto texts = bundle_content(again).texts, expected = bundle_content(bundle).texts;
      texts.erase("config.json");  // the end token as one of a list
      expected.erase("config.json");
      EXPECT_TRUE(texts == expected);
    }
  }
}

TEST(ExportOpenInTransformersParity, ReleasedLlavaHasAProcessorThere) {
  const test::Oracle oracle = test::find_oracle("torch torchvision transformers");
  if (oracle.python.empty()) GTEST_SKIP() << oracle.reason;
  const text::Message question{text::Role::kUser, {text::MessagePart::image(), said("Is there an opacity?")}};
  for (const char* checkpoint : {"v1", "v1_5"}) {
    for (const bool has_patch_token : {false, true}) {
      const test::TemporaryFolder made;
      const ModelBundle bundle = saved_llava(made.path(), checkpoint, has_patch_token);
      expect_same_in_transformers(oracle.python, bundle, made / "saved",
                                  {{text::Role::kSystem, {said("Be brief.")}},
                                   question,
                                   {text::Role::kAssistant, {said("Yes.")}},
                                   {text::Role::kUser, {said("Where?")}}});
      if (!has_patch_token) expect_same_in_transformers(oracle.python, bundle, made / "saved", {question});
    }
  }
}

// What transformers' processor classes want beside the picture's settings is handed on.
TEST(Bundle, FilesOfTheProcessorAreHandedOn) {
  const test::TemporaryFolder given, saved;
  for (const auto& entry : fs::directory_iterator(test::tiny_run().model))
    if (entry.is_regular_file()) fs::copy_file(entry.path(), given / entry.path().filename().string());
  write_file_atomically(given / "processor_config.json",
                        R"({"processor_class": "LlavaProcessor", "patch_size": 14, "num_additional_image_tokens": 1,
                            "image_processor": {"max_pixels": 7}})");
  write_file_atomically(given / "video_preprocessor_config.json", R"({"fps": 2})");
  Json drawn = read_json_file(given / "generation_config.json");
  drawn["repetition_penalty"] = 1.05;
  write_file_atomically(given / "generation_config.json", drawn.dump());
  save_bundle(load_bundle(given.path()), saved.path());
  EXPECT_EQ(
      read_json_file(saved / "processor_config.json"),
      Json::parse(R"({"processor_class": "LlavaProcessor", "patch_size": 14, "num_additional_image_tokens": 1})"));
  EXPECT_EQ(read_json_file(saved / "video_preprocessor_config.json"), Json::parse(R"({"fps": 2})"));
  EXPECT_EQ(read_json_file(saved / "generation_config.json"), drawn);
  EXPECT_EQ(read_json_file(saved / "tokenizer_config.json").at("chat_template").get<std::string>(),
            read_file(saved / "chat_template.jinja"));
}

}  // namespace
}  // namespace thinkvg::models
