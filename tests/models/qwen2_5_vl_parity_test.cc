// Against states that tests/parity/write_qwen2_5_vl.py stored with transformers.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <cstdlib>
#include <numeric>

#include "thinkvg/core/files.h"
#include "thinkvg/models/qwen2_5_vl.h"
#include "thinkvg/models/safetensors.h"
#include "thinkvg/nn/attention.h"

namespace thinkvg::models {
namespace {

constexpr double kTolerance = 1e-4;

std::filesystem::path folder_of(const std::string& checkpoint) {
  return std::filesystem::path(THINKVG_TEST_DATA) / "qwen2_5_vl" / checkpoint;
}

std::vector<std::int64_t> to_vector(const at::Tensor& tensor) {
  const at::Tensor plain = tensor.contiguous();
  return {plain.const_data_ptr<std::int64_t>(), plain.const_data_ptr<std::int64_t>() + plain.numel()};
}

// One stored case: the inputs of a sequence and what transformers made of them.
struct Case {
  explicit Case(const std::string& checkpoint, const std::string& name)
      : state(read_safetensors(folder_of(checkpoint) / ("case_" + name + ".safetensors"))) {
    ids = state.at("ids").clone();
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
  at::Tensor ids;
  at::Tensor labels;
  PixelPatches patches;
};

at::Tensor embed(VisionLanguageModel& model, const Case& input) {
  if (input.patches.grids.empty()) return model.embed(input.ids, {}, {});
  const at::Tensor rows = (input.ids == model.special_tokens().image).nonzero().flatten();
  return model.embed(input.ids, rows, model.encode_images(input.patches));
}

at::Tensor positions_of(const VisionLanguageModel& model, const Case& input) {
  return model.token_positions(to_vector(input.ids), input.patches.grids).positions;
}

at::Tensor forward(VisionLanguageModel& model, const Case& input) {
  nn::PackedAttention attention({{input.ids.size(0)}, {}});
  return model.logits(model.decode(embed(model, input), positions_of(model, input), attention));
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
    const double norm = reference.norm().item<double>();
    const double difference = (got.at(name) - reference).norm().item<double>();
    EXPECT_LE(difference, kTolerance * norm + 1e-9)
        << "gradient of " << name << ": norm of the difference " << difference << ", largest entry "
        << largest_difference(got.at(name), reference) << ", norm of the reference " << norm;
  }
}

class Qwen2_5VlParity : public testing::TestWithParam<std::tuple<std::string, std::string>> {
 protected:
  std::shared_ptr<VisionLanguageModel> model_ = load(folder_of(std::get<0>(GetParam())));
  Case case_{std::get<0>(GetParam()), std::get<1>(GetParam())};
};

// Those with pictures.
class Qwen2_5VlPictureParity : public Qwen2_5VlParity {};

TEST_P(Qwen2_5VlParity, PositionsAreIdentical) {
  const TokenPositions got = model_->token_positions(to_vector(case_.ids), case_.patches.grids);
  EXPECT_TRUE(got.positions.equal(case_.state.at("positions"))) << got.positions;
  EXPECT_EQ(got.next, case_.state.at("next_position").item<std::int64_t>());
}

TEST_P(Qwen2_5VlPictureParity, WindowOrderIsIdentical) {
  const Qwen2_5VlConfig config(model_->config());
  const WindowOrder order = window_order(case_.patches.grids, config.vision);
  EXPECT_EQ(order.units, to_vector(case_.state.at("window_order")));
  std::vector<std::int64_t> boundaries = {0};
  for (const std::int64_t length : order.window_lengths) boundaries.push_back(boundaries.back() + length);
  EXPECT_EQ(boundaries, to_vector(case_.state.at("window_boundaries")));
  EXPECT_GT(order.window_lengths.size(), case_.patches.grids.size()) << "some picture should have several windows";
}

TEST_P(Qwen2_5VlPictureParity, ImageFeaturesAreEqual) {
  const at::NoGradGuard no_grad;
  EXPECT_LE(largest_difference(model_->encode_images(case_.patches), case_.state.at("image_features")), kTolerance);
}

TEST_P(Qwen2_5VlParity, LogitsLossAndEveryGradientAreEqual) {
  const at::Tensor logits = forward(*model_, case_);
  EXPECT_LE(largest_difference(logits, case_.state.at("logits")), kTolerance);
  const at::Tensor loss = loss_of(logits, case_.labels);
  EXPECT_NEAR(loss.item<double>(), case_.state.at("loss").item<double>(), kTolerance);
  loss.backward();
  std::map<std::string, at::Tensor> expected;
  for (const auto& item : model_->named_parameters()) {
    const auto found = case_.state.find("grad:" + item.key());
    expected.emplace(item.key(), found == case_.state.end() ? at::zeros_like(item.value()) : found->second);
  }
  const auto num_stored = std::count_if(case_.state.begin(), case_.state.end(),
                                        [](const auto& item) { return item.first.starts_with("grad:"); });
  const auto num_matched = std::count_if(expected.begin(), expected.end(),
                                         [&](const auto& item) { return case_.state.contains("grad:" + item.first); });
  EXPECT_EQ(num_matched, num_stored) << "a stored gradient has no parameter";
  expect_equal_gradients(gradients(*model_), expected);
}

TEST_P(Qwen2_5VlParity, GreedyTokensAreIdentical) {
  const at::NoGradGuard no_grad;
  const std::vector<std::int64_t> expected = to_vector(case_.state.at("greedy"));
  const TokenPositions prompt = model_->token_positions(to_vector(case_.ids), case_.patches.grids);
  at::Tensor embeddings = embed(*model_, case_);
  std::vector<std::int64_t> got;
  while (got.size() < expected.size()) {
    const auto num_new = static_cast<std::int64_t>(got.size());
    const at::Tensor positions =
        at::cat({prompt.positions, at::arange(prompt.next, prompt.next + num_new).expand({3, num_new})}, 1);
    nn::PackedAttention attention({{embeddings.size(0)}, {}});
    const at::Tensor hidden = model_->decode(embeddings, positions, attention);
    const at::Tensor id = model_->logits(hidden.narrow(0, hidden.size(0) - 1, 1)).argmax(-1);
    got.push_back(id.item<std::int64_t>());
    embeddings = at::cat({embeddings, model_->embed(id, {}, {})});
  }
  EXPECT_EQ(got, expected);
}

INSTANTIATE_TEST_SUITE_P(, Qwen2_5VlParity,
                         testing::Combine(testing::Values("tied", "untied"), testing::Values("text", "one", "several")),
                         [](const auto& info) { return std::get<0>(info.param) + "_" + std::get<1>(info.param); });

INSTANTIATE_TEST_SUITE_P(, Qwen2_5VlPictureParity,
                         testing::Combine(testing::Values("tied", "untied"), testing::Values("one", "several")),
                         [](const auto& info) { return std::get<0>(info.param) + "_" + std::get<1>(info.param); });

class Qwen2_5VlPackingParity : public testing::TestWithParam<std::string> {};

// Two sequences end to end, pictures in both: the same logits and gradients as one after the other.
TEST_P(Qwen2_5VlPackingParity, PackedEqualsSeparate) {
  const auto model = load(folder_of(GetParam()));
  const Case first(GetParam(), "several");
  const Case second(GetParam(), "one");
  const at::Tensor first_logits = forward(*model, first);
  const at::Tensor second_logits = forward(*model, second);
  (loss_of(first_logits, first.labels) + loss_of(second_logits, second.labels)).backward();
  const auto expected = gradients(*model);
  model->zero_grad();

  Case packed = first;
  packed.ids = at::cat({first.ids, second.ids});
  packed.patches.values = at::cat({first.patches.values, second.patches.values});
  packed.patches.grids.insert(packed.patches.grids.end(), second.patches.grids.begin(), second.patches.grids.end());
  nn::PackedAttention attention({{first.ids.size(0), second.ids.size(0)}, {}});
  const at::Tensor positions = at::cat({positions_of(*model, first), positions_of(*model, second)}, 1);
  const at::Tensor logits = model->logits(model->decode(embed(*model, packed), positions, attention));
  const std::vector<at::Tensor> parts = logits.split_with_sizes({first.ids.size(0), second.ids.size(0)});
  EXPECT_LE(largest_difference(parts[0], first_logits), 1e-5);
  EXPECT_LE(largest_difference(parts[1], second_logits), 1e-5);
  (loss_of(parts[0], first.labels) + loss_of(parts[1], second.labels)).backward();
  expect_equal_gradients(gradients(*model), expected);
}

// One prompt with three continuations: the same as three full sequences.
TEST_P(Qwen2_5VlPackingParity, SharedPrefixEqualsFullSequences) {
  const auto model = load(folder_of(GetParam()));
  const Case prompt(GetParam(), "one");
  const std::int64_t image = model->special_tokens().image;
  const std::vector<std::vector<std::int64_t>> answers = {{5, 9, 21, 4, 33, 8, 50}, {11}, {7, 7, 40, 3}};

  std::vector<at::Tensor> expected_logits;
  at::Tensor total = at::zeros({});
  for (const auto& answer : answers) {
    Case full = prompt;
    full.ids = at::cat({prompt.ids, at::tensor(answer, at::kLong)});
    const at::Tensor logits = forward(*model, full).narrow(0, prompt.ids.size(0) - 1, answer.size() + 1);
    expected_logits.push_back(logits.detach());
    total = total + at::cross_entropy_loss(logits.slice(0, 0, -1), at::tensor(answer, at::kLong));
  }
  total.backward();
  const auto expected = gradients(*model);
  model->zero_grad();

  const TokenPositions start = model->token_positions(to_vector(prompt.ids), prompt.patches.grids);
  nn::SequenceLayout layout{{prompt.ids.size(0)}, {-1}};
  std::vector<at::Tensor> ids = {prompt.ids};
  std::vector<at::Tensor> positions = {start.positions};
  for (const auto& answer : answers) {
    const auto length = static_cast<std::int64_t>(answer.size());
    layout.lengths.push_back(length);
    layout.prefix.push_back(0);
    ids.push_back(at::tensor(answer, at::kLong));
    positions.push_back(at::arange(start.next, start.next + length).expand({3, length}));
  }
  const at::Tensor all_ids = at::cat(ids);
  const at::Tensor rows = (all_ids == image).nonzero().flatten();
  nn::PackedAttention attention(layout);
  const at::Tensor embeddings = model->embed(all_ids, rows, model->encode_images(prompt.patches));
  const at::Tensor logits = model->logits(model->decode(embeddings, at::cat(positions, 1), attention));
  total = at::zeros({});
  std::int64_t offset = prompt.ids.size(0);
  for (std::size_t i = 0; i < answers.size(); ++i) {
    const auto length = static_cast<std::int64_t>(answers[i].size());
    const at::Tensor own = at::cat({logits.narrow(0, prompt.ids.size(0) - 1, 1), logits.narrow(0, offset, length)});
    EXPECT_LE(largest_difference(own, expected_logits[i]), 1e-5) << "continuation " << i;
    total = total + at::cross_entropy_loss(own.slice(0, 0, -1), at::tensor(answers[i], at::kLong));
    offset += length;
  }
  total.backward();
  expect_equal_gradients(gradients(*model), expected);
}

INSTANTIATE_TEST_SUITE_P(, Qwen2_5VlPackingParity, testing::Values("tied", "untied"),
                         [](const auto& info) { return info.param; });

// What save() writes is a checkpoint of transformers. Needs a Python that has it: its path in THINKVG_ORACLE_PYTHON.
TEST(Qwen2_5VlOpenInTransformersParity, SavedModelsGiveTheSameLogits) {
  const char* python = std::getenv("THINKVG_ORACLE_PYTHON");
  if (python == nullptr) GTEST_SKIP() << "THINKVG_ORACLE_PYTHON does not name a Python with transformers";
  for (const std::string checkpoint : {"tied", "untied"}) {
    const at::NoGradGuard no_grad;
    const auto model = load(folder_of(checkpoint));
    for (at::Tensor& parameter : model->parameters()) parameter.mul_(0.9);  // not the checkpoint that came
    const Case input(checkpoint, "several");
    const std::filesystem::path folder = std::filesystem::path(testing::TempDir()) / ("thinkvg_open_" + checkpoint);
    std::filesystem::remove_all(folder);
    std::filesystem::create_directories(folder);
    save(*model, folder);
    write_safetensors({{"ids", input.ids},
                       {"pixel_values", input.patches.values},
                       {"grids", input.state.at("grids")},
                       {"logits", forward(*model, input)},
                       {"end", at::tensor(model->special_tokens().end, at::kLong)}},
                      folder / "numbers.safetensors");
    const std::string command = std::string(python) + " " THINKVG_SOURCE_DIR "/tests/parity/open_in_transformers.py " +
                                folder.string() + " " + (folder / "numbers.safetensors").string();
    EXPECT_EQ(std::system(command.c_str()), 0) << command;
  }
}

}  // namespace
}  // namespace thinkvg::models
