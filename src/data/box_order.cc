#include "data/box_order.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>

#include "thinkvg/grounding/response.h"

namespace thinkvg::data {
namespace {

void count_reversed(const std::vector<grounding::Region>& regions, std::int64_t row, ReversedBoxes& found) {
  for (const grounding::Region& region : regions) {
    ++found.num_boxes;
    const grounding::Box& box = region.box;
    if (box.x1 <= box.x2 && box.y1 <= box.y2) continue;
    if (found.num_reversed++ == 0)
      found.example = fmt::format("row {}: {} of '{}'", row, grounding::format_box(box), region.name);
  }
}

}  // namespace

ReversedBoxes find_reversed_boxes(const Dataset& dataset) {
  constexpr std::int64_t kMostRows = 20'000;
  ReversedBoxes found;
  const auto num_bad = static_cast<std::int64_t>(dataset.bad_rows().size());
  for (std::int64_t i = 0; i < std::min(num_bad, kMostRows); ++i) {
    const auto salvaged = dataset.salvage(i);
    if (!salvaged) continue;
    const std::int64_t row = dataset.bad_rows()[static_cast<std::size_t>(i)].row;
    count_reversed(salvaged->sample.regions, row, found);
    for (const auto& regions : salvaged->sample.more_regions) count_reversed(regions, row, found);
  }
  return found;
}

bool is_another_order(const ReversedBoxes& found, std::int64_t num_good_boxes) {
  return found.num_reversed >= 5 && 20 * found.num_reversed > found.num_boxes + num_good_boxes;
}

}  // namespace thinkvg::data
