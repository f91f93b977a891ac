#include "nn/cpu/paged_attention_kernel.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "nn/cpu/vectors.h"

namespace thinkvg::nn::cpu {
namespace {

constexpr std::int64_t kPage = 16;
static_assert(kPage == kLanes, "the scores of a page are one vector");
constexpr float kMasked = -std::numeric_limits<float>::infinity();

std::int64_t padded(std::int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

// q k of a page's 16 tokens. Four sums, so that the additions need not wait for each other.
template <class Number>
[[gnu::always_inline]] inline Floats page_scores(const float* query, const Number* keys, std::int64_t width) {
  Floats a = {}, b = {}, c = {}, d = {};
  std::int64_t k = 0;
  for (; k + 4 <= width; k += 4) {
    a += query[k] * load(keys + k * kPage);
    b += query[k + 1] * load(keys + (k + 1) * kPage);
    c += query[k + 2] * load(keys + (k + 2) * kPage);
    d += query[k + 3] * load(keys + (k + 3) * kPage);
  }
  for (; k < width; ++k) a += query[k] * load(keys + k * kPage);
  return (a + b) + (c + d);
}

// Adds weight[l] * value[l] over a sequence's tokens, for kVectors * 16 dimensions from `begin` on.
template <int kVectors, class Number>
[[gnu::always_inline]] inline void weighted_values(const PagedRow& row, const float* weights, std::int64_t begin,
                                                   float normalizer, Number* output) {
  Floats sums[kVectors] = {};
  const auto* values = static_cast<const Number*>(row.values);
  for (std::int64_t page = row.first / kPage; page * kPage < row.length; ++page) {
    const Number* from = values + (row.pages[page] * row.num_heads + row.head) * kPage * row.width + begin;
    const std::int64_t count = std::min(kPage, row.length - page * kPage);
    const float* page_weights = weights + page * kPage;
    for (std::int64_t l = std::max<std::int64_t>(0, row.first - page * kPage); l < count; ++l) {
      const float weight = page_weights[l];
      for (int v = 0; v < kVectors; ++v) sums[v] += weight * load(from + l * row.width + v * kLanes);
    }
  }
  for (int v = 0; v < kVectors; ++v) store(output + begin + v * kLanes, sums[v] * normalizer);
}

template <class Number>
[[gnu::always_inline]] inline void weighted_rest(const PagedRow& row, const float* weights, std::int64_t begin,
                                                 float normalizer, Number* output) {
  Floats sum = {};
  const std::int64_t rest = row.width - begin;
  const auto* values = static_cast<const Number*>(row.values);
  for (std::int64_t l = row.first; l < row.length; ++l) {
    const std::int64_t page = row.pages[l / kPage];
    const Number* from = values + ((page * row.num_heads + row.head) * kPage + l % kPage) * row.width + begin;
    sum += weights[l] * load_part(from, rest);
  }
  store_part(output + begin, sum * normalizer, rest);
}

template <class Number>
[[gnu::always_inline]] inline void attend_row(const PagedRow& row) {
  const std::int64_t stride = padded(row.length), first_page = row.first / kPage;
  float* scores = row.scratch;
  float* queries = row.scratch + row.group * stride;
  const auto* query = static_cast<const Number*>(row.query);
  const float scale = 1.0f / std::sqrt(static_cast<float>(row.width));
  for (std::int64_t i = 0; i < row.group * row.width; ++i) queries[i] = to_float(query[i]) * scale;

  const auto* keys = static_cast<const Number*>(row.keys);
  for (std::int64_t page = first_page; page * kPage < row.length; ++page) {
    const Number* page_keys = keys + (row.pages[page] * row.num_heads + row.head) * kPage * row.width;
    for (std::int64_t g = 0; g < row.group; ++g)
      store(scores + g * stride + page * kPage, page_scores(queries + g * row.width, page_keys, row.width));
  }
  for (std::int64_t g = 0; g < row.group; ++g) {
    float* own = scores + g * stride;
    std::fill(own + first_page * kPage, own + row.first, kMasked);
    std::fill(own + row.length, own + stride, kMasked);
    Floats most = splat(kMasked);
    for (std::int64_t l = first_page * kPage; l < row.length; l += kLanes) most = larger(load(own + l), most);
    const float maximum = max_of(most);
    Floats total = {};
    for (std::int64_t l = first_page * kPage; l < row.length; l += kLanes) {
      const Floats weight = exponential(load(own + l) - maximum);
      store(own + l, weight);
      total += weight;
    }
    const float sum = sum_of(total), normalizer = 1.0f / sum;
    if (row.lse != nullptr) row.lse[g] = maximum + std::log(sum);
    Number* output = static_cast<Number*>(row.output) + g * row.width;
    std::int64_t begin = 0;
    for (; begin + 8 * kLanes <= row.width; begin += 8 * kLanes)
      weighted_values<8>(row, own, begin, normalizer, output);
    for (; begin + 4 * kLanes <= row.width; begin += 4 * kLanes)
      weighted_values<4>(row, own, begin, normalizer, output);
    for (; begin + kLanes <= row.width; begin += kLanes) weighted_values<1>(row, own, begin, normalizer, output);
    if (begin < row.width) weighted_rest(row, own, begin, normalizer, output);
  }
}

[[gnu::always_inline]] inline void attend_any(const PagedRow& row) {
  if (row.is_bf16)
    attend_row<std::uint16_t>(row);
  else
    attend_row<float>(row);
}

using Kernel = void (*)(const PagedRow&);

void attend_base(const PagedRow& row) { attend_any(row); }
#ifdef __x86_64__
[[gnu::target("avx2,fma")]] void attend_avx2(const PagedRow& row) { attend_any(row); }
[[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,fma")]] void attend_avx512(const PagedRow& row) { attend_any(row); }
#endif

Kernel choose_kernel() {
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    return attend_avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return attend_avx2;
#endif
  return attend_base;
}

}  // namespace

void paged_attention_row(const PagedRow& row) {
  static const Kernel kChosen = choose_kernel();
  kChosen(row);
}

std::int64_t paged_scratch(std::int64_t group, std::int64_t width, std::int64_t length) {
  return group * (padded(length) + width);
}

}  // namespace thinkvg::nn::cpu
