#include "thinkvg/dist/plan.h"

#include <gtest/gtest.h>

#include <stdexcept>

namespace thinkvg::dist {
namespace {

constexpr std::int64_t kBillion = 1'000'000'000;

TEST(PlanTest, MemoryOfAProcess) {
  struct Row {
    std::int64_t bytes_per_weight;
    const char* sharding;
    std::int64_t world_size;
    std::int64_t weights, gradients, optimizer;  // in units of a billion bytes, for 8 billion parameters
  };
  const Row rows[] = {
      {4, "none", 1, 32, 64, 64},      {2, "none", 1, 16, 48, 96},     {2, "none", 8, 16, 48, 96},
      {2, "optimizer", 8, 16, 48, 12}, {4, "optimizer", 8, 32, 64, 8}, {2, "gradients", 8, 16, 20, 12},
      {2, "gradients", 1, 16, 48, 96},
  };
  for (const Row& row : rows) {
    SCOPED_TRACE(std::string(row.sharding) + " " + std::to_string(row.world_size));
    const PlannedMemory memory =
        plan_memory({8 * kBillion, 8 * kBillion, row.bytes_per_weight, 64, row.sharding}, row.world_size);
    EXPECT_EQ(memory.weights, row.weights * kBillion);
    EXPECT_EQ(memory.gradients, row.gradients * kBillion);
    EXPECT_EQ(memory.optimizer, row.optimizer * kBillion);
    EXPECT_EQ(memory.total(), memory.weights + memory.gradients + memory.optimizer + memory.buckets);
    EXPECT_EQ(memory.buckets > 0, row.world_size > 1);
  }
  // Adapters: only they have gradients and states.
  const PlannedMemory adapters = plan_memory({8 * kBillion, kBillion / 100, 2, 64, "none"}, 4);
  EXPECT_EQ(adapters.weights, 16 * kBillion);
  EXPECT_EQ(adapters.optimizer, 12 * kBillion / 100);
}

TEST(PlanTest, BytesSentInAStep) {
  const auto sent = [](const char* sharding, std::int64_t world_size, std::int64_t micro_batches) {
    return plan_communication({8 * kBillion, 8 * kBillion, 2, 64, sharding}, world_size, micro_batches).total();
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
