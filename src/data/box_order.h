#pragma once

#include <cstdint>
#include <string>

#include "thinkvg/data/dataset.h"

namespace thinkvg::data {

// Boxes whose second corner lies before the first. A slip of one row can be mended by exchanging the corners; where
// many are so, the numbers are no corners at all, and exchanging them would make wrong boxes that look right.
struct ReversedBoxes {
  std::int64_t num_reversed = 0;  // in the rows that cannot be used: rows with such a box are among them
  std::int64_t num_boxes = 0;     // in these rows
  std::string example;            // of the first
};
// Looks at no more than 20,000 rows.
ReversedBoxes find_reversed_boxes(const Dataset& dataset);

// Five or more, and more than a twentieth of all boxes; `num_good_boxes`: those of the usable rows.
bool is_another_order(const ReversedBoxes& found, std::int64_t num_good_boxes);

}  // namespace thinkvg::data
