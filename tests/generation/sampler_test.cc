#include "generation/sampler.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <set>

namespace thinkvg::generation {
namespace {

using Logits = std::vector<float>;
constexpr float kMasked = -std::numeric_limits<float>::infinity();

// The distribution by its definition, with everything sorted.
std::vector<double> distribution(Logits logits, const Sampler::Settings& settings, const std::set<std::int64_t>& seen) {
  const SamplingOptions& sampling = settings.sampling;
  for (const std::int64_t id : seen) {
    float& logit = logits[static_cast<std::size_t>(id)];
    const auto penalty = static_cast<float>(sampling.repetition_penalty);
    logit = logit > 0 ? logit / penalty : logit * penalty;
  }
  for (const std::int64_t id : settings.banned) logits[static_cast<std::size_t>(id)] = kMasked;
  const double temperature = sampling.temperature == 0 ? 1 : sampling.temperature;
  std::vector<std::size_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return logits[a] > logits[b]; });
  std::vector<double> p(logits.size());
  const auto normalize = [&] {
    const double total = std::accumulate(p.begin(), p.end(), 0.0);
    for (double& value : p) value /= total;
  };
  for (std::size_t i = 0; i < p.size(); ++i)
    p[i] = std::exp((static_cast<double>(logits[i]) - logits[order[0]]) / temperature);
  normalize();
  if (sampling.temperature == 0) return p;
  if (sampling.top_k > 0)
    for (std::size_t i = static_cast<std::size_t>(sampling.top_k); i < order.size(); ++i) p[order[i]] = 0;
  normalize();
  double before = 0;
  for (const std::size_t id : order) {
    const double own = p[id];
    if (before >= sampling.top_p) p[id] = 0;
    before += own;
  }
  normalize();
  const double least = sampling.min_p * p[order[0]];
  for (double& value : p) value = value < least ? 0 : value;
  normalize();
  return p;
}

Logits random_logits(std::size_t size, RandomStream& random, double spread) {
  Logits logits(size);
  for (float& value : logits) value = static_cast<float>(spread * random.normal());
  return logits;
}

// Sampling settings of all kinds against the definition: each drawn token and its log-probability.
TEST(Sampler, DrawsFromTheDefinedDistribution) {
  RandomStream random({1});
  for (int round = 0; round < 400; ++round) {
    const std::size_t vocabulary = random.chance(0.3) ? 5000 : 10 + random.below(700);
    auto settings = std::make_shared<Sampler::Settings>();
    SamplingOptions& sampling = settings->sampling;
    sampling.temperature = random.chance(0.15) ? 0 : random.uniform(0.3, 2);
    if (random.chance(0.5)) sampling.top_k = random.between(1, 60);
    if (random.chance(0.5)) sampling.top_p = random.uniform(0.05, 1);
    if (random.chance(0.4)) sampling.min_p = random.uniform(0, 0.5);
    if (random.chance(0.4)) sampling.repetition_penalty = random.uniform(0.8, 1.6);
    settings->num_top = random.between(0, 5);
    for (std::uint64_t i = random.below(5); i > 0; --i)
      settings->banned.push_back(static_cast<std::int64_t>(random.below(vocabulary)));
    const std::vector<std::int64_t> prompt = {3, 5, 3, static_cast<std::int64_t>(vocabulary) - 1};
    std::set<std::int64_t> seen(prompt.begin(), prompt.end());
    Sampler sampler(settings, prompt, RandomStream({9, static_cast<std::uint64_t>(round)}));
    for (int step = 0; step < 4; ++step) {
      const Logits logits = random_logits(vocabulary, random, random.uniform(0.5, 6));
      const std::vector<double> expected = distribution(logits, *settings, seen);
      Logits row = logits;
      const auto token = sampler.draw(row);
      ASSERT_TRUE(token);
      const double p = expected[static_cast<std::size_t>(token->id)];
      ASSERT_GT(p, 0) << round;
      ASSERT_NEAR(token->logprob, std::log(p), 2e-5 * std::max(1.0, -std::log(p))) << round;
      if (sampling.temperature == 0) {
        ASSERT_EQ(p, *std::max_element(expected.begin(), expected.end()));
      }
      const auto num_possible = std::count_if(expected.begin(), expected.end(), [](double value) { return value > 0; });
      ASSERT_EQ(std::ssize(token->top), std::min<std::int64_t>(settings->num_top, num_possible));
      std::vector<double> sorted = expected;
      std::sort(sorted.rbegin(), sorted.rend());
      for (std::size_t i = 0; i < token->top.size(); ++i) {
        ASSERT_NEAR(token->top[i].second, std::log(sorted[i]), 2e-5 * std::max(1.0, -std::log(sorted[i])));
        ASSERT_NEAR(expected[static_cast<std::size_t>(token->top[i].first)], sorted[i], 1e-9);
      }
      if (sampling.repetition_penalty != 1) seen.insert(token->id);
    }
  }
}

// Frequencies, where draws go through blocks of the vocabulary and where they go through chosen tokens.
TEST(Sampler, FrequenciesFollowTheProbabilities) {
  RandomStream random({2});
  const Logits logits = random_logits(1500, random, 2.5);
  for (const SamplingOptions& sampling : {SamplingOptions{}, SamplingOptions{.top_k = 20},
                                          SamplingOptions{.top_p = 0.7}, SamplingOptions{.min_p = 0.1}}) {
    auto settings = std::make_shared<Sampler::Settings>();
    settings->sampling = sampling;
    const std::vector<double> expected = distribution(logits, *settings, {});
    Sampler sampler(settings, {}, RandomStream({4}));
    constexpr int kDraws = 20000;
    std::map<std::int64_t, int> counts;
    for (int i = 0; i < kDraws; ++i) {
      Logits row = logits;
      ++counts[sampler.draw(row)->id];
    }
    double chi_square = 0;
    int cells = 0;
    double rest = 0, rest_count = 0;
    for (std::size_t id = 0; id < logits.size(); ++id) {
      const double mean = kDraws * expected[id];
      const double count = counts[static_cast<std::int64_t>(id)];
      if (mean < 8) {
        rest += mean;
        rest_count += count;
        continue;
      }
      chi_square += (count - mean) * (count - mean) / mean;
      ++cells;
    }
    if (rest > 8) chi_square += (rest_count - rest) * (rest_count - rest) / rest;
    EXPECT_LT(chi_square, cells + 5 * std::sqrt(2.0 * cells) + 5);
  }
}

TEST(Sampler, NoEndBeforeTheLeastNumberOfTokens) {
  auto settings = std::make_shared<Sampler::Settings>();
  settings->sampling = {.temperature = 0, .min_new_tokens = 3};
  settings->end_ids = {2};
  Sampler sampler(settings, {}, RandomStream({1}));
  for (int i = 0; i < 5; ++i) {
    Logits row = {0, 1, 9, 0.5};
    EXPECT_EQ(sampler.draw(row)->id, i < 3 ? 1 : 2);
  }
}

// Words over {0, 1, 2}: "0 1 2" and then the end (3).
class OneWord final : public text::TokenConstraint {
 public:
  State start() const override { return 0; }
  std::span<const std::uint64_t> allowed(State state) const override {
    return {&kWords[static_cast<std::size_t>(state)], 1};
  }
  State next(State state, std::int64_t id) const override { return id == state ? state + 1 : kDead; }
  bool accepts(State state) const override { return state >= 3; }

 private:
  static constexpr std::uint64_t kWords[] = {1, 2, 4, 8, 8};
};

TEST(Sampler, ObeysAConstraint) {
  auto settings = std::make_shared<Sampler::Settings>();
  settings->constraint = std::make_shared<OneWord>();
  settings->end_ids = {3};
  settings->sampling.min_new_tokens = 10;  // the constraint's end comes first
  Sampler sampler(settings, {}, RandomStream({1}));
  RandomStream random({5});
  for (std::int64_t expected = 0; expected < 4; ++expected) {
    Logits row = random_logits(100, random, 3);
    const auto token = sampler.draw(row);
    ASSERT_TRUE(token);
    EXPECT_EQ(token->id, expected);
    EXPECT_NEAR(token->logprob, 0, 1e-6);
  }
  settings = std::make_shared<Sampler::Settings>(*settings);
  settings->banned = {0};
  Sampler stuck(settings, {}, RandomStream({1}));
  Logits row = random_logits(100, random, 3);
  EXPECT_FALSE(stuck.draw(row));
}

TEST(Sampler, NothingIsDrawnFromLogitsThatAreNoNumbers) {
  auto settings = std::make_shared<Sampler::Settings>();
  Sampler sampler(settings, {}, RandomStream({1}));
  Logits row(50, std::numeric_limits<float>::quiet_NaN());
  EXPECT_FALSE(sampler.draw(row));
}

TEST(Sampler, SettingsAreChecked) {
  EXPECT_NO_THROW(SamplingOptions{}.check());
  for (const SamplingOptions& wrong :
       {SamplingOptions{.max_new_tokens = 0}, SamplingOptions{.temperature = -1}, SamplingOptions{.top_k = -1},
        SamplingOptions{.top_p = 0}, SamplingOptions{.min_p = 1.5}, SamplingOptions{.repetition_penalty = 0},
        SamplingOptions{.max_new_tokens = 2, .min_new_tokens = 3}})
    EXPECT_THROW(wrong.check(), std::invalid_argument);
}

}  // namespace
}  // namespace thinkvg::generation
