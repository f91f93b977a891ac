#include "thinkvg/dist/plan.h"

#include <gtest/gtest.h>

#include <stdexcept>

namespace thinkvg::dist {
namespace {

constexpr std::int64_t kBillion = 1'000'000'000;

TEST(PlanTest, BytesSentInAStep) {
  const auto sent = [](const char* sharding, std::int64_t world_size, std::int64_t micro_batches) {
    return plan_communication({8 * kBillion, 2, sharding}, world_size, micro_batches).total();
  };
  EXPECT_EQ(sent("none", 1, 1), 0);
  EXPECT_EQ(sent("none", 8, 1), 2 * 7 * 4 * kBillion);
  EXPECT_EQ(sent("none", 8, 4), 2 * 7 * 4 * kBillion);  // once a step
  EXPECT_EQ(sent("optimizer", 8, 4), 7 * 4 * kBillion + 7 * 2 * kBillion);
  EXPECT_EQ(sent("gradients", 8, 4), 4 * 7 * 4 * kBillion + 7 * 2 * kBillion);
  const auto split = [](std::int64_t micro_batches, std::int64_t whole_fetches) {
    const SplitWeights weights{
        .outside = kBillion, .in_blocks = 7 * kBillion, .backward = 6 * kBillion, .largest_block = kBillion};
    return plan_communication({8 * kBillion, 2, "parameters", weights, whole_fetches}, 8, micro_batches);
  };
  EXPECT_EQ(split(1, 0).gradients, 7 * 4 * kBillion);
  EXPECT_EQ(split(1, 0).parameters, 7 * 2 * (1 + 7 + 6) * kBillion / 8);
  EXPECT_EQ(split(4, 1).gradients, 4 * 7 * 4 * kBillion);
  EXPECT_EQ(split(4, 1).parameters, 7 * 2 * (1 + 4 * (7 + 6) + 8) * kBillion / 8);
  // Two nodes of four: within a node as above, and a quarter of the sums between the two.
  const auto hybrid = [](const char* sharding, std::int64_t micro_batches) {
    const SplitWeights weights{
        .outside = kBillion, .in_blocks = 7 * kBillion, .backward = 6 * kBillion, .largest_block = kBillion};
    return plan_communication({8 * kBillion, 2, sharding, weights, 0, 0, 4}, 8, micro_batches);
  };
  EXPECT_EQ(hybrid("optimizer", 4).gradients, 3 * 8 * kBillion + 8 * kBillion);
  EXPECT_EQ(hybrid("optimizer", 4).parameters, 3 * 4 * kBillion);
  EXPECT_EQ(hybrid("gradients", 4).gradients, 4 * (3 * 8 * kBillion + 8 * kBillion));
  EXPECT_EQ(hybrid("parameters", 4).gradients, 4 * 3 * 8 * kBillion + 8 * kBillion);
  EXPECT_EQ(hybrid("parameters", 4).parameters, 3 * 2 * (1 + 4 * (7 + 6)) * kBillion / 4);
  EXPECT_THROW(plan_communication({8, 2, "optimizer", {}, 0, 0, 3}, 8, 1), std::invalid_argument);
  // A tower of 2 billion, and 100 passes over the 5 billion of the layers.
  const SplitWeights towered{
      .outside = kBillion, .in_blocks = 7 * kBillion, .largest_block = kBillion, .in_tower = 2 * kBillion};
  EXPECT_EQ(plan_communication({8 * kBillion, 2, "parameters", towered, 0, 100}, 8, 1).parameters,
            7 * 2 * (1 + 7 + 1 + 2 + 100 * 5) * kBillion / 8);
  EXPECT_THROW(sent("zero3", 8, 1), std::invalid_argument);
  EXPECT_THROW(sent("none", 0, 1), std::invalid_argument);
}

}  // namespace
}  // namespace thinkvg::dist
