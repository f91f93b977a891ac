#include "thinkvg/core/random.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

namespace thinkvg {
namespace {

using Block = std::array<std::uint32_t, 4>;

// The known answers that Random123 ships (tests/kat_vectors, philox4x32 with 10 rounds).
TEST(Philox, GivesTheKnownAnswers) {
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}), (Block{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
            (Block{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Block{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

std::vector<std::uint32_t> numbers(RandomStream stream, int count) {
  std::vector<std::uint32_t> values;
  for (int i = 0; i < count; ++i) values.push_back(stream.next_u32());
  return values;
}

TEST(RandomStream, IsAFunctionOfItsKey) {
  EXPECT_EQ(numbers(RandomStream({1, 2, 3}), 50), numbers(RandomStream({1, 2, 3}), 50));
  const std::vector<std::uint64_t> key = {1, 2, 3};
  EXPECT_EQ(numbers(RandomStream({1, 2, 3}), 50), numbers(RandomStream(std::span<const std::uint64_t>(key)), 50));
}

TEST(RandomStream, DiffersForEveryOtherKey) {
  std::set<std::vector<std::uint32_t>> seen;
  int keys = 0;
  for (std::uint64_t a = 0; a < 20; ++a)
    for (std::uint64_t b = 0; b < 20; ++b, ++keys) seen.insert(numbers(RandomStream({a, b}), 2));
  seen.insert(numbers(RandomStream({1}), 2));
  seen.insert(numbers(RandomStream({1, 0, 0}), 2));
  seen.insert(numbers(RandomStream(std::initializer_list<std::uint64_t>{}), 2));
  EXPECT_EQ(seen.size(), static_cast<std::size_t>(keys + 3));
}

TEST(RandomStream, StreamsOfNeighbouringKeysAreUncorrelated) {
  constexpr int kCount = 20000;
  for (std::uint64_t step = 0; step < 5; ++step) {
    RandomStream a({7, step}), b({7, step + 1});
    double product = 0;
    for (int i = 0; i < kCount; ++i) product += (a.uniform() - 0.5) * (b.uniform() - 0.5) * 12;
    EXPECT_LT(std::abs(product / kCount), 4.5 / std::sqrt(kCount)) << step;
  }
}

TEST(RandomStream, SeekGivesTheSameNumbersAsReadingOn) {
  const std::vector<std::uint32_t> all = numbers(RandomStream({3}), 40);
  for (std::uint64_t start = 0; start < 20; ++start) {
    RandomStream stream({3});
    stream.next_u64();
    stream.seek(start);
    EXPECT_EQ(stream.position(), start);
    EXPECT_EQ(numbers(stream, 20), std::vector<std::uint32_t>(all.begin() + start, all.begin() + start + 20)) << start;
  }
  RandomStream far({3}), also({3});
  far.seek((std::uint64_t{1} << 34) + 1);
  also.seek(1);
  EXPECT_NE(numbers(far, 4), numbers(also, 4));
}

TEST(RandomStream, UniformFillsItsRange) {
  RandomStream stream({11});
  double sum = 0, squares = 0, low = 1, high = 0;
  constexpr int kCount = 100000;
  for (int i = 0; i < kCount; ++i) {
    const double value = stream.uniform();
    sum += value;
    squares += value * value;
    low = std::min(low, value);
    high = std::max(high, value);
  }
  EXPECT_GE(low, 0.0);
  EXPECT_LT(high, 1.0);
  EXPECT_LT(low, 1e-3);
  EXPECT_GT(high, 1 - 1e-3);
  EXPECT_NEAR(sum / kCount, 0.5, 0.005);
  EXPECT_NEAR(squares / kCount, 1.0 / 3, 0.005);
}

TEST(RandomStream, NormalHasTheMomentsOfANormal) {
  RandomStream stream({12});
  double moments[5] = {};
  constexpr int kCount = 200000;
  for (int i = 0; i < kCount; ++i) {
    const double value = stream.normal();
    for (int k = 1; k <= 4; ++k) moments[k] += std::pow(value, k) / kCount;
  }
  EXPECT_NEAR(moments[1], 0, 0.01);
  EXPECT_NEAR(moments[2], 1, 0.02);
  EXPECT_NEAR(moments[3], 0, 0.05);
  EXPECT_NEAR(moments[4], 3, 0.1);
}

TEST(RandomStream, BelowIsUniform) {
  RandomStream stream({13});
  constexpr int kCount = 70000;
  std::array<int, 7> counts{};
  for (int i = 0; i < kCount; ++i) ++counts.at(stream.below(7));
  double chi_square = 0;
  for (const int count : counts) chi_square += (count - kCount / 7.0) * (count - kCount / 7.0) / (kCount / 7.0);
  EXPECT_LT(chi_square, 22.5);  // the 99.9th percentile for 6 degrees of freedom
}

TEST(RandomStream, BetweenReachesBothEnds) {
  RandomStream stream({14});
  std::set<std::int64_t> seen;
  for (int i = 0; i < 200; ++i) seen.insert(stream.between(-2, 2));
  EXPECT_THAT(seen, testing::ElementsAre(-2, -1, 0, 1, 2));
  constexpr auto kLow = std::numeric_limits<std::int64_t>::min(), kHigh = std::numeric_limits<std::int64_t>::max();
  EXPECT_NE(stream.between(kLow, kHigh), stream.between(kLow, kHigh));
  EXPECT_EQ(stream.between(5, 5), 5);
  EXPECT_THROW(stream.between(3, 2), std::invalid_argument);
  EXPECT_THROW(stream.below(0), std::invalid_argument);
}

TEST(RandomStream, ShuffleIsAPermutationAndUniform) {
  RandomStream stream({15});
  std::array<int, 6> counts{};
  for (int i = 0; i < 6000; ++i) {
    std::vector<int> values = {0, 1, 2};
    stream.shuffle(values);
    std::vector<int> sorted = values;
    std::sort(sorted.begin(), sorted.end());
    ASSERT_THAT(sorted, testing::ElementsAre(0, 1, 2));
    ++counts.at(2 * values[0] + (values[1] > values[2] ? 1 : 0));
  }
  for (const int count : counts) EXPECT_NEAR(count, 1000, 130);
}

TEST(HashKey, TellsNamesApart) {
  std::set<std::uint64_t> seen;
  for (const char* text : {"", "a", "b", "ab", "ba", "aa", "train", "trains"}) seen.insert(hash_key(text));
  EXPECT_EQ(seen.size(), 8u);
  EXPECT_EQ(hash_key("train"), hash_key(std::string("train")));
}

}  // namespace
}  // namespace thinkvg
