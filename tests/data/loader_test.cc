#include "thinkvg/data/loader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <numeric>
#include <set>

#include "thinkvg/core/random.h"
#include "thinkvg/data/packing.h"

namespace thinkvg::data {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class Numbered final : public Dataset {
 public:
  explicit Numbered(std::int64_t size, std::int64_t bad = -1) : size_(size), bad_row_(bad) {}
  std::int64_t size() const override { return size_; }
  Sample get(std::int64_t index) const override {
    if (index == bad_row_) throw std::runtime_error("the row cannot be read");
    Sample sample;
    sample.id = std::to_string(index);
    return sample;
  }
  const std::vector<BadRow>& bad_rows() const override { return bad_; }

 private:
  std::int64_t size_, bad_row_;
  std::vector<BadRow> bad_;
};

std::vector<std::int64_t> take(BatchLoader& loader, int count) {
  std::vector<std::int64_t> rows;
  for (int i = 0; i < count; ++i) {
    const std::int64_t step = loader.position();
    const Batch batch = loader.next();
    EXPECT_EQ(batch.step, step);
    EXPECT_EQ(loader.position(), step + 1);
    for (std::size_t k = 0; k < batch.indices.size(); ++k)
      EXPECT_EQ(batch.samples[k].id, std::to_string(batch.indices[k]));
    rows.insert(rows.end(), batch.indices.begin(), batch.indices.end());
  }
  return rows;
}

TEST(BatchLoader, EachPassHoldsEveryRowOnce) {
  BatchLoader loader(std::make_shared<Numbered>(10), {4, 3});
  const std::vector<std::int64_t> rows = take(loader, 5);
  for (int pass = 0; pass < 2; ++pass)
    EXPECT_EQ(std::set<std::int64_t>(rows.begin() + 10 * pass, rows.begin() + 10 * pass + 10).size(), 10u);
  EXPECT_NE(std::vector<std::int64_t>(rows.begin(), rows.begin() + 10),
            std::vector<std::int64_t>(rows.begin() + 10, rows.end()));
}

TEST(BatchLoader, TheOrderDependsOnTheSeedOnly) {
  const auto rows_with = [](std::uint64_t seed, std::int64_t ahead) {
    BatchLoader loader(std::make_shared<Numbered>(37), {5, seed, ahead},
                       [](const auto&) { std::this_thread::sleep_for(std::chrono::microseconds(200)); });
    return take(loader, 20);
  };
  const std::vector<std::int64_t> rows = rows_with(9, 0);
  EXPECT_EQ(rows_with(9, 1), rows);
  EXPECT_EQ(rows_with(9, 8), rows);
  EXPECT_NE(rows_with(10, 2), rows);
}

TEST(BatchLoader, APositionIsRestoredExactly) {
  BatchLoader whole(std::make_shared<Numbered>(23), {4, 1});
  const std::vector<std::int64_t> rows = take(whole, 30);
  for (const std::int64_t step : {0, 1, 5, 6, 17}) {
    BatchLoader resumed(std::make_shared<Numbered>(23), {4, 1, 2, step});
    EXPECT_EQ(take(resumed, 5), std::vector<std::int64_t>(rows.begin() + 4 * step, rows.begin() + 4 * step + 20));
    resumed.seek(step + 2);
    EXPECT_EQ(take(resumed, 3), std::vector<std::int64_t>(rows.begin() + 4 * step + 8, rows.begin() + 4 * step + 20));
  }
}

TEST(BatchLoader, WorksAheadButNotMoreThanAsked) {
  std::atomic<int> announced{0};
  BatchLoader loader(std::make_shared<Numbered>(100), {2, 1, 3}, [&](const std::vector<Sample>& samples) {
    EXPECT_EQ(samples.size(), 2u);
    ++announced;
  });
  for (int i = 0; i < 1000 && announced < 3; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  std::this_thread::sleep_for(std::chrono::milliseconds(30));
  EXPECT_EQ(announced, 3);
  take(loader, 2);
  for (int i = 0; i < 1000 && announced < 5; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_EQ(announced, 5);
}

TEST(BatchLoader, FailuresComeWithTheirBatch) {
  EpochOrder order(12, 3, 4);
  const std::int64_t bad = order.batch(2)[1];
  for (const std::int64_t ahead : {0, 2}) {
    BatchLoader loader(std::make_shared<Numbered>(12, bad), {3, 4, ahead});
    take(loader, 2);
    for (int again = 0; again < 2; ++again)
      EXPECT_THAT([&] { loader.next(); }, ::testing::ThrowsMessage<std::runtime_error>(AllOf(
                                              HasSubstr("row " + std::to_string(bad)), HasSubstr("cannot be read"))));
    EXPECT_EQ(loader.position(), 2);
    loader.seek(3);
    take(loader, 1);
  }
  BatchLoader loud(std::make_shared<Numbered>(12), {3, 4, 1},
                   [](const std::vector<Sample>&) { throw std::runtime_error("sample 5: its picture is missing"); });
  EXPECT_THAT([&] { loud.next(); }, ::testing::ThrowsMessage<std::runtime_error>(HasSubstr("sample 5")));
}

TEST(BatchLoader, OptionsAreChecked) {
  EXPECT_THROW(BatchLoader(std::make_shared<Numbered>(0), {}), std::invalid_argument);
  EXPECT_THROW(BatchLoader(std::make_shared<Numbered>(3), {0}), std::invalid_argument);
  EXPECT_THROW(BatchLoader(std::make_shared<Numbered>(3), {1, 0, -1}), std::invalid_argument);
  EXPECT_THROW(EpochOrder(3, 1, 0).batch(-1), std::invalid_argument);
}

std::vector<std::int64_t> random_lengths(std::int64_t count, std::uint64_t seed) {
  RandomStream random({seed});
  std::vector<std::int64_t> lengths;
  for (std::int64_t i = 0; i < count; ++i) lengths.push_back(random.between(300, 1500));
  return lengths;
}

TEST(Packing, HoldsEachSequenceOnceWithinTheCapacity) {
  for (const std::int64_t window : {1, 7, 64, 5000}) {
    const std::vector<std::int64_t> lengths = random_lengths(500, 3);
    const Packing packing = pack_by_length(lengths, 4096, window);
    std::vector<std::int64_t> seen;
    std::int64_t total = 0;
    for (const auto& pack : packing.packs) {
      std::int64_t length = 0;
      for (const std::int64_t i : pack) length += lengths[static_cast<std::size_t>(i)];
      EXPECT_LE(length, 4096);
      EXPECT_LT(pack.back() - pack.front(), window);
      EXPECT_TRUE(std::is_sorted(pack.begin(), pack.end()));
      total += length;
      seen.insert(seen.end(), pack.begin(), pack.end());
    }
    std::sort(seen.begin(), seen.end());
    std::vector<std::int64_t> all(500);
    std::iota(all.begin(), all.end(), 0);
    EXPECT_EQ(seen, all);
    EXPECT_DOUBLE_EQ(packing.fill, static_cast<double>(total) / (4096.0 * static_cast<double>(packing.packs.size())));
  }
}

TEST(Packing, WastesLittle) {
  const std::vector<std::int64_t> lengths = random_lengths(4096, 5);
  const double in_order = [&] {
    std::int64_t packs = 0, room = 0, total = 0;
    for (const std::int64_t length : lengths) {
      total += length;
      if (room < length) {
        ++packs;
        room = 4096;
      }
      room -= length;
    }
    return static_cast<double>(total) / (4096.0 * static_cast<double>(packs));
  }();
  const double packed = pack_by_length(lengths, 4096, 512).fill;
  EXPECT_LT(in_order, 0.90);
  EXPECT_GT(packed, 0.97);
  EXPECT_GE(pack_by_length(lengths, 4096, 4096).fill, packed - 0.005);
}

TEST(Packing, EdgesAreHandled) {
  EXPECT_TRUE(pack_by_length({}, 10).packs.empty());
  const Packing packing = pack_by_length({30, 5, 5, 0}, 10);
  EXPECT_EQ(packing.packs, (std::vector<std::vector<std::int64_t>>{{0, 3}, {1, 2}}));
  EXPECT_DOUBLE_EQ(packing.fill, 2.0);
  EXPECT_THROW(pack_by_length({1}, 0), std::invalid_argument);
  EXPECT_THROW(pack_by_length({1}, 5, 0), std::invalid_argument);
  EXPECT_THROW(pack_by_length({-1}, 5), std::invalid_argument);
}

}  // namespace
}  // namespace thinkvg::data
