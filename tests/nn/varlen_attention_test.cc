#include "nn/varlen_attention.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>

#include "nn/attention_plan.h"
#include "thinkvg/nn/cuda.h"
#include "thinkvg/nn/kv_cache.h"

namespace thinkvg::nn {
namespace {

const SequenceLayout kLayouts[] = {
    {{7}, {}},
    {{5, 0, 3, 9}, {}},
    {{6, 2, 3, 4, 1}, {-1, 0, 0, -1, 3}},  // two that continue the first, and one that continues the fourth
};

// The attention that the segments describe, one after the other.
at::Tensor described(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                     const VarlenSegments& segments, const VarlenMask& mask) {
  const auto chosen = [&](const at::Tensor& tensor) {
    return segments.key_rows.empty() ? tensor : tensor.index_select(0, at::tensor(segments.key_rows, at::kLong));
  };
  const at::Tensor keys = chosen(key), values = chosen(value);
  const auto heads_first = [](const at::Tensor& tensor) { return tensor.transpose(0, 1).unsqueeze(0); };
  std::vector<at::Tensor> outputs;
  for (std::size_t i = 0; i + 1 < segments.cumulative_queries.size(); ++i) {
    const std::int64_t first = segments.cumulative_queries[i], count = segments.cumulative_queries[i + 1] - first;
    const std::int64_t first_key = segments.cumulative_keys[i], num_keys = segments.cumulative_keys[i + 1] - first_key;
    EXPECT_LE(count, segments.longest_queries);
    EXPECT_LE(num_keys, segments.longest_keys);
    at::Tensor seen = at::ones({count, num_keys}, at::kBool);
    if (mask.causal) seen = seen.tril(num_keys - count);
    if (mask.window > 0) seen = seen.triu(num_keys - count - mask.window + 1);
    outputs.push_back(at::scaled_dot_product_attention(heads_first(query.narrow(0, first, count)),
                                                       heads_first(keys.narrow(0, first_key, num_keys)),
                                                       heads_first(values.narrow(0, first_key, num_keys)), seen, 0.0,
                                                       false, std::nullopt, query.size(1) != key.size(1))
                          .squeeze(0)
                          .transpose(0, 1));
  }
  return at::cat(outputs);
}

struct Inputs {
  explicit Inputs(std::int64_t num_tokens, std::int64_t width = 16)
      : query(at::randn({num_tokens, 4, width})),
        key(at::randn({num_tokens, 2, width})),
        value(at::randn({num_tokens, 2, width})) {}
  at::Tensor query, key, value;
};

TEST(VarlenSegments, DescribeThePack) {
  at::manual_seed(1);
  for (const SequenceLayout& layout : kLayouts) {
    const Inputs in(layout.num_tokens());
    const VarlenSegments segments = varlen_segments(layout);
    const AttentionPlan plan(layout, true);
    EXPECT_TRUE(described(in.query, in.key, in.value, segments, {true, 0})
                    .allclose(plain_attention(in.query, in.key, in.value, plan), 1e-5, 1e-5));
    EXPECT_TRUE(described(in.query, in.key, in.value, segments, {true, 3})
                    .allclose(masked_attention(in.query, in.key, in.value, plan, {.window = 3}), 1e-5, 1e-5));
    if (!layout.prefix.empty()) continue;
    EXPECT_TRUE(segments.key_rows.empty());
    EXPECT_TRUE(described(in.query, in.key, in.value, segments, {false, 0})
                    .allclose(plain_attention(in.query, in.key, in.value, AttentionPlan(layout, false)), 1e-5, 1e-5));
  }
  EXPECT_EQ(varlen_segments({{0, 0}, {}}).longest_queries, 0);
}

TEST(VarlenAttention, IsOfGpusAlone) { EXPECT_FALSE(has_varlen_attention(at::ones({3, 2, 16}))); }

class VarlenAttentionGpu : public testing::TestWithParam<at::ScalarType> {
 protected:
  void SetUp() override {
    if (const std::string reason = cuda_unavailable_reason(); !reason.empty()) GTEST_SKIP() << reason;
  }
};

// Outputs and gradients of the kernels against plain attention in double precision.
TEST_P(VarlenAttentionGpu, EqualsPlainAttention) {
  at::manual_seed(2);
  const at::ScalarType type = GetParam();
  const double tolerance = type == at::kFloat ? 1e-4 : 3e-2;
  for (const SequenceLayout& layout : kLayouts) {
    for (const VarlenMask mask : {VarlenMask{true, 0}, VarlenMask{true, 3}, VarlenMask{false, 0}}) {
      if ((!mask.causal && !layout.prefix.empty()) || (mask.window > 0 && type == at::kFloat)) continue;
      const Inputs in(layout.num_tokens(), 64);
      const auto leaf = [](const at::Tensor& tensor) { return tensor.detach().requires_grad_(); };
      const at::Tensor query = leaf(in.query.to(type).cuda()), key = leaf(in.key.to(type).cuda()),
                       value = leaf(in.value.to(type).cuda());
      const at::Tensor wide_query = leaf(query.cpu().to(at::kDouble)), wide_key = leaf(key.cpu().to(at::kDouble)),
                       wide_value = leaf(value.cpu().to(at::kDouble));
      const VarlenSegments segments = varlen_segments(layout);
      ASSERT_TRUE(has_varlen_attention(query));
      const at::Tensor got = varlen_attention(query, key, value, varlen_tensors(segments, query.device()), mask);
      const at::Tensor expected = described(wide_query, wide_key, wide_value, segments, mask);
      ASSERT_EQ(got.sizes(), expected.sizes());
      EXPECT_LT((got.cpu().to(at::kDouble) - expected).abs().max().item<double>(), tolerance);
      const at::Tensor factors = at::randn(expected.sizes(), at::kDouble);
      const auto gradients = torch::autograd::grad({got}, {query, key, value}, {factors.to(type).cuda()});
      const auto references = torch::autograd::grad({expected}, {wide_query, wide_key, wide_value}, {factors});
      for (std::size_t i = 0; i < 3; ++i)
        EXPECT_LT((gradients[i].cpu().to(at::kDouble) - references[i]).abs().max().item<double>(), 4 * tolerance) << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Types, VarlenAttentionGpu, testing::Values(at::kFloat, at::kBFloat16, at::kHalf));

// Prompts and decoding steps over pages on a GPU against the CPU's.
TEST(PagedAttentionGpu, EqualsTheCpu) {
  if (const std::string reason = cuda_unavailable_reason(); !reason.empty()) GTEST_SKIP() << reason;
  at::manual_seed(3);
  const at::NoGradGuard no_grad;
  const PagedKvCache::Shape shape{1, 12, 2, 64};
  PagedKvCache here(shape, at::TensorOptions(at::kFloat)),
      there(shape, at::TensorOptions(at::kFloat).device(at::kCUDA));
  const std::vector<std::vector<std::int64_t>> pages = {{0, 1, 2}, {8, 3, 4}, {5, 6, 7}};
  std::vector<std::int64_t> past = {0, 0, 0};
  for (const std::vector<std::int64_t>& lengths :
       {std::vector<std::int64_t>{17, 20, 3}, {1, 1, 1}, {4, 1, 9}, {1, 1, 1}}) {
    std::vector<PagedSequence> sequences;
    for (std::size_t i = 0; i < pages.size(); ++i) sequences.push_back({pages[i], past[i]});
    const SequenceLayout layout{lengths, std::vector<std::int64_t>()};
    PagedAttention cpu(here, sequences, layout), gpu(there, sequences, layout);
    const Inputs in(layout.num_tokens(), 64);
    for (const std::int64_t window : {std::int64_t{0}, std::int64_t{5}}) {
      const at::Tensor expected = cpu.attend_masked(0, in.query, in.key, in.value, {.window = window});
      const at::Tensor got = gpu.attend_masked(0, in.query.cuda(), in.key.cuda(), in.value.cuda(), {.window = window});
      EXPECT_LT((got.cpu() - expected).abs().max().item<float>(), 1e-4);
    }
    for (std::size_t i = 0; i < pages.size(); ++i) past[i] += lengths[i];
  }
}

}  // namespace
}  // namespace thinkvg::nn
