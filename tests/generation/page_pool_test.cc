#include "generation/page_pool.h"

#include <gtest/gtest.h>

#include <map>

#include "thinkvg/core/random.h"

namespace thinkvg::generation {
namespace {

// Random use against plain counting.
TEST(PagePool, CountsHoldersAndRemembers) {
  RandomStream random({1});
  PagePool pool(12);
  std::map<std::int64_t, std::int64_t> holders;
  std::map<std::string, std::int64_t> known;
  const auto num_held = [&] {
    std::int64_t count = 0;
    for (const auto& [page, number] : holders) count += number > 0;
    return count;
  };
  int num_evicted = 0, num_found = 0;
  for (int i = 0; i < 5000; ++i) {
    const auto some = [&]() -> std::int64_t {
      std::vector<std::int64_t> held;
      for (const auto& [page, number] : holders)
        if (number > 0) held.push_back(page);
      return held.empty() ? -1 : held[random.below(held.size())];
    };
    switch (random.below(5)) {
      case 0: {
        const auto page = pool.take();
        EXPECT_EQ(page.has_value(), num_held() < 12);
        if (!page) break;
        EXPECT_EQ(holders[*page], 0);
        holders[*page] = 1;
        num_evicted += static_cast<int>(std::erase_if(known, [&](const auto& item) { return item.second == *page; }));
        break;
      }
      case 1:
        if (const std::int64_t page = some(); page >= 0) {
          pool.hold(page);
          ++holders[page];
        }
        break;
      case 2:
      case 3:
        if (const std::int64_t page = some(); page >= 0) {
          pool.release(page);
          --holders[page];
        }
        break;
      default:
        const std::string key = std::to_string(random.below(20));
        EXPECT_EQ(pool.knows(key), known.contains(key));
        if (const auto page = pool.find(key)) {
          EXPECT_EQ(*page, known.at(key));
          ++holders[*page];
          ++num_found;
        } else if (const std::int64_t held = some(); held >= 0) {
          bool has_key = false;
          for (const auto& [other, where] : known) has_key = has_key || where == held;
          pool.remember(held, key);
          if (!has_key) known.emplace(key, held);
        }
    }
    ASSERT_EQ(pool.num_held(), num_held());
    for (const auto& [page, number] : holders) ASSERT_EQ(pool.num_holders(page), number);
  }
  EXPECT_GT(num_evicted, 10);
  EXPECT_GT(num_found, 10);
}

TEST(PagePool, ThePageUnusedForLongestGoesFirst) {
  PagePool pool(2);
  const std::int64_t a = *pool.take(), b = *pool.take();
  pool.remember(a, "a");
  pool.remember(b, "b");
  pool.release(b);
  pool.release(a);
  EXPECT_EQ(pool.num_available(), 2);
  EXPECT_EQ(*pool.take(), b);
  EXPECT_FALSE(pool.find("b"));
  EXPECT_EQ(*pool.find("a"), a);
  EXPECT_FALSE(pool.take());
  pool.release(a);
  EXPECT_THROW(pool.release(a), std::invalid_argument);
}

}  // namespace
}  // namespace thinkvg::generation
