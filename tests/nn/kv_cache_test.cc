#include "thinkvg/nn/kv_cache.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>

#include <algorithm>
#include <numeric>

#include "nn/cpu/paged_attention_kernel.h"
#include "thinkvg/core/random.h"
#include "thinkvg/nn/exact.h"

namespace thinkvg::nn {
namespace {

constexpr std::int64_t kPage = PagedKvCache::kPageTokens;

// What all tokens of a sequence should give, in double precision.
at::Tensor reference(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value) {
  const auto heads = [](const at::Tensor& x) { return x.to(at::kDouble).transpose(0, 1).unsqueeze(0); };
  return at::scaled_dot_product_attention(heads(query), heads(key), heads(value), {}, 0.0, true, std::nullopt,
                                          query.size(1) != key.size(1))
      .squeeze(0)
      .transpose(0, 1);
}

struct Tokens {
  at::Tensor query, key, value;
  std::vector<std::int64_t> pages;
  std::int64_t done = 0;
};

// Sequences of random lengths that grow in random parts, single tokens among them, in pages in random order.
void grow_in_parts(std::int64_t num_heads, std::int64_t num_kv_heads, std::int64_t width, at::ScalarType type,
                   double tolerance) {
  at::manual_seed(1);
  RandomStream random({static_cast<std::uint64_t>(width)});
  PagedKvCache cache({1, 64, num_kv_heads, width}, at::TensorOptions(type));
  std::vector<std::int64_t> free_pages(64);
  std::iota(free_pages.begin(), free_pages.end(), 0);
  random.shuffle(free_pages);
  std::vector<Tokens> all(4);
  std::vector<at::Tensor> outputs(4);
  for (Tokens& tokens : all) {
    const std::int64_t length = random.between(20, 150);
    tokens.query = at::randn({length, num_heads, width}).to(type);
    tokens.key = at::randn({length, num_kv_heads, width}).to(type);
    tokens.value = at::randn({length, num_kv_heads, width}).to(type);
  }
  for (int pass = 0; pass < 40; ++pass) {
    std::vector<PagedSequence> sequences;
    SequenceLayout layout;
    std::vector<std::size_t> who;
    std::vector<at::Tensor> query, key, value;
    const bool single = random.chance(0.5);
    for (std::size_t i = 0; i < all.size(); ++i) {
      Tokens& tokens = all[i];
      const std::int64_t left = tokens.query.size(0) - tokens.done;
      if (left == 0 || random.chance(0.2)) continue;
      const std::int64_t count = single || random.chance(0.3) ? 1 : random.between(1, std::min<std::int64_t>(left, 40));
      while (std::ssize(tokens.pages) < PagedKvCache::pages_for(tokens.done + count)) {
        tokens.pages.push_back(free_pages.back());
        free_pages.pop_back();
      }
      sequences.push_back({tokens.pages, tokens.done});
      layout.lengths.push_back(count);
      who.push_back(i);
      query.push_back(tokens.query.narrow(0, tokens.done, count));
      key.push_back(tokens.key.narrow(0, tokens.done, count));
      value.push_back(tokens.value.narrow(0, tokens.done, count));
      tokens.done += count;
    }
    if (who.empty()) continue;
    const std::vector<std::int64_t> lengths = layout.lengths;
    PagedAttention attention(cache, sequences, layout);
    const at::Tensor out = attention.attend(0, at::cat(query), at::cat(key), at::cat(value));
    ASSERT_EQ(out.scalar_type(), type);
    std::int64_t start = 0;
    for (std::size_t i = 0; i < who.size(); ++i) {
      const at::Tensor part = out.narrow(0, start, lengths[i]);
      at::Tensor& whole = outputs[who[i]];
      whole = whole.defined() ? at::cat({whole, part}) : part.clone();
      start += lengths[i];
    }
  }
  for (std::size_t i = 0; i < all.size(); ++i) {
    ASSERT_TRUE(outputs[i].defined());
    const at::Tensor expected = reference(all[i].query, all[i].key, all[i].value).narrow(0, 0, outputs[i].size(0));
    EXPECT_LT((outputs[i].to(at::kDouble) - expected).abs().max().item<double>(), tolerance);
  }
}

TEST(PagedAttention, EqualsOnePassOverTheSequence) {
  for (const std::int64_t width : {8, 16, 40, 64, 128, 144}) {
    grow_in_parts(4, 2, width, at::kFloat, 3e-6);
    grow_in_parts(4, 2, width, at::kBFloat16, 2e-2);
  }
  grow_in_parts(3, 3, 24, at::kFloat, 3e-6);
  grow_in_parts(8, 1, 32, at::kFloat, 3e-6);
}

// A dtype that has no kernel of its own.
TEST(PagedAttention, TheGenericPathEqualsOnePassOverTheSequence) { grow_in_parts(4, 2, 16, at::kDouble, 1e-12); }

TEST(PagedAttention, ExactPassesGiveTheSameBitsInWhateverParts) {
  const ExactForward exact;
  at::manual_seed(2);
  const at::Tensor query = at::randn({70, 4, 24}), key = at::randn({70, 2, 24}), value = at::randn({70, 2, 24});
  const auto run = [&](const std::vector<std::int64_t>& counts, const std::vector<std::int64_t>& pages) {
    PagedKvCache cache({1, 20, 2, 24}, at::TensorOptions(at::kFloat));
    std::vector<at::Tensor> outputs;
    std::int64_t done = 0;
    for (const std::int64_t count : counts) {
      PagedAttention attention(cache, {{pages, done}}, {{count}, {}});
      outputs.push_back(
          attention.attend(0, query.narrow(0, done, count), key.narrow(0, done, count), value.narrow(0, done, count)));
      done += count;
    }
    return at::cat(outputs);
  };
  const at::Tensor whole = run({70}, {0, 1, 2, 3, 4});
  EXPECT_TRUE(whole.equal(run({1, 20, 48, 1}, {7, 3, 19, 0, 5})));
  PackedAttention packed({{70}, {}});
  EXPECT_TRUE(whole.equal(packed.attend(0, query, key, value)));
  PackedAttention parted({{16, 30, 24}, {-1, 0, -1}});
  EXPECT_TRUE(whole.narrow(0, 0, 46).equal(parted.attend(0, query, key, value).narrow(0, 0, 46)));
  EXPECT_LT((whole.to(at::kDouble) - reference(query, key, value)).abs().max().item<double>(), 3e-6);
}

TEST(PagedAttention, TokensBeforeTheFirstAreNotSeen) {
  at::manual_seed(3);
  constexpr std::int64_t kLength = 53, kWidth = 20;
  const at::Tensor query = at::randn({1, kWidth}), key = at::randn({4, 1, kWidth, kPage}),
                   value = at::randn({4, 1, kPage, kWidth});
  const std::vector<std::int64_t> pages = {2, 0, 3, 1};
  const at::Tensor order = at::tensor(pages, at::kLong);
  const at::Tensor keys = key.index_select(0, order).squeeze(1).transpose(1, 2).reshape({-1, kWidth});
  const at::Tensor values = value.index_select(0, order).squeeze(1).reshape({-1, kWidth});
  for (const std::int64_t first : {0, 1, 15, 16, 40, 52}) {
    std::vector<float> scratch(static_cast<std::size_t>(cpu::paged_scratch(1, kWidth, kLength)));
    at::Tensor output = at::empty({1, kWidth});
    const cpu::PagedRow row{query.const_data_ptr(), pages.data(), first, kLength, output.mutable_data_ptr()};
    const at::Tensor seen_keys = keys.narrow(0, first, kLength - first);
    const at::Tensor expected = at::softmax(query.matmul(seen_keys.t()) / std::sqrt(static_cast<double>(kWidth)), -1)
                                    .matmul(values.narrow(0, first, kLength - first));
    for (const cpu::PagedKernel& kernel : cpu::paged_kernels()) {
      output.fill_(NAN);
      kernel.attend({.keys = key.const_data_ptr(),
                     .values = value.const_data_ptr(),
                     .is_bf16 = false,
                     .head = 0,
                     .num_heads = 1,
                     .group = 1,
                     .width = kWidth,
                     .rows = &row,
                     .num_rows = 1,
                     .num_shared = 0,
                     .scratch = scratch.data()});
      EXPECT_LT((output - expected).abs().max().item<double>(), 3e-6) << first << ' ' << kernel.instruction_set;
    }
  }
}

// All kernels that this processor can run; five rows, so that blocks of queries have a rest.
TEST(PagedAttention, EveryKernelComputesRowsThatSharePagesAsAlone) {
  constexpr std::int64_t kHeads = 2, kGroup = 3, kRows = 5, kShared = 10, kLongest = 200;
  for (const std::int64_t width : {20, 64, 144}) {
    at::manual_seed(6);
    const at::Tensor key = at::randn({kShared + 3 * kRows, kHeads, width, kPage}),
                     value = at::randn({kShared + 3 * kRows, kHeads, kPage, width}),
                     query = at::randn({kRows, kGroup, width});
    for (const cpu::PagedKernel& kernel : cpu::paged_kernels()) {
      SCOPED_TRACE(kernel.instruction_set);
      std::vector<float> scratch(static_cast<std::size_t>(cpu::paged_scratch(kRows * kGroup, width, kLongest)));
      const at::Tensor together = at::full({kRows, kGroup, width}, NAN), alone = at::full_like(together, NAN),
                       sums = at::full({kRows, kGroup}, NAN);
      std::vector<std::vector<std::int64_t>> pages(kRows);
      const auto rows_to = [&](const at::Tensor& output) {
        std::vector<cpu::PagedRow> rows;
        for (std::int64_t r = 0; r < kRows; ++r) {
          const std::int64_t length = kShared * kPage + std::min<std::int64_t>(9 * r, kLongest - kShared * kPage);
          rows.push_back({query[r].const_data_ptr(), pages[static_cast<std::size_t>(r)].data(), 0, length,
                          output[r].mutable_data_ptr(), sums[r].mutable_data_ptr<float>()});
        }
        return rows;
      };
      for (std::int64_t r = 0; r < kRows; ++r) {
        std::vector<std::int64_t>& own = pages[static_cast<std::size_t>(r)];
        for (std::int64_t page = 0; page < kShared; ++page) own.push_back((7 * page) % kShared);
        for (std::int64_t page = 0; page < 3; ++page) own.push_back(kShared + 3 * r + page);
      }
      cpu::PagedRows work{.keys = key.const_data_ptr(),
                          .values = value.const_data_ptr(),
                          .is_bf16 = false,
                          .head = 1,
                          .num_heads = kHeads,
                          .group = kGroup,
                          .width = width,
                          .rows = nullptr,
                          .num_rows = kRows,
                          .num_shared = kShared,
                          .scratch = scratch.data()};
      const std::vector<cpu::PagedRow> shared_rows = rows_to(together);
      work.rows = shared_rows.data();
      kernel.attend(work);
      const at::Tensor sums_together = sums.clone();
      work.num_rows = 1;
      work.num_shared = 0;
      for (const cpu::PagedRow& row : rows_to(alone)) {
        work.rows = &row;
        kernel.attend(work);
      }
      EXPECT_TRUE(together.equal(alone));
      EXPECT_TRUE(sums_together.equal(sums));
      for (std::int64_t r = 0; r < kRows; ++r) {
        const std::int64_t length = shared_rows[static_cast<std::size_t>(r)].length;
        const at::Tensor order = at::tensor(pages[static_cast<std::size_t>(r)], at::kLong);
        const at::Tensor keys = key.select(1, 1).index_select(0, order).transpose(1, 2).reshape({-1, width}),
                         values = value.select(1, 1).index_select(0, order).reshape({-1, width});
        const at::Tensor scores =
            query[r].matmul(keys.narrow(0, 0, length).t()).to(at::kDouble) / std::sqrt(static_cast<double>(width));
        const at::Tensor expected = at::softmax(scores, -1).matmul(values.narrow(0, 0, length).to(at::kDouble));
        EXPECT_LT((alone[r] - expected).abs().max().item<double>(), 1e-5);
        EXPECT_LT((sums[r] - at::logsumexp(scores, {-1})).abs().max().item<double>(), 1e-5);
      }
    }
  }
}

// What a row gives does not depend on the rows beside it, and is right.
TEST(PagedAttention, RowsThatSharePagesAreComputedAsAlone) {
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    for (const std::int64_t width : {24, 64, 128, 144}) {
      at::manual_seed(5);
      constexpr std::int64_t kHeads = 2, kGroup = 3;
      PagedKvCache cache({1, 40, kHeads, width}, at::TensorOptions(type));
      cache.keys(0).normal_();
      cache.values(0).normal_();
      // Three share five pages, two of them six; one shares one page, one none; two are the same but for their last
      // page.
      const std::vector<PagedSequence> sequences = {{{3, 1, 4, 9, 5, 20, 21}, 100},
                                                    {{30, 31, 32}, 40},
                                                    {{3, 1, 4, 9, 5, 20, 22}, 96},
                                                    {{3, 33, 34, 35}, 50},
                                                    {{3, 1, 4, 9, 5, 23}, 81},
                                                    {{7, 8}, 16},
                                                    {{7, 6}, 30},
                                                    {{3, 1, 4, 9, 5, 20}, 95}};
      const auto count = static_cast<std::int64_t>(sequences.size());
      const at::TensorOptions options(type);
      const at::Tensor query = at::randn({count, kHeads * kGroup, width}, options),
                       key = at::randn({count, kHeads, width}, options),
                       value = at::randn({count, kHeads, width}, options);
      PagedAttention together(cache, sequences, {std::vector<std::int64_t>(sequences.size(), 1), {}});
      const at::Tensor outputs = together.attend(0, query, key, value);
      for (std::int64_t i = 0; i < count; ++i) {
        const PagedSequence& sequence = sequences[static_cast<std::size_t>(i)];
        PagedAttention alone(cache, {sequence}, {{1}, {}});
        const at::Tensor output = alone.attend(0, query.narrow(0, i, 1), key.narrow(0, i, 1), value.narrow(0, i, 1));
        EXPECT_TRUE(outputs.narrow(0, i, 1).equal(output)) << i << ' ' << width;
        const at::Tensor pages = at::tensor(sequence.pages, at::kLong);
        const auto tokens = [&](const at::Tensor& all) {
          return all.index_select(0, pages)
              .to(at::kDouble)
              .reshape({-1, kHeads, width})
              .narrow(0, 0, sequence.past + 1);
        };
        const at::Tensor keys = tokens(cache.keys(0).permute({0, 3, 1, 2})),
                         values = tokens(cache.values(0).transpose(1, 2));
        const at::Tensor scores =
            at::einsum("jgk,ljk->jgl", {query[i].to(at::kDouble).view({kHeads, kGroup, width}), keys});
        const at::Tensor expected =
            at::einsum("jgl,ljk->jgk", {at::softmax(scores / std::sqrt(static_cast<double>(width)), -1), values});
        const double bound = type == at::kFloat ? 1e-5 : 2e-2;
        EXPECT_LT((output.view({kHeads, kGroup, width}).to(at::kDouble) - expected).abs().max().item<double>(), bound)
            << i << ' ' << width;
      }
    }
  }
}

TEST(PagedKvCache, CopiesAPageInAllLayers) {
  PagedKvCache cache({3, 4, 2, 8}, at::TensorOptions(at::kFloat));
  for (std::int64_t layer = 0; layer < 3; ++layer) {
    cache.keys(layer).normal_();
    cache.values(layer).normal_();
  }
  cache.copy_page(1, 3);
  for (std::int64_t layer = 0; layer < 3; ++layer) {
    EXPECT_TRUE(cache.keys(layer)[3].equal(cache.keys(layer)[1]));
    EXPECT_TRUE(cache.values(layer)[3].equal(cache.values(layer)[1]));
    EXPECT_FALSE(cache.keys(layer)[2].equal(cache.keys(layer)[1]));
  }
}

TEST(PagedAttention, MissingPagesAreAnError) {
  PagedKvCache cache({1, 4, 1, 8}, at::TensorOptions(at::kFloat));
  EXPECT_THROW(PagedAttention(cache, {{{0}, 10}}, {{7}, {}}), std::invalid_argument);
  EXPECT_THROW(PagedAttention(cache, {{{0}, 0}}, {{3, 3}, {}}), std::invalid_argument);
}

}  // namespace
}  // namespace thinkvg::nn
