#include "thinkvg/data/packing.h"

#include <algorithm>
#include <bit>
#include <numeric>

#include "thinkvg/core/error.h"

namespace thinkvg::data {
namespace {

// Free room of packs in a tree of maxima: the first pack with enough room is found in O(log n).
class FreeRoom {
 public:
  FreeRoom(std::size_t most, std::int64_t capacity)
      : leaves_(std::bit_ceil(std::max<std::size_t>(most, 1))), room_(2 * leaves_, capacity) {}

  // The earliest pack that takes `length`, which must not exceed the capacity of a new pack.
  std::size_t take(std::int64_t length) {
    std::size_t at = 1;
    while (at < leaves_) at = room_[2 * at] >= length ? 2 * at : 2 * at + 1;
    const std::size_t pack = at - leaves_;
    room_[at] -= length;
    for (at /= 2; at > 0; at /= 2) room_[at] = std::max(room_[2 * at], room_[2 * at + 1]);
    return pack;
  }

 private:
  std::size_t leaves_;
  std::vector<std::int64_t> room_;
};

}  // namespace

Packing pack_by_length(const std::vector<std::int64_t>& lengths, std::int64_t capacity, std::int64_t window) {
  if (capacity < 1 || window < 1) {
    throw_invalid("packing: capacity {} and window {}; both must be at least 1", capacity, window);
  }
  Packing packing;
  double total = 0;
  const auto count = static_cast<std::int64_t>(lengths.size());
  for (std::int64_t begin = 0; begin < count; begin += window) {
    const std::int64_t end = std::min(count, begin + window);
    std::vector<std::int64_t> order(static_cast<std::size_t>(end - begin));
    std::iota(order.begin(), order.end(), begin);
    const auto length = [&](std::int64_t i) { return lengths[static_cast<std::size_t>(i)]; };
    std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) { return length(a) > length(b); });
    std::vector<std::vector<std::int64_t>> packs(order.size());
    FreeRoom room(order.size(), capacity);
    for (const std::int64_t i : order) {
      if (length(i) < 0) throw_invalid("packing: sequence {} has the length {}", i, length(i));
      total += static_cast<double>(length(i));
      packs[room.take(std::min(length(i), capacity))].push_back(i);
    }
    std::erase_if(packs, [](const auto& pack) { return pack.empty(); });
    for (auto& pack : packs) std::sort(pack.begin(), pack.end());
    std::sort(packs.begin(), packs.end());
    packing.packs.insert(packing.packs.end(), packs.begin(), packs.end());
  }
  if (!packing.packs.empty())
    packing.fill = total / (static_cast<double>(packing.packs.size()) * static_cast<double>(capacity));
  return packing;
}

}  // namespace thinkvg::data
