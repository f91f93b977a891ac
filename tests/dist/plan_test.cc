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
  EXPECT_THROW(sent("zero3", 8, 1), std::invalid_argument);
  EXPECT_THROW(sent("none", 0, 1), std::invalid_argument);
}

}  // namespace
}  // namespace thinkvg::dist
