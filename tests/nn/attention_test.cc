#include "thinkvg/nn/attention.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/grad_mode.h>

#include "nn/attention_plan.h"

namespace thinkvg::nn {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

struct Inputs {
  at::Tensor query;
  at::Tensor key;
  at::Tensor value;
  at::Tensor weights;  // of the scalar whose gradient is taken
};

Inputs random_inputs(std::int64_t num_tokens, std::int64_t heads, std::int64_t kv_heads, std::int64_t width,
                     at::ScalarType type = at::kDouble) {
  at::manual_seed(num_tokens);
  const auto make = [&](std::int64_t h) { return at::randn({num_tokens, h, width}, at::kDouble).to(type); };
  return {make(heads).requires_grad_(), make(kv_heads).requires_grad_(), make(kv_heads).requires_grad_(), make(heads)};
}

// Softmax over the visible keys, written out: the meaning of a layout.
at::Tensor written_out(const Inputs& in, const SequenceLayout& layout, bool causal, const MaskRule& rule = {}) {
  const std::int64_t num_tokens = layout.num_tokens();
  at::Tensor visible = at::zeros({num_tokens, num_tokens}, at::kBool);
  std::vector<std::int64_t> starts;
  std::int64_t start = 0;
  for (std::size_t i = 0; i < layout.lengths.size(); ++i) {
    const std::int64_t end = start + layout.lengths[i];
    starts.push_back(start);
    for (std::int64_t row = start; row < end; ++row) {
      visible[row].slice(0, start, causal ? row + 1 : end).fill_(true);
      if (!layout.prefix.empty() && layout.prefix[i] >= 0) {
        const std::int64_t prefix = layout.prefix[i];
        visible[row].slice(0, starts[prefix], starts[prefix] + layout.lengths[prefix]).fill_(true);
      }
    }
    if (rule.image_blocks) {
      for (const SequenceLayout::Block& block : layout.images) {
        if (block.start < start || block.start >= end) continue;
        const std::int64_t last = block.start + block.length;
        visible.slice(0, block.start, last).slice(1, block.start, last).fill_(true);
      }
    }
    for (std::int64_t row = start; row < end && rule.window > 0; ++row) {
      const std::int64_t prefix = layout.prefix.empty() ? -1 : layout.prefix[i];
      // The own tokens first; what is left of the window reaches into the end of the prefix.
      visible[row].slice(0, start, std::max(start, row - rule.window + 1)).fill_(false);
      if (prefix < 0) continue;
      const std::int64_t left = std::max<std::int64_t>(0, rule.window - (row - start + 1));
      const std::int64_t prefix_end = starts[prefix] + layout.lengths[prefix];
      visible[row].slice(0, starts[prefix], std::max(starts[prefix], prefix_end - left)).fill_(false);
    }
    start = end;
  }
  const std::int64_t repeats = in.query.size(1) / in.key.size(1);
  const at::Tensor query = in.query.transpose(0, 1);
  const at::Tensor key = in.key.repeat_interleave(repeats, 1).transpose(0, 1);
  const at::Tensor value = in.value.repeat_interleave(repeats, 1).transpose(0, 1);
  const at::Tensor scores = query.matmul(key.transpose(1, 2)) / std::sqrt(static_cast<double>(in.query.size(2)));
  const at::Tensor masked = scores.masked_fill(visible.logical_not(), -1e30);
  return masked.softmax(-1).matmul(value).transpose(0, 1);
}

std::vector<at::Tensor> gradients(const Inputs& in, const at::Tensor& output) {
  for (const at::Tensor& tensor : {in.query, in.key, in.value}) tensor.mutable_grad() = at::Tensor();
  (output * in.weights).sum().backward();
  return {in.query.grad().clone(), in.key.grad().clone(), in.value.grad().clone()};
}

double largest(const at::Tensor& a, const at::Tensor& b) { return (a - b).abs().max().item<double>(); }

struct LayoutCase {
  const char* name;
  SequenceLayout layout;

  friend void PrintTo(const LayoutCase& layout_case, std::ostream* stream) { *stream << layout_case.name; }
};

const LayoutCase kLayouts[] = {
    {"one", {{7}, {}}},
    {"ragged", {{3, 1, 8, 5}, {}}},
    {"equal_lengths", {{6, 6, 6, 2, 6, 6}, {}}},
    {"with_empty", {{4, 0, 3}, {}}},
    {"one_group", {{5, 3, 4, 1}, {-1, 0, 0, 0}}},
    {"two_groups", {{5, 3, 3, 4, 2, 6}, {-1, 0, 0, -1, 3, 3}}},
    {"apart", {{5, 4, 3, 2, 6, 1}, {-1, -1, 0, 1, 0, 1}}},
    {"empty_prefix", {{0, 4, 3}, {-1, 0, 0}}},
    {"empty_continuation", {{4, 0, 3}, {-1, 0, 0}}},
    {"prefix_of_one", {{1, 9, 2}, {-1, 0, 0}}},
    {"long", {{70, 150, 33, 200}, {-1, 0, 0, -1}}},
};

class AttentionLayout : public testing::TestWithParam<LayoutCase> {};

TEST_P(AttentionLayout, ValuesAndGradientsEqualTheFormula) {
  const SequenceLayout& layout = GetParam().layout;
  for (const auto& [heads, kv_heads] : {std::pair<std::int64_t, std::int64_t>{3, 3}, {6, 2}, {4, 1}}) {
    const Inputs in = random_inputs(layout.num_tokens(), heads, kv_heads, 8);
    const at::Tensor expected = written_out(in, layout, true);
    const at::Tensor got = PackedAttention(layout).attend(0, in.query, in.key, in.value);
    EXPECT_LE(largest(got, expected), 1e-12);
    const auto expected_gradients = gradients(in, expected);
    const auto got_gradients = gradients(in, got);
    for (int i = 0; i < 3; ++i) {
      EXPECT_LE(largest(got_gradients[i], expected_gradients[i]), 1e-11) << "query, key, value"[i];
    }
  }
}

TEST_P(AttentionLayout, ThePlainPathEqualsTheFormula) {
  const SequenceLayout& layout = GetParam().layout;
  const Inputs in = random_inputs(layout.num_tokens(), 4, 2, 8);
  const at::Tensor got = plain_attention(in.query, in.key, in.value, AttentionPlan(layout, true));
  EXPECT_LE(largest(got, written_out(in, layout, true)), 1e-12);
}

INSTANTIATE_TEST_SUITE_P(, AttentionLayout, testing::ValuesIn(kLayouts),
                         [](const auto& info) { return info.param.name; });

TEST(Attention, FiniteDifferences) {
  const SequenceLayout layout{{3, 2, 4}, {-1, 0, 0}};
  const Inputs in = random_inputs(9, 4, 2, 4);
  const auto analytic = gradients(in, PackedAttention(layout).attend(0, in.query, in.key, in.value));
  const at::NoGradGuard no_grad;
  const auto value = [&] {
    return (PackedAttention(layout).attend(0, in.query, in.key, in.value) * in.weights).sum().item<double>();
  };
  const at::Tensor inputs[] = {in.query, in.key, in.value};
  for (int i = 0; i < 3; ++i) {
    double* data = inputs[i].mutable_data_ptr<double>();
    for (std::int64_t k = 0; k < inputs[i].numel(); ++k) {
      const double kept = data[k];
      data[k] = kept + 1e-5;
      const double above = value();
      data[k] = kept - 1e-5;
      const double below = value();
      data[k] = kept;
      ASSERT_NEAR((above - below) / 2e-5, analytic[i].flatten()[k].item<double>(), 1e-7) << "input " << i << ", " << k;
    }
  }
}

TEST(Attention, SmallTypesStayNearTheFormula) {
  const SequenceLayout layout{{20, 30, 11}, {-1, 0, 0}};
  const Inputs exact = random_inputs(61, 4, 2, 16);
  for (const auto& [type, tolerance] : {std::pair{at::kFloat, 2e-6}, {at::kBFloat16, 3e-2}}) {
    const Inputs in = random_inputs(61, 4, 2, 16, type);
    const at::Tensor got = PackedAttention(layout).attend(0, in.query, in.key, in.value);
    EXPECT_EQ(got.scalar_type(), type);
    EXPECT_LE(largest(got.to(at::kDouble), written_out(exact, layout, true)), tolerance);
  }
}

// Views of one projection, as models pass them.
TEST(Attention, StridedInputsAreRight) {
  const SequenceLayout layout{{4, 5, 6}, {-1, 0, -1}};
  at::manual_seed(1);
  const at::Tensor all = at::randn({15, 3, 2, 8}, at::kDouble);
  const std::vector<at::Tensor> parts = all.unbind(1);
  const Inputs in{parts[0], parts[1], parts[2], {}};
  EXPECT_LE(largest(PackedAttention(layout).attend(0, in.query, in.key, in.value), written_out(in, layout, true)),
            1e-12);
}

TEST(Attention, BlocksSeeAllOfThemselves) {
  const std::vector<std::int64_t> lengths = {4, 4, 4, 9, 1, 4};
  const Inputs in = random_inputs(26, 3, 3, 8);
  const at::Tensor expected = written_out(in, {lengths, {}}, false);
  const at::Tensor got = block_attention(in.query, in.key, in.value, lengths);
  EXPECT_LE(largest(got, expected), 1e-12);
  const auto expected_gradients = gradients(in, expected);
  const auto got_gradients = gradients(in, got);
  for (int i = 0; i < 3; ++i) EXPECT_LE(largest(got_gradients[i], expected_gradients[i]), 1e-11);
}

TEST(Attention, RecordsKeysAndValuesPerLayer) {
  PackedAttention attention({{5}, {}});
  attention.record();
  const Inputs in = random_inputs(5, 2, 1, 4);
  attention.attend(0, in.query, in.key, in.value);
  attention.attend(1, in.query, in.value, in.key);
  ASSERT_EQ(attention.recorded().size(), 2U);
  EXPECT_TRUE(attention.recorded()[1].key.equal(in.value));
  EXPECT_FALSE(attention.recorded()[0].value.requires_grad());
}

TEST(Attention, WindowsAndImageBlocksFollowTheirMask) {
  const Inputs in = random_inputs(40, 4, 2, 6);
  const SequenceLayout layout{{9, 14, 6, 0, 11}, {-1, -1, 1, 1, 1}, {{2, 4}, {10, 3}, {14, 5}}};
  for (const MaskRule& rule : {MaskRule{4, false}, MaskRule{0, true}, MaskRule{4, true}, MaskRule{100, false}}) {
    PackedAttention attention(layout);
    const at::Tensor got = attention.attend_masked(0, in.query, in.key, in.value, rule);
    const at::Tensor wanted = written_out(in, layout, true, rule);
    EXPECT_LE((got - wanted).abs().max().item<double>(), 1e-10) << rule.window << " " << rule.image_blocks;
    const auto got_gradients = gradients(in, got), wanted_gradients = gradients(in, wanted);
    for (std::size_t i = 0; i < 3; ++i)
      EXPECT_LE((got_gradients[i] - wanted_gradients[i]).abs().max().item<double>(), 1e-10);
  }
  // A rule that changes nothing takes the fast path.
  PackedAttention attention(layout);
  EXPECT_TRUE(attention.attend_masked(0, in.query, in.key, in.value, {25, false})
                  .equal(attention.attend(0, in.query, in.key, in.value)));
}

TEST(Attention, BadLayoutsAreNamed) {
  const auto refuse = [](const SequenceLayout& layout, const char* text) {
    EXPECT_THAT([&] { layout.check(); }, ThrowsMessage<std::invalid_argument>(HasSubstr(text)));
  };
  refuse({{3, -1}, {}}, "sequence 1 has length -1");
  refuse({{3, 1}, {-1}}, "1 prefixes for 2 sequences");
  refuse({{3, 1}, {-1, 1}}, "sequence 1 has prefix 1");
  refuse({{3, 1}, {-1, -2}}, "sequence 1 has prefix -2");
  refuse({{3, 1, 2}, {-1, 0, 1}}, "sequence 2 continues 1, which itself continues 0");
  refuse({{3, 4}, {}, {{1, 1}, {2, 3}}}, "picture 1 of 3 tokens from 2 on");
  refuse({{3, 4}, {}, {{4, 2}, {1, 1}}}, "picture 1 of 1 tokens from 1 on");
  refuse({{3}, {}, {{0, 2}, {1, 2}}}, "picture 1 of 2 tokens from 1 on");
  PackedAttention attention({{5}, {}});
  EXPECT_THAT(
      [&] {
        attention.attend(0, at::ones({4, 2, 4}), at::ones({4, 2, 4}), at::ones({4, 2, 4}));
      },
      ThrowsMessage<std::invalid_argument>(HasSubstr("query [4, 2, 4]")));
  EXPECT_THAT(
      [&] {
        attention.attend(0, at::ones({5, 3, 4}), at::ones({5, 2, 4}), at::ones({5, 2, 4}));
      },
      ThrowsMessage<std::invalid_argument>(HasSubstr("H a multiple of J")));
}

}  // namespace
}  // namespace thinkvg::nn
