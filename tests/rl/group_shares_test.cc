#include "rl/group_shares.h"

#include <gmock/gmock.h>

#include <algorithm>

namespace thinkvg::rl {
namespace {

using Shares = std::vector<std::vector<std::int64_t>>;

TEST(GroupShares, EqualCostsAreDealtInTurn) {
  EXPECT_EQ(balanced_shares({1, 1, 1, 1, 1}, 2), (Shares{{0, 2, 4}, {1, 3}}));
  EXPECT_EQ(balanced_shares({1, 1}, 3), (Shares{{0}, {1}, {}}));
  EXPECT_EQ(balanced_shares({}, 2), (Shares{{}, {}}));
  EXPECT_EQ(balanced_shares({3, 1, 2}, 1), (Shares{{0, 1, 2}}));
}

TEST(GroupShares, LongOnesComeApart) {
  // In turn, rank 0 would have all long ones: 400 against 40.
  EXPECT_EQ(balanced_shares({100, 10, 100, 10, 100, 10, 100, 10}, 2), (Shares{{0, 1, 4, 5}, {2, 3, 6, 7}}));
  const std::vector<double> costs = {90, 10, 20, 30, 5, 80, 40, 25, 60, 15};
  for (const std::int64_t processes : {2, 3, 4}) {
    const Shares shares = balanced_shares(costs, processes);
    std::vector<std::int64_t> all;
    double largest = 0, sum = 0;
    for (const auto& share : shares) {
      double cost = 0;
      for (const std::int64_t place : share) cost += costs[static_cast<std::size_t>(place)];
      largest = std::max(largest, cost);
      sum += cost;
      all.insert(all.end(), share.begin(), share.end());
    }
    std::sort(all.begin(), all.end());
    EXPECT_THAT(all, testing::ElementsAre(0, 1, 2, 3, 4, 5, 6, 7, 8, 9));
    EXPECT_LE(largest, std::max(90.0, 1.1 * sum / static_cast<double>(processes)));
  }
}

TEST(ExpectedLengths, FollowWhatWasDrawn) {
  ExpectedLengths lengths;
  EXPECT_EQ(lengths.of("open"), 1);
  lengths.add({{"open", {400, 4}}, {"closed", {40, 4}}, {"none", {0, 0}}});
  EXPECT_DOUBLE_EQ(lengths.of("open"), 100);
  EXPECT_DOUBLE_EQ(lengths.of("closed"), 10);
  EXPECT_DOUBLE_EQ(lengths.of("another"), 55);
  for (int step = 0; step < 30; ++step) lengths.add({{"open", {800, 4}}});
  EXPECT_NEAR(lengths.of("open"), 200, 1);
  EXPECT_DOUBLE_EQ(lengths.of("closed"), 10) << "what did not come again stays as it was";
  ExpectedLengths again;
  again.load_state(Json::parse(lengths.state().dump()));
  EXPECT_EQ(again.of("open"), lengths.of("open"));
  EXPECT_EQ(again.state(), lengths.state());
}

}  // namespace
}  // namespace thinkvg::rl
