#pragma once

#include <array>
#include <vector>

namespace thinkvg::eval {

// Figures of the GEMeX paper (ICCV 2025) on its own test set, in percent: published, not measured here. 0: not given.
struct PublishedFigures {
  const char* system;
  std::array<double, 5> ar_score;  // open, closed, single choice, multi choice, mean
  std::array<double, 4> v_score;   // open, closed, single choice, multi choice
};
const std::vector<PublishedFigures>& published_gemex();

}  // namespace thinkvg::eval
