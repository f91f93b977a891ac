#pragma once

#include <cstdint>
#include <vector>

namespace thinkvg::data {

// Sequences that go through a model end to end, without padding.
struct Packing {
  std::vector<std::vector<std::int64_t>> packs;  // indices into the lengths, ascending in each pack
  double fill = 0;  // share of packs.size() * capacity that the sequences use; above 1 only for overlong sequences
};

// First-fit-decreasing inside windows of neighbours: of each `window` sequences in a row the longest goes first, into
// the earliest pack of the window that still takes it. Waste stays low, memory too, and a sequence moves at most a
// window away from its place in the order. The result depends on the lengths only. A sequence longer than `capacity`
// gets a pack of its own. Packs are in the order of their first sequences. O(n log window).
// Throws std::invalid_argument unless capacity and window are at least 1 and all lengths at least 0.
Packing pack_by_length(const std::vector<std::int64_t>& lengths, std::int64_t capacity, std::int64_t window = 1024);

}  // namespace thinkvg::data
