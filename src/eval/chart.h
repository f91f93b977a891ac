#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

// Charts as inline SVG. Colours come from the page's style sheet by class: axis, grid, tick, raw, smooth, whisker,
// s0, s1, .. (one a series), so that a page can have a light and a dark look.
namespace thinkvg::eval::chart {

struct Bar {
  std::string series;  // for the tooltip
  int series_index = 0;
  double value = 0;
  std::optional<double> low, high;
};
struct BarGroup {
  std::string label;
  std::vector<Bar> bars;
};
// Bars from 0 with interval whiskers.
std::string bars(const std::vector<BarGroup>& groups, const std::string& description);

// Counts as touching columns over [0, 1]; the first column, set apart, is for values of exactly 0.
struct Columns {
  double zero = 0;             // share of the values
  std::vector<double> shares;  // of equal parts of (0, 1]
  int series_index = 0;
};
// `top`: the share at the upper edge, so that several charts have one scale.
std::string columns(const Columns& columns, double top, const std::string& description);

// Accuracy against confidence: a point a bin, as large as its share of the answers, and the diagonal.
struct Spot {
  double x = 0, y = 0;
  double share = 0;
  std::string tip;
};
std::string spots(const std::vector<Spot>& spots, int series_index, const std::string& description);

using Points = std::vector<std::pair<std::int64_t, double>>;  // (step, value), steps rising

// One curve over steps; a noisy one (see is_noisy) is drawn faint under its moving average.
std::string line(const Points& points, const std::string& description);

// Zero line and one interval, on a common scale from -extent to +extent.
struct Difference {
  double value = 0;
  std::optional<double> low, high;
};
std::string difference(const Difference& difference, double extent);

// What the charts are made of.
// Values of a step 1, 2, 2.5 or 5 times a power of ten that lie in [low, high]; about `count` of them.
std::vector<double> ticks(double low, double high, int count);
// The curve goes up and down by more than three times its range (rare spikes aside), with enough points to average.
bool is_noisy(const Points& points);
// Centred mean over 2 * half_width + 1 points, fewer at the ends.
Points moving_average(const Points& points, std::int64_t half_width);
// How far a noisy curve is averaged: a fortieth of its points to each side.
std::int64_t smoothing_half_width(const Points& points);
// At most about `count` points that keep the lowest and highest value of each stretch.
Points thin_out(const Points& points, std::int64_t count);

}  // namespace thinkvg::eval::chart
