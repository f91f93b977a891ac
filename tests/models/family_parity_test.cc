// Against states that tests/parity/write_qwen2_5_vl.py and write_families.py stored with transformers.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <algorithm>
#include <cstdlib>
#include <numeric>

#include "tests/support/oracle.h"
#include "tests/support/temporary_folder.h"
#include "thinkvg/core/files.h"
#include "thinkvg/models/adapters.h"
#include "thinkvg/models/pack.h"
#include "thinkvg/models/qwen2_5_vl.h"
#include "thinkvg/models/safetensors.h"
#include "thinkvg/nn/attention.h"
#include "thinkvg/nn/kv_cache.h"

namespace thinkvg::models {
namespace {

constexpr double kTolerance = 1e-4;

// Folders below tests/data.
const std::vector<std::string>& checkpoints() {
  static const std::vector<std::string> kCheckpoints = {
      "qwen2_5_vl/tied", "qwen2_5_vl/untied", "qwen2_vl/tied",  "qwen2_vl/untied", "qwen3_vl/tied", "qwen3_vl/untied",
      "llava/vicuna",    "llava/mistral",     "llava_med/v1_5", "llava_med/v1",    "gemma3/tied",   "gemma3/untied"};
  return kCheckpoints;
}

std::filesystem::path folder_of(const std::string& checkpoint) { return test::parity_data() / checkpoint; }

std::vector<std::int64_t> to_vector(const at::Tensor& tensor) {
  const at::Tensor plain = tensor.contiguous();
  return {plain.const_data_ptr<std::int64_t>(), plain.const_data_ptr<std::int64_t>() + plain.numel()};
}

// One stored case: the inputs of a sequence and what transformers made of them.
struct Case {
  Case(const std::string& checkpoint, const std::string& name)
      : state(read_safetensors(folder_of(checkpoint) / ("case_" + name + ".safetensors"))) {
    ids = to_vector(state.at("ids"));
    labels = state.at("labels").clone();
    if (!state.contains("grids")) return;
    patches.values = state.at("pixel_values").clone();
    const at::Tensor grids = state.at("grids");
    for (std::int64_t i = 0; i < grids.size(0); ++i) {
      patches.grids.push_back(
          {grids[i][0].item<std::int64_t>(), grids[i][1].item<std::int64_t>(), grids[i][2].item<std::int64_t>()});
    }
  }

  std::map<std::string, at::Tensor> state;
  std::vector<std::int64_t> ids;
  at::Tensor labels;
  PixelPatches patches;
};

// Features of each picture.
std::vector<at::Tensor> features_of(VisionLanguageModel& model, const PixelPatches& patches) {
  if (patches.grids.empty()) return {};
  std::vector<std::int64_t> counts;
  for (const ImageGrid& grid : patches.grids) counts.push_back(model.num_image_tokens(grid));
  return model.encode_images(patches).split_with_sizes(counts);
}

// A case with further tokens behind it.
PackBuilder::Sequence sequence_of(const VisionLanguageModel& model, const Case& input, std::vector<at::Tensor> features,
                                  const std::vector<std::int64_t>& more = {}) {
  const TokenPositions start = model.token_positions(input.ids, input.patches.grids);
  PackBuilder::Sequence sequence;
  sequence.ids = input.ids;
  for (std::size_t i = 0; i < input.ids.size(); ++i)
    if (input.ids[i] == model.special_tokens().image) sequence.image_rows.push_back(static_cast<std::int64_t>(i));
  sequence.ids.insert(sequence.ids.end(), more.begin(), more.end());
  sequence.positions = at::cat({start.positions, text_positions(start.next, std::ssize(more))}, 1);
  sequence.image_features = std::move(features);
  return sequence;
}

at::Tensor logits_of(VisionLanguageModel& model, const Pack& pack) {
  nn::PackedAttention attention(pack.layout);
  return model.logits(run_pack(model, pack, attention));
}

at::Tensor forward(VisionLanguageModel& model, const Case& input, const std::vector<std::int64_t>& more = {}) {
  PackBuilder builder;
  builder.add(sequence_of(model, input, features_of(model, input.patches), more));
  return logits_of(model, builder.build(at::kCPU));
}

// Mean over the tokens that are predicted.
at::Tensor loss_of(const at::Tensor& logits, const at::Tensor& labels) {
  const std::int64_t last = labels.size(0) - 1;
  return at::cross_entropy_loss(logits.narrow(0, 0, last), labels.narrow(0, 1, last));
}

double largest_difference(const at::Tensor& a, const at::Tensor& b) { return (a - b).abs().max().item<double>(); }

std::map<std::string, at::Tensor> gradients(const VisionLanguageModel& model) {
  std::map<std::string, at::Tensor> result;
  for (const auto& item : model.named_parameters()) {
    const at::Tensor gradient = item.value().grad();
    result.emplace(item.key(), gradient.defined() ? gradient.clone() : at::zeros_like(item.value()));
  }
  return result;
}

void expect_equal_gradients(const std::map<std::string, at::Tensor>& got,
                            const std::map<std::string, at::Tensor>& expected) {
  ASSERT_EQ(got.size(), expected.size());
  for (const auto& [name, reference] : expected) {
    // The bias of a key without rotation changes no softmax: its gradient is rounding alone, of its weight's size.
    const std::string bias = "self_attn.k_proj.bias";
    const bool is_rounding = name.starts_with("vision_tower.") && name.ends_with(bias);
    const std::string weight =
        name.substr(0, name.size() - std::min(name.size(), std::string("bias").size())) + "weight";
    const double norm = expected.at(is_rounding ? weight : name).norm().item<double>();
    const double difference = (got.at(name) - reference).norm().item<double>();
    EXPECT_LE(difference, kTolerance * norm + 1e-9)
        << "gradient of " << name << ": norm of the difference " << difference << ", largest entry "
        << largest_difference(got.at(name), reference) << ", norm of the reference " << norm;
  }
}

std::string test_name(std::string text) {
  std::replace(text.begin(), text.end(), '/', '_');
  return text;
}

class FamilyParity : public testing::TestWithParam<std::tuple<std::string, std::string>> {
 protected:
  std::shared_ptr<VisionLanguageModel> model_ = load(folder_of(std::get<0>(GetParam())));
  Case case_{std::get<0>(GetParam()), std::get<1>(GetParam())};
};

// Those with pictures.
class FamilyPictureParity : public FamilyParity {};

TEST_P(FamilyParity, PositionsAreIdentical) {
  const TokenPositions got = model_->token_positions(case_.ids, case_.patches.grids);
  EXPECT_TRUE(got.positions.equal(case_.state.at("positions"))) << got.positions;
  EXPECT_EQ(got.next, case_.state.at("next_position").item<std::int64_t>());
}

TEST_P(FamilyPictureParity, ImageFeaturesAreEqual) {
  const at::NoGradGuard no_grad;
  const at::Tensor got = model_->encode_images(case_.patches);
  ASSERT_EQ(got.sizes(), case_.state.at("image_features").sizes());
  EXPECT_LE(largest_difference(got, case_.state.at("image_features")), kTolerance);
}

TEST_P(FamilyParity, LogitsLossAndEveryGradientAreEqual) {
  const at::Tensor logits = forward(*model_, case_);
  ASSERT_EQ(logits.sizes(), case_.state.at("logits").sizes());
  EXPECT_LE(largest_difference(logits, case_.state.at("logits")), kTolerance);
  const at::Tensor loss = loss_of(logits, case_.labels);
  EXPECT_NEAR(loss.item<double>(), case_.state.at("loss").item<double>(), kTolerance);
  loss.backward();
  std::map<std::string, at::Tensor> stored;
  for (const auto& [name, tensor] : case_.state)
    if (name.starts_with("grad:")) stored.emplace(model_->registered_name(name.substr(5)), tensor);
  std::map<std::string, at::Tensor> expected;
  std::size_t num_matched = 0;
  for (const auto& item : model_->named_parameters()) {
    const auto found = stored.find(item.key());
    num_matched += found != stored.end() ? 1 : 0;
    expected.emplace(item.key(), found == stored.end() ? at::zeros_like(item.value()) : found->second);
  }
  EXPECT_EQ(num_matched, stored.size()) << "a stored gradient has no parameter";
  EXPECT_GT(num_matched, 10u);
  expect_equal_gradients(gradients(*model_), expected);
}

TEST_P(FamilyParity, CheckpointingChangesNoGradient) {
  loss_of(forward(*model_, case_), case_.labels).backward();
  const auto expected = gradients(*model_);
  model_->zero_grad();
  model_->set_checkpointing(true);
  loss_of(forward(*model_, case_), case_.labels).backward();
  for (const auto& [name, gradient] : gradients(*model_)) EXPECT_TRUE(gradient.equal(expected.at(name))) << name;
}

TEST_P(FamilyParity, GreedyTokensAreIdentical) {
  const at::NoGradGuard no_grad;
  const std::vector<std::int64_t> expected = to_vector(case_.state.at("greedy"));
  const std::vector<at::Tensor> features = features_of(*model_, case_.patches);
  std::vector<std::int64_t> got;
  while (got.size() < expected.size()) {
    PackBuilder builder;
    builder.add(sequence_of(*model_, case_, features, got));
    const at::Tensor logits = logits_of(*model_, builder.build(at::kCPU));
    got.push_back(logits.select(0, logits.size(0) - 1).argmax().item<std::int64_t>());
  }
  EXPECT_EQ(got, expected);
}

// One prefill, then a token a step out of a cache: the logits of the full pass, for fp32 and (through other code) fp64.
TEST_P(FamilyParity, CachedDecodingEqualsTheFullPass) {
  const at::NoGradGuard no_grad;
  const std::vector<std::int64_t> more = to_vector(case_.state.at("greedy").narrow(0, 0, 16));
  const std::vector<std::int64_t> pages = {5, 0, 7, 2, 9, 4, 1, 8, 3, 6, 11, 10, 15, 12, 13, 14};
  for (const at::ScalarType type : {at::kFloat, at::kDouble}) {
    model_->to(type);
    const at::Tensor expected = forward(*model_, case_, more);
    PackBuilder builder;
    builder.add(sequence_of(*model_, case_, features_of(*model_, case_.patches)));
    const Pack pack = builder.build(at::kCPU);
    const auto length = std::ssize(case_.ids);
    ASSERT_LE(nn::PagedKvCache::pages_for(length + std::ssize(more)), std::ssize(pages));
    nn::PagedKvCache cache({model_->num_layers(), std::ssize(pages), model_->num_kv_heads(), model_->head_dim()},
                           at::TensorOptions(type));
    nn::PagedAttention prefill(cache, {{pages, 0}}, pack.layout);
    const at::Tensor hidden = run_pack(*model_, pack, prefill);
    EXPECT_LE(largest_difference(model_->logits(hidden), expected.narrow(0, 0, length)), kTolerance) << type;
    const std::int64_t next = model_->token_positions(case_.ids, case_.patches.grids).next;
    for (std::int64_t i = 0; i < std::ssize(more); ++i) {
      nn::PagedAttention step(cache, {{pages, length + i}}, {{1}, {}});
      const at::Tensor id = at::tensor({more[static_cast<std::size_t>(i)]}, at::kLong);
      const at::Tensor state = model_->decode(model_->embed(id, {}, {}), text_positions(next + i, 1), step);
      EXPECT_LE(largest_difference(model_->logits(state)[0], expected[length + i]), kTolerance)
          << type << " step " << i;
    }
  }
}

// The beginning of a prompt, with a part of its picture perhaps, lies in the cache already.
TEST_P(FamilyParity, APromptWithAPastEqualsTheFullPass) {
  const at::NoGradGuard no_grad;
  const std::int64_t length = std::ssize(case_.ids);
  const std::int64_t past = std::min(nn::PagedKvCache::kPageTokens, length / 2);
  std::vector<std::int64_t> pages(static_cast<std::size_t>(nn::PagedKvCache::pages_for(length)));
  std::iota(pages.rbegin(), pages.rend(), 0);
  PackBuilder builder;
  const std::vector<at::Tensor> features = features_of(*model_, case_.patches);
  const PackBuilder::Sequence whole = sequence_of(*model_, case_, features);
  builder.add(whole);
  const Pack pack = builder.build(at::kCPU);
  nn::PagedKvCache cache({model_->num_layers(), std::ssize(pages), model_->num_kv_heads(), model_->head_dim()},
                         at::TensorOptions(at::kFloat));
  nn::PagedAttention first(cache, {{pages, 0}}, pack.layout);
  const at::Tensor expected = run_pack(*model_, pack, first);

  PackBuilder::Sequence rest;
  rest.ids.assign(whole.ids.begin() + past, whole.ids.end());
  rest.positions = whole.positions.narrow(1, past, length - past);
  std::size_t row = 0;
  for (const at::Tensor& picture : features) {
    std::int64_t skipped = 0;
    for (std::int64_t i = 0; i < picture.size(0); ++i, ++row) {
      if (whole.image_rows[row] < past)
        ++skipped;
      else
        rest.image_rows.push_back(whole.image_rows[row] - past);
    }
    if (skipped < picture.size(0)) rest.image_features.push_back(picture.narrow(0, skipped, picture.size(0) - skipped));
  }
  PackBuilder rest_builder;
  rest_builder.add(rest);
  const Pack rest_pack = rest_builder.build(at::kCPU);
  nn::PagedAttention second(cache, {{pages, past}}, rest_pack.layout);
  EXPECT_LE(largest_difference(run_pack(*model_, rest_pack, second), expected.narrow(0, past, length - past)),
            kTolerance);
}

INSTANTIATE_TEST_SUITE_P(, FamilyParity,
                         testing::Combine(testing::ValuesIn(checkpoints()), testing::Values("text", "one", "several")),
                         [](const auto& info) {
                           return test_name(std::get<0>(info.param) + "_" + std::get<1>(info.param));
                         });

INSTANTIATE_TEST_SUITE_P(, FamilyPictureParity,
                         testing::Combine(testing::ValuesIn(checkpoints()), testing::Values("one", "several")),
                         [](const auto& info) {
                           return test_name(std::get<0>(info.param) + "_" + std::get<1>(info.param));
                         });

class FamilyPackingParity : public testing::TestWithParam<std::string> {};

// Sequences end to end, pictures in some: the same logits and gradients as one after the other.
TEST_P(FamilyPackingParity, PackedEqualsSeparate) {
  const auto model = load(folder_of(GetParam()));
  const std::vector<Case> cases = {Case(GetParam(), "several"), Case(GetParam(), "text"), Case(GetParam(), "one")};
  std::vector<at::Tensor> separate;
  at::Tensor total = at::zeros({});
  for (const Case& input : cases) {
    separate.push_back(forward(*model, input));
    total = total + loss_of(separate.back(), input.labels);
  }
  total.backward();
  const auto expected = gradients(*model);
  model->zero_grad();

  PixelPatches patches;
  std::vector<at::Tensor> values;
  for (const Case& input : cases) {
    if (input.patches.grids.empty()) continue;
    values.push_back(input.patches.values);
    patches.grids.insert(patches.grids.end(), input.patches.grids.begin(), input.patches.grids.end());
  }
  patches.values = at::cat(values);
  const std::vector<at::Tensor> features = features_of(*model, patches);
  PackBuilder builder;
  std::vector<std::int64_t> lengths;
  auto next = features.begin();
  for (const Case& input : cases) {
    const auto end = next + std::ssize(input.patches.grids);
    builder.add(sequence_of(*model, input, {next, end}));
    next = end;
    lengths.push_back(std::ssize(input.ids));
  }
  const std::vector<at::Tensor> parts = logits_of(*model, builder.build(at::kCPU)).split_with_sizes(lengths);
  total = at::zeros({});
  for (std::size_t i = 0; i < cases.size(); ++i) {
    EXPECT_LE(largest_difference(parts[i], separate[i]), 1e-5) << "sequence " << i;
    total = total + loss_of(parts[i], cases[i].labels);
  }
  total.backward();
  expect_equal_gradients(gradients(*model), expected);
}

// One prompt with three continuations: the same as three full sequences.
TEST_P(FamilyPackingParity, SharedPrefixEqualsFullSequences) {
  const auto model = load(folder_of(GetParam()));
  const Case prompt(GetParam(), "one");
  const auto prompt_length = std::ssize(prompt.ids);
  const std::vector<std::vector<std::int64_t>> answers = {
      {5, 9, 21, 4, 33, 8, 50, 6, 12, 30, 31, 14}, {11}, {7, 7, 40}};

  std::vector<at::Tensor> expected_logits;
  at::Tensor total = at::zeros({});
  for (const auto& answer : answers) {
    const at::Tensor logits = forward(*model, prompt, answer).narrow(0, prompt_length - 1, std::ssize(answer) + 1);
    expected_logits.push_back(logits.detach());
    total = total + at::cross_entropy_loss(logits.slice(0, 0, -1), at::tensor(answer, at::kLong));
  }
  total.backward();
  const auto expected = gradients(*model);
  model->zero_grad();

  PackBuilder builder;
  builder.add(sequence_of(*model, prompt, features_of(*model, prompt.patches)));
  const std::int64_t next = model->token_positions(prompt.ids, prompt.patches.grids).next;
  for (const auto& answer : answers) builder.add({answer, text_positions(next, std::ssize(answer)), {}, {}, 0});
  const at::Tensor logits = logits_of(*model, builder.build(at::kCPU));
  total = at::zeros({});
  std::int64_t offset = prompt_length;
  for (std::size_t i = 0; i < answers.size(); ++i) {
    const auto length = std::ssize(answers[i]);
    const at::Tensor own = at::cat({logits.narrow(0, prompt_length - 1, 1), logits.narrow(0, offset, length)});
    EXPECT_LE(largest_difference(own, expected_logits[i]), 1e-5) << "continuation " << i;
    total = total + at::cross_entropy_loss(own.slice(0, 0, -1), at::tensor(answers[i], at::kLong));
    offset += length;
  }
  total.backward();
  expect_equal_gradients(gradients(*model), expected);
}

// Adapters of the language model, the projector and the tower, none of which is new.
Adapters make_adapters(const std::shared_ptr<VisionLanguageModel>& model) {
  LoraOptions options;
  options.rank = 3;
  options.parts = {"language", "projector", "vision"};
  return Adapters(model, options, 5);
}
void fill_adapters(const Adapters& adapters) {
  at::manual_seed(3);
  for (const auto& [name, tensor] : adapters.tensors()) tensor.normal_(0, 0.05);
}

TEST_P(FamilyPackingParity, AdaptersWorkComeBackAndMerge) {
  const at::NoGradGuard no_grad;
  const auto model = load(folder_of(GetParam()));
  const Case input(GetParam(), "one");
  const at::Tensor plain = forward(*model, input);
  Adapters adapters = make_adapters(model);
  EXPECT_TRUE(forward(*model, input).equal(plain)) << "new adapters change nothing";
  fill_adapters(adapters);
  const at::Tensor adapted = forward(*model, input);
  EXPECT_GT(largest_difference(adapted, plain), 1e-2);
  const test::TemporaryFolder folder;
  write_content(adapters.content("base"), folder.path());
  const auto again = load(folder_of(GetParam()));
  const Adapters read(again, folder.path());
  EXPECT_EQ(read.size(), adapters.size());
  EXPECT_TRUE(forward(*again, input).equal(adapted));
  adapters.merge();
  EXPECT_LE(largest_difference(forward(*model, input), adapted), 1e-4);
}

// bfloat16 and float16 give float32's logits but for their rounding, in a whole pass and out of a cache, and train.
TEST_P(FamilyPackingParity, NarrowWeightsStayClose) {
  const Case input(GetParam(), "several");
  const auto wide = load(folder_of(GetParam()), at::kFloat);
  const auto length = std::ssize(input.ids);
  const std::vector<std::int64_t> more = {7};
  const auto distance = [](const at::Tensor& got, const at::Tensor& wanted) {
    return ((got.to(at::kFloat) - wanted).norm() / wanted.norm()).item<double>();
  };
  at::Tensor expected;
  {
    const at::NoGradGuard no_grad;
    expected = forward(*wide, input, more);
  }
  for (const auto& [type, tolerance] : {std::pair(at::kBFloat16, 0.1), std::pair(at::kHalf, 0.0125)}) {
    const auto model = load(folder_of(GetParam()), type);
    const at::Tensor logits = forward(*model, input, more);
    EXPECT_EQ(logits.scalar_type(), type);
    EXPECT_LE(distance(logits.detach(), expected), tolerance) << type;
    loss_of(logits.narrow(0, 0, length).to(at::kFloat), input.labels).backward();
    for (const auto& [name, gradient] : gradients(*model)) EXPECT_TRUE(gradient.isfinite().all().item<bool>()) << name;

    const at::NoGradGuard no_grad;
    std::vector<std::int64_t> pages(static_cast<std::size_t>(nn::PagedKvCache::pages_for(length + 1)));
    std::iota(pages.begin(), pages.end(), 0);
    nn::PagedKvCache cache({model->num_layers(), std::ssize(pages), model->num_kv_heads(), model->head_dim()},
                           at::TensorOptions(type));
    PackBuilder builder;
    builder.add(sequence_of(*model, input, features_of(*model, input.patches)));
    const Pack pack = builder.build(at::kCPU);
    nn::PagedAttention prefill(cache, {{pages, 0}}, pack.layout);
    const at::Tensor first = model->logits(run_pack(*model, pack, prefill));
    EXPECT_LE(distance(first, expected.narrow(0, 0, length)), tolerance) << type;
    nn::PagedAttention step(cache, {{pages, length}}, {{1}, {}});
    const std::int64_t next = model->token_positions(input.ids, input.patches.grids).next;
    const at::Tensor state =
        model->decode(model->embed(at::tensor(more, at::kLong), {}, {}), text_positions(next, 1), step);
    EXPECT_LE(distance(model->logits(state)[0], expected[length]), 2 * tolerance) << type;
  }
}

// What save() writes is the model.
TEST_P(FamilyPackingParity, SavedModelsComeBack) {
  const at::NoGradGuard no_grad;
  const auto model = load(folder_of(GetParam()));
  for (at::Tensor& parameter : model->parameters()) parameter.mul_(0.9);  // not the checkpoint that came
  const Case input(GetParam(), "several");
  const test::TemporaryFolder folder;
  save(*model, folder.path());
  const auto again = load(folder.path());
  EXPECT_EQ(again->special_tokens().end, model->special_tokens().end);
  EXPECT_EQ(again->special_tokens().image, model->special_tokens().image);
  EXPECT_TRUE(forward(*again, input).equal(forward(*model, input)));
}

INSTANTIATE_TEST_SUITE_P(, FamilyPackingParity, testing::ValuesIn(checkpoints()),
                         [](const auto& info) { return test_name(info.param); });

TEST(Qwen2_5VlParity, WindowOrderIsIdentical) {
  for (const std::string checkpoint : {"tied", "untied"}) {
    for (const std::string name : {"one", "several"}) {
      const Case input("qwen2_5_vl/" + checkpoint, name);
      const Json vision = load(folder_of("qwen2_5_vl/" + checkpoint))->config().at("vision_config");
      const WindowOrder order = window_order(input.patches.grids, {vision.at("window_size").get<std::int64_t>(),
                                                                   vision.at("patch_size").get<std::int64_t>(), 2});
      EXPECT_EQ(order.units, to_vector(input.state.at("window_order")));
      std::vector<std::int64_t> boundaries = {0};
      for (const std::int64_t length : order.window_lengths) boundaries.push_back(boundaries.back() + length);
      EXPECT_EQ(boundaries, to_vector(input.state.at("window_boundaries")));
      EXPECT_GT(order.window_lengths.size(), input.patches.grids.size()) << "some picture should have several windows";
    }
  }
}

// What save() writes is a checkpoint of transformers, and an adapter's folder one of PEFT.
TEST(OpenInTransformersParity, SavedModelsGiveTheSameLogits) {
  const test::Oracle oracle = test::find_oracle("torch transformers peft");
  if (oracle.python.empty()) GTEST_SKIP() << oracle.reason;
  const test::TemporaryFolder base;
  std::string command = oracle.python + " " THINKVG_SOURCE_DIR "/tests/parity/open_in_transformers.py";
  for (const std::string& checkpoint : checkpoints()) {
    const at::NoGradGuard no_grad;
    const auto model = load(folder_of(checkpoint));
    for (at::Tensor& parameter : model->parameters()) parameter.mul_(0.9);  // not the checkpoint that came
    const Case input(checkpoint, "several");
    const std::filesystem::path folder = base.path() / test_name(checkpoint);
    std::filesystem::create_directories(folder);
    save(*model, folder);
    const at::Tensor logits = forward(*model, input);
    const Adapters adapters = make_adapters(model);
    fill_adapters(adapters);
    std::filesystem::create_directories(folder / "adapter");
    write_content(adapters.content(folder.string()), folder / "adapter");
    write_safetensors({{"ids", input.state.at("ids")},
                       {"pixel_values", input.patches.values},
                       {"grids", input.state.at("grids")},
                       {"logits", logits},
                       {"adapted_logits", forward(*model, input)},
                       {"end", at::tensor(model->special_tokens().end, at::kLong)}},
                      folder / "numbers.safetensors");
    command += " " + folder.string();
  }
  EXPECT_EQ(std::system(command.c_str()), 0) << command;
}

// The states are written anew with the pinned packages, and every test against stored states runs on the new ones.
// Where the packages are not installed, the stored ones are all there is.
TEST(FreshStatesParity, TheStoredStatesAreWhatTheScriptsWrite) {
  const test::Oracle oracle = test::find_oracle("torch torchvision transformers peft");
  if (oracle.python.empty()) GTEST_SKIP() << oracle.reason;
  const test::TemporaryFolder made;
  const std::string data = made.path().string();
  for (const std::string script :
       {"write_families.py --out " + data, "write_qwen2_5_vl.py --out " + data + "/qwen2_5_vl",
        "write_lora.py --models " + data + "/qwen2_5_vl --out " + data + "/lora",
        "write_qwen_processor.py --out " + data + "/qwen_processor/state.safetensors",
        "write_square_processors.py --out " + data + "/square_processors"}) {
    const test::ProcessResult written =
        test::run_shell(oracle.python + " " THINKVG_SOURCE_DIR "/tests/parity/" + script);
    ASSERT_EQ(written.exit_code, 0) << script << "\n" << written.err;
  }
  const std::string program = std::filesystem::read_symlink("/proc/self/exe").string();
  const test::ProcessResult result =
      test::run_shell("THINKVG_PARITY_DATA=" + data + " " + program +
                      " --gtest_filter='*Family*Parity.*:Qwen2_5VlParity.*:*AdaptersParity.*:ImageProcessorParity.*'");
  EXPECT_EQ(result.exit_code, 0) << result.out;
  EXPECT_EQ(result.out.find("[  SKIPPED ]"), std::string::npos) << result.out;
}

}  // namespace
}  // namespace thinkvg::models
