#include "nn/cpu/paged_attention_kernel.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "nn/cpu/vectors.h"

namespace thinkvg::nn::cpu {
namespace {

constexpr std::int64_t kPage = 16;
static_assert(kPage == kLanes, "the scores of a page are one vector");
constexpr float kMasked = -std::numeric_limits<float>::infinity();

// Pages of values that a block of queries passes before the next block does: a core's cache holds them.
constexpr std::int64_t kPagesAtATime = 8;

std::int64_t padded(std::int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

// What the tokens of one head need while they are computed. Queries are numbered over all tokens.
template <class Number>
struct Work {
  const PagedRows& rows;
  const Number* keys;
  const Number* values;
  std::int64_t stride;  // of a query's scores
  std::int64_t num_queries;
  float* scores;
  float* queries;
  float* sums;  // [queries, padded width]

  explicit Work(const PagedRows& given)
      : rows(given),
        keys(static_cast<const Number*>(given.keys)),
        values(static_cast<const Number*>(given.values)),
        stride(0),
        num_queries(given.num_rows * given.group) {
    for (std::int64_t r = 0; r < rows.num_rows; ++r) stride = std::max(stride, padded(rows.rows[r].length));
    scores = rows.scratch;
    queries = scores + num_queries * stride;
    sums = queries + num_queries * rows.width;
  }
  std::int64_t sums_stride() const { return padded(rows.width); }
  std::int64_t place(std::int64_t page) const { return (page * rows.num_heads + rows.head) * kPage * rows.width; }
};

// q k of a page's 16 tokens for several queries. Four sums each, so that the additions need not wait for each other.
template <int kQueries, class Number>
[[gnu::always_inline]] inline void page_scores(const Work<Number>& work, const Number* keys, std::int64_t query,
                                               std::int64_t page) {
  const std::int64_t width = work.rows.width;
  const float* queries = work.queries + query * width;
  Floats sums[kQueries][4] = {};
  std::int64_t k = 0;
  for (; k + 4 <= width; k += 4) {
    for (int part = 0; part < 4; ++part) {
      const Floats key = load(keys + (k + part) * kPage);
      for (int q = 0; q < kQueries; ++q) sums[q][part] += queries[q * width + k + part] * key;
    }
  }
  for (; k < width; ++k)
    for (int q = 0; q < kQueries; ++q) sums[q][0] += queries[q * width + k] * load(keys + k * kPage);
  for (int q = 0; q < kQueries; ++q)
    store(work.scores + (query + q) * work.stride + page * kPage,
          (sums[q][0] + sums[q][1]) + (sums[q][2] + sums[q][3]));
}

template <int kQueries, class Number>
[[gnu::always_inline]] inline void page_scores_of(const Work<Number>& work, std::int64_t page_number, std::int64_t page,
                                                  std::int64_t query, std::int64_t last) {
  const Number* keys = work.keys + work.place(page_number);
  for (; query + kQueries <= last; query += kQueries) page_scores<kQueries>(work, keys, query, page);
  for (; query < last; ++query) page_scores<1>(work, keys, query, page);
}

// Adds weight[l] * value[l] over tokens [first, length) of the pages, for kVectors * 16 dimensions from `begin` on.
template <int kQueries, int kVectors, class Number>
[[gnu::always_inline]] inline void weighted_values(const Work<Number>& work, const std::int64_t* pages,
                                                   std::int64_t first, std::int64_t length, std::int64_t query,
                                                   std::int64_t begin) {
  float* to = work.sums + query * work.sums_stride() + begin;
  const float* weights = work.scores + query * work.stride;
  Floats sums[kQueries][kVectors];
  for (int q = 0; q < kQueries; ++q)
    for (int v = 0; v < kVectors; ++v) sums[q][v] = load(to + q * work.sums_stride() + v * kLanes);
  for (std::int64_t page = first / kPage; page * kPage < length; ++page) {
    const Number* from = work.values + work.place(pages[page]) + begin;
    const std::int64_t end = std::min(length, (page + 1) * kPage);
    for (std::int64_t l = std::max(first, page * kPage); l < end; ++l) {
      const Number* token = from + l % kPage * work.rows.width;
      Floats values[kVectors];
      for (int v = 0; v < kVectors; ++v) values[v] = load(token + v * kLanes);
      for (int q = 0; q < kQueries; ++q) {
        const float weight = weights[q * work.stride + l];
        for (int v = 0; v < kVectors; ++v) sums[q][v] += weight * values[v];
      }
    }
  }
  for (int q = 0; q < kQueries; ++q)
    for (int v = 0; v < kVectors; ++v) store(to + q * work.sums_stride() + v * kLanes, sums[q][v]);
}

// The last, fewer than 16 dimensions.
template <class Number>
[[gnu::always_inline]] inline void weighted_rest(const Work<Number>& work, const std::int64_t* pages,
                                                 std::int64_t first, std::int64_t length, std::int64_t query,
                                                 std::int64_t begin) {
  float* to = work.sums + query * work.sums_stride() + begin;
  const float* weights = work.scores + query * work.stride;
  Floats sum = load(to);
  for (std::int64_t l = first; l < length; ++l) {
    const Number* from = work.values + work.place(pages[l / kPage]) + l % kPage * work.rows.width + begin;
    sum += weights[l] * load_part(from, work.rows.width - begin);
  }
  store(to, sum);
}

template <int kQueries, class Number>
[[gnu::always_inline]] inline void all_values(const Work<Number>& work, const std::int64_t* pages, std::int64_t first,
                                              std::int64_t length, std::int64_t query) {
  std::int64_t begin = 0;
  if constexpr (kQueries == 1)
    for (; begin + 8 * kLanes <= work.rows.width; begin += 8 * kLanes)
      weighted_values<kQueries, 8>(work, pages, first, length, query, begin);
  for (; begin + 4 * kLanes <= work.rows.width; begin += 4 * kLanes)
    weighted_values<kQueries, 4>(work, pages, first, length, query, begin);
  for (; begin + kLanes <= work.rows.width; begin += kLanes)
    weighted_values<kQueries, 1>(work, pages, first, length, query, begin);
  if (begin < work.rows.width)
    for (int q = 0; q < kQueries; ++q) weighted_rest(work, pages, first, length, query + q, begin);
}

template <int kQueries, class Number>
[[gnu::always_inline]] inline void add_values(const Work<Number>& work, const std::int64_t* pages, std::int64_t first,
                                              std::int64_t length, std::int64_t query, std::int64_t last) {
  for (; query + kQueries <= last; query += kQueries) all_values<kQueries>(work, pages, first, length, query);
  for (; query < last; ++query) all_values<1>(work, pages, first, length, query);
}

// Scores become weights exp(score - maximum) over tokens [first, length); returns their sum.
[[gnu::always_inline]] inline float weigh(float* scores, std::int64_t first, std::int64_t length, std::int64_t stride,
                                          float& maximum) {
  const std::int64_t begin = first / kPage * kPage, end = std::min(stride, padded(length));
  std::fill(scores + begin, scores + first, kMasked);
  std::fill(scores + length, scores + end, kMasked);
  Floats most = splat(kMasked);
  for (std::int64_t l = begin; l < end; l += kLanes) most = larger(load(scores + l), most);
  maximum = max_of(most);
  Floats total = {};
  for (std::int64_t l = begin; l < end; l += kLanes) {
    const Floats weight = exponential(load(scores + l) - maximum);
    store(scores + l, weight);
    total += weight;
  }
  return sum_of(total);
}

template <class Number>
[[gnu::always_inline]] inline void write_output(const Work<Number>& work, std::int64_t query, float normalizer,
                                                Number* output) {
  const float* sums = work.sums + query * work.sums_stride();
  const std::int64_t width = work.rows.width;
  std::int64_t k = 0;
  for (; k + kLanes <= width; k += kLanes) store(output + k, load(sums + k) * normalizer);
  if (k < width) store_part(output + k, load(sums + k) * normalizer, width - k);
}

template <int kQueries, class Number>
[[gnu::always_inline]] inline void attend_rows(const PagedRows& rows) {
  const Work<Number> work(rows);
  const std::int64_t group = rows.group, width = rows.width, shared = rows.num_shared;
  const std::int64_t* common = rows.rows[0].pages;
  const float scale = 1.0f / std::sqrt(static_cast<float>(width));
  for (std::int64_t r = 0; r < rows.num_rows; ++r) {
    const auto* query = static_cast<const Number*>(rows.rows[r].query);
    for (std::int64_t i = 0; i < group * width; ++i) work.queries[r * group * width + i] = to_float(query[i]) * scale;
  }
  for (std::int64_t page = 0; page < shared; ++page)
    page_scores_of<kQueries>(work, common[page], page, 0, work.num_queries);
  for (std::int64_t r = 0; r < rows.num_rows; ++r) {
    const PagedRow& row = rows.rows[r];
    for (std::int64_t page = std::max(shared, row.first / kPage); page * kPage < row.length; ++page)
      page_scores_of<kQueries>(work, row.pages[page], page, r * group, (r + 1) * group);
  }
  float* normalizers = work.queries;  // the queries are not needed any more
  for (std::int64_t q = 0; q < work.num_queries; ++q) {
    const PagedRow& row = rows.rows[q / group];
    float maximum = 0;
    const float sum = weigh(work.scores + q * work.stride, row.first, row.length, work.stride, maximum);
    normalizers[q] = 1.0f / sum;
    if (row.lse != nullptr) row.lse[q % group] = maximum + std::log(sum);
  }
  std::fill_n(work.sums, work.num_queries * work.sums_stride(), 0.0f);
  for (std::int64_t page = 0; page < shared; page += kPagesAtATime)
    add_values<kQueries>(work, common, page * kPage, std::min(shared, page + kPagesAtATime) * kPage, 0,
                         work.num_queries);
  for (std::int64_t r = 0; r < rows.num_rows; ++r) {
    const PagedRow& row = rows.rows[r];
    add_values<kQueries>(work, row.pages, std::max(shared * kPage, row.first), row.length, r * group, (r + 1) * group);
    for (std::int64_t g = 0; g < group; ++g)
      write_output(work, r * group + g, normalizers[r * group + g], static_cast<Number*>(row.output) + g * width);
  }
}

template <int kQueries>
[[gnu::always_inline]] inline void attend_any(const PagedRows& rows) {
  if (rows.is_bf16)
    attend_rows<kQueries, std::uint16_t>(rows);
  else
    attend_rows<kQueries, float>(rows);
}

void attend_base(const PagedRows& rows) { attend_any<1>(rows); }
#ifdef __x86_64__
[[gnu::target("avx2,fma")]] void attend_avx2(const PagedRows& rows) { attend_any<2>(rows); }
[[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,fma")]] void attend_avx512(const PagedRows& rows) {
  attend_any<4>(rows);
}
#endif

std::vector<PagedKernel> find_kernels() {
  std::vector<PagedKernel> found;
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    found.push_back({"AVX-512", attend_avx512});
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back({"AVX2", attend_avx2});
#endif
  found.push_back({"portable", attend_base});
  return found;
}

}  // namespace

std::span<const PagedKernel> paged_kernels() {
  static const std::vector<PagedKernel> kFound = find_kernels();
  return kFound;
}

void paged_attention_rows(const PagedRows& rows) { paged_kernels().front().attend(rows); }

std::int64_t paged_scratch(std::int64_t num_queries, std::int64_t width, std::int64_t longest) {
  return num_queries * (padded(longest) + width + padded(width));
}

}  // namespace thinkvg::nn::cpu
