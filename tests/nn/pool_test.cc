#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "thinkvg/nn/workers.h"

namespace thinkvg::nn {
namespace {

class Threads {
 public:
  explicit Threads(int count) : before_(at::get_num_threads()) { at::set_num_threads(count); }
  ~Threads() { at::set_num_threads(before_); }

 private:
  int before_;
};

TEST(Pool, EveryPieceOnce) {
  const Threads threads(4);
  for (const std::int64_t count : {0, 1, 2, 7, 100, 5000}) {
    for (const std::int64_t grain : {1, 3, 64}) {
      for (int round = 0; round < 50; ++round) {
        std::vector<std::atomic<int>> calls(static_cast<std::size_t>(count));
        share_out(count, grain, [&](std::int64_t begin, std::int64_t end) {
          EXPECT_LT(begin, end);
          for (std::int64_t i = begin; i < end; ++i) ++calls[static_cast<std::size_t>(i)];
        });
        for (const std::atomic<int>& number : calls) ASSERT_EQ(number, 1);
      }
    }
  }
}

TEST(Pool, ManyCallersAndCallsInsideOfCalls) {
  const Threads threads(3);
  std::atomic<std::int64_t> sum{0};
  {
    std::vector<std::jthread> callers;
    for (int caller = 0; caller < 4; ++caller)
      callers.emplace_back([&] {
        at::set_num_threads(3);
        for (int round = 0; round < 300; ++round)
          share_out(20, 1, [&](std::int64_t begin, std::int64_t end) {
            share_out(end - begin, 1, [&](std::int64_t from, std::int64_t to) { sum += to - from; });
          });
      });
  }
  EXPECT_EQ(sum, 4 * 300 * 20);
}

TEST(Pool, ThreadsThatSleptComeBack) {
  const Threads threads(2);
  std::atomic<std::int64_t> sum{0};
  for (int round = 0; round < 5; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    share_out(1000, 1, [&](std::int64_t begin, std::int64_t end) { sum += end - begin; });
  }
  EXPECT_EQ(sum, 5000);
}

}  // namespace
}  // namespace thinkvg::nn
