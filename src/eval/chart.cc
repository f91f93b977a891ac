#include "eval/chart.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cmath>

#include "thinkvg/core/html.h"

namespace thinkvg::eval::chart {
namespace {

struct Range {
  double low = 0, high = 1;
  double span() const { return high - low; }
};

// Where the plotting area lies in the drawing, and how values map to it.
struct Axes {
  double left, top, right, bottom;
  Range x, y;
  double px(double value) const { return left + (value - x.low) / x.span() * (right - left); }
  double py(double value) const { return bottom - (value - y.low) / y.span() * (bottom - top); }
};

std::string tick_label(double value, double step) {
  if (value == 0) return "0";
  if (std::abs(value) >= 1000 || std::abs(value) < 1e-3) return html::number(value);
  const int decimals = std::clamp(static_cast<int>(std::ceil(-std::log10(step) - 1e-9)), 0, 6);
  const bool quarter = std::abs(step * std::pow(10, decimals) - std::round(step * std::pow(10, decimals))) > 1e-6;
  return fmt::format("{:.{}f}", value, decimals + (quarter ? 1 : 0));
}

std::string open_svg(double width, double height, const std::string& description) {
  return fmt::format("<svg class=\"chart\" viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\">", width, height,
                     html::escape(description));
}

std::string y_axis(const Axes& axes, int count) {
  std::string out;
  const std::vector<double> marks = ticks(axes.y.low, axes.y.high, count);
  const double step = marks.size() > 1 ? marks[1] - marks[0] : 1;
  for (const double mark : marks) {
    const double y = axes.py(mark);
    out += fmt::format("<line class=\"grid\" x1=\"{:.1f}\" x2=\"{:.1f}\" y1=\"{:.1f}\" y2=\"{:.1f}\"/>", axes.left,
                       axes.right, y, y);
    out += fmt::format("<text class=\"tick\" x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"end\">{}</text>", axes.left - 6,
                       y + 4, tick_label(mark, step));
  }
  return out;
}

std::string baseline(const Axes& axes) {
  return fmt::format("<line class=\"axis\" x1=\"{:.1f}\" x2=\"{:.1f}\" y1=\"{:.1f}\" y2=\"{:.1f}\"/>", axes.left,
                     axes.right, axes.bottom, axes.bottom);
}

std::string polyline(const Axes& axes, const Points& points, const char* style) {
  std::string path;
  for (const auto& [step, value] : points)
    path += fmt::format("{}{:.1f},{:.1f}", path.empty() ? "" : " ", axes.px(static_cast<double>(step)),
                        std::clamp(axes.py(value), axes.top, axes.bottom));
  return fmt::format("<polyline class=\"{}\" points=\"{}\"/>", style, path);
}

Range value_range(const Points& points) {
  const auto [low, high] = std::minmax_element(points.begin(), points.end(),
                                               [](const auto& a, const auto& b) { return a.second < b.second; });
  return {low->second, high->second};
}

// A few spikes must not flatten the rest: with many points, and a range that is mostly spikes, they leave the chart.
Range trimmed_range(const Points& points) {
  const Range full = value_range(points);
  if (points.size() < 50) return full;
  std::vector<double> values;
  for (const auto& [step, value] : points) values.push_back(value);
  std::sort(values.begin(), values.end());
  const auto quantile = [&](double share) {
    return values[static_cast<std::size_t>(share * static_cast<double>(values.size() - 1))];
  };
  const Range inner{quantile(0.01), quantile(0.99)};
  return full.span() > 3 * inner.span() && inner.span() > 0 ? inner : full;
}

Range padded(Range range) {
  if (range.span() <= 0) {
    const double pad = range.low == 0 ? 0.5 : std::abs(range.low) * 0.1;
    return {range.low - pad, range.high + pad};
  }
  const double pad = range.span() * 0.05;
  // A curve that never goes below zero keeps an axis that does not, either.
  return {range.low >= 0 ? std::max(0.0, range.low - pad) : range.low - pad, range.high + pad};
}

}  // namespace

std::vector<double> ticks(double low, double high, int count) {
  if (!(high > low) || count < 1) return {low};
  const double rough = (high - low) / count;
  const double power = std::pow(10, std::floor(std::log10(rough)));
  double step = 10 * power;
  for (const double factor : {1.0, 2.0, 2.5, 5.0}) {
    if (factor * power >= rough * 0.999) {
      step = factor * power;
      break;
    }
  }
  std::vector<double> out;
  const double first = std::ceil(low / step - 1e-9);
  for (double k = first; k * step <= high + step * 1e-9; ++k) out.push_back(k == 0 ? 0.0 : k * step);
  return out;
}

bool is_noisy(const Points& points) {
  if (points.size() < 20) return false;
  const Range range = trimmed_range(points);
  if (range.span() <= 0) return false;
  double variation = 0;
  for (std::size_t i = 1; i < points.size(); ++i)
    variation += std::abs(std::clamp(points[i].second, range.low, range.high) -
                          std::clamp(points[i - 1].second, range.low, range.high));
  return variation > 3 * range.span();
}

Points moving_average(const Points& points, std::int64_t half_width) {
  std::vector<double> sums(points.size() + 1, 0.0);
  for (std::size_t i = 0; i < points.size(); ++i) sums[i + 1] = sums[i] + points[i].second;
  Points out;
  const auto size = static_cast<std::int64_t>(points.size());
  for (std::int64_t i = 0; i < size; ++i) {
    const auto begin = static_cast<std::size_t>(std::max<std::int64_t>(0, i - half_width));
    const auto end = static_cast<std::size_t>(std::min(size, i + half_width + 1));
    out.emplace_back(points[static_cast<std::size_t>(i)].first,
                     (sums[end] - sums[begin]) / static_cast<double>(end - begin));
  }
  return out;
}

std::int64_t smoothing_half_width(const Points& points) {
  return std::max<std::int64_t>(2, static_cast<std::int64_t>(points.size()) / 40);
}

Points thin_out(const Points& points, std::int64_t count) {
  const auto size = static_cast<std::int64_t>(points.size());
  if (size <= count || count < 2) return points;
  const std::int64_t stretches = count / 2;
  Points out;
  for (std::int64_t k = 0; k < stretches; ++k) {
    const auto begin = points.begin() + k * size / stretches, end = points.begin() + (k + 1) * size / stretches;
    auto [low, high] =
        std::minmax_element(begin, end, [](const auto& a, const auto& b) { return a.second < b.second; });
    if (low > high) std::swap(low, high);
    out.push_back(*low);
    if (low != high) out.push_back(*high);
  }
  return out;
}

std::string bars(const std::vector<BarGroup>& groups, const std::string& description) {
  double top = 0.1;
  std::size_t num_bars = 0;
  for (const BarGroup& group : groups) {
    num_bars = std::max(num_bars, group.bars.size());
    for (const Bar& bar : group.bars) top = std::max({top, bar.value, bar.high.value_or(0)});
  }
  const double width = 540, height = 270;
  // Shares end at 1; a ratio may go beyond.
  const double limit = top > 1 ? std::ceil(top * 10) / 10 : std::min(1.0, std::ceil(top * 10 + 0.2) / 10);
  const Axes axes{38, 8, width - 4, height - 28, {0, 1}, {0, limit}};
  std::string out = open_svg(width, height, description) + y_axis(axes, 5);
  const double slot = (axes.right - axes.left) / static_cast<double>(std::max<std::size_t>(1, groups.size()));
  const double bar_width = std::min(30.0, slot * 0.76 / static_cast<double>(std::max<std::size_t>(1, num_bars)));
  for (std::size_t g = 0; g < groups.size(); ++g) {
    const double centre = axes.left + slot * (static_cast<double>(g) + 0.5);
    const double first = centre - bar_width * static_cast<double>(groups[g].bars.size()) / 2;
    for (std::size_t k = 0; k < groups[g].bars.size(); ++k) {
      const Bar& bar = groups[g].bars[k];
      const double x = first + bar_width * static_cast<double>(k), y = axes.py(bar.value);
      std::string tip = fmt::format("{}, {}: {:.3f}", bar.series, groups[g].label, bar.value);
      if (bar.low && bar.high) tip += fmt::format(" [{:.3f}, {:.3f}]", *bar.low, *bar.high);
      out += fmt::format(
          "<g><title>{}</title><rect class=\"s{}\" x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\"/>",
          html::escape(tip), bar.series_index, x + 1, y, bar_width - 2, axes.bottom - y);
      if (bar.low && bar.high) {
        const double middle = x + bar_width / 2, cap = std::min(4.0, bar_width / 4);
        out += fmt::format(
            "<path class=\"whisker\" d=\"M{:.1f} {:.1f}V{:.1f}M{:.1f} {:.1f}H{:.1f}M{:.1f} {:.1f}H{:.1f}\"/>", middle,
            axes.py(*bar.low), axes.py(*bar.high), middle - cap, axes.py(*bar.low), middle + cap, middle - cap,
            axes.py(*bar.high), middle + cap);
      }
      out += "</g>";
    }
    if (groups[g].bars.empty())
      out += fmt::format("<text class=\"tick\" x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">not graded</text>",
                         centre, axes.bottom - 8);
    out += fmt::format("<text class=\"group\" x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{}</text>", centre,
                       axes.bottom + 19, html::escape(groups[g].label));
  }
  return out + baseline(axes) + "</svg>";
}

std::string columns(const Columns& columns, double top, const std::string& description) {
  const double width = 300, height = 130, gap = 12;
  const Axes axes{34, 8, width - 4, height - 22, {0, 1}, {0, std::max(top, 0.01)}};
  std::string out = open_svg(width, height, description) + y_axis(axes, 3);
  const double step = (axes.right - axes.left - gap) / static_cast<double>(columns.shares.size() + 1);
  const auto column = [&](double x, double share, const std::string& range) {
    const double y = axes.py(std::min(share, top));
    return fmt::format(
        "<rect class=\"s{}\" x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\"><title>{}: {:.1f} %"
        "</title></rect>",
        columns.series_index, x, y, step - 1, axes.bottom - y, range, 100 * share);
  };
  const auto label = [&](double x, const std::string& text) {
    return fmt::format("<text class=\"tick\" x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{}</text>", x,
                       axes.bottom + 15, text);
  };
  out += column(axes.left, columns.zero, "IoU 0") + label(axes.left + step / 2, "0");
  const double begin = axes.left + step + gap;
  const auto count = static_cast<double>(columns.shares.size());
  for (std::size_t i = 0; i < columns.shares.size(); ++i) {
    const auto place = static_cast<double>(i);
    out += column(begin + step * place, columns.shares[i],
                  fmt::format("IoU {:.2f} to {:.2f}", place / count, (place + 1) / count));
  }
  for (const double mark : {0.25, 0.5, 0.75, 1.0})
    out += label(begin + step * count * mark - (mark == 1.0 ? 6 : 0), mark == 1.0 ? "1" : fmt::format("{}", mark));
  return out + baseline(axes) + "</svg>";
}

std::string spots(const std::vector<Spot>& spots, int series_index, const std::string& description) {
  const double width = 300, height = 250;  // the largest spot is not cut off at confidence 1
  const Axes axes{34, 18, width - 19, height - 36, {0, 1}, {0, 1}};
  std::string out = open_svg(width, height, description) + y_axis(axes, 4) + baseline(axes);
  out += fmt::format("<line class=\"axis diagonal\" x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\"/>",
                     axes.px(0), axes.py(0), axes.px(1), axes.py(1));
  for (const double mark : {0.0, 0.25, 0.5, 0.75, 1.0})
    out += fmt::format("<text class=\"tick\" x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{}</text>", axes.px(mark),
                       axes.bottom + 15, tick_label(mark, 0.25));
  out += fmt::format("<text class=\"tick\" x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">confidence</text>",
                     (axes.left + axes.right) / 2, axes.bottom + 31);
  for (const Spot& spot : spots)
    out += fmt::format("<circle class=\"s{} spot\" cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"{:.1f}\"><title>{}</title></circle>",
                       series_index, axes.px(spot.x), axes.py(spot.y), 3 + 15 * std::sqrt(spot.share),
                       html::escape(spot.tip));
  return out + "</svg>";
}

std::string line(const Points& points, const std::string& description) {
  if (points.empty()) return "";
  const double width = 380, height = 200;
  const bool noisy = is_noisy(points);
  const Range shown = noisy ? trimmed_range(points) : value_range(points);
  Axes axes{48, 8, width - 8, height - 34, {}, padded(shown)};
  axes.x = {static_cast<double>(points.front().first), static_cast<double>(points.back().first)};
  if (axes.x.span() <= 0) axes.x = {axes.x.low - 1, axes.x.high + 1};
  std::string out = open_svg(width, height, description) + y_axis(axes, 4) + baseline(axes);
  for (const double mark : ticks(axes.x.low, axes.x.high, 5)) {
    if (mark != std::round(mark)) continue;
    const double x = axes.px(mark);
    out += fmt::format("<line class=\"axis\" x1=\"{:.1f}\" x2=\"{:.1f}\" y1=\"{:.1f}\" y2=\"{:.1f}\"/>", x, x,
                       axes.bottom, axes.bottom + 4);
    out += fmt::format("<text class=\"tick\" x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{}</text>",
                       std::min(x, axes.right - 8), axes.bottom + 16, html::number(mark));
  }
  out += fmt::format("<text class=\"tick\" x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">step</text>",
                     (axes.left + axes.right) / 2, axes.bottom + 30);
  if (noisy) {
    out += polyline(axes, thin_out(points, 500), "raw");
    // A spike beyond the axis counts as the axis's edge, or the mean would leave the chart all around it.
    Points inside = points;
    for (auto& [step, value] : inside) value = std::clamp(value, axes.y.low, axes.y.high);
    out += polyline(axes, thin_out(moving_average(inside, smoothing_half_width(inside)), 300), "smooth");
  } else {
    out += polyline(axes, thin_out(points, 500), "smooth");
    if (points.size() == 1)
      out += fmt::format("<circle class=\"dot\" cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3\"/>",
                         axes.px(static_cast<double>(points[0].first)), axes.py(points[0].second));
  }
  const auto beyond = std::count_if(points.begin(), points.end(), [&](const auto& point) {
    return point.second < axes.y.low || point.second > axes.y.high;
  });
  if (beyond > 0)
    out += fmt::format(
        "<text class=\"tick\" x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"end\">{} spikes beyond the axis"
        "</text>",
        axes.right, axes.top + 8, beyond);
  return out + "</svg>";
}

std::string difference(const Difference& difference, double extent) {
  const double width = 150, height = 22;
  const Axes axes{6, 3, width - 6, height - 3, {-extent, extent}, {0, 1}};
  const double middle = height / 2;
  std::string out = fmt::format("<svg class=\"diff\" viewBox=\"0 0 {} {}\" aria-hidden=\"true\">", width, height);
  out += fmt::format("<line class=\"axis\" x1=\"{0:.1f}\" x2=\"{0:.1f}\" y1=\"1\" y2=\"{1:.1f}\"/>", axes.px(0),
                     height - 1);
  if (difference.low && difference.high)
    out += fmt::format(
        "<path class=\"whisker\" d=\"M{0:.1f} {2:.1f}H{1:.1f}M{0:.1f} {3:.1f}V{4:.1f}M{1:.1f} {3:.1f}"
        "V{4:.1f}\"/>",
        axes.px(*difference.low), axes.px(*difference.high), middle, middle - 4, middle + 4);
  out += fmt::format("<circle class=\"dot\" cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"4\"/></svg>", axes.px(difference.value),
                     middle);
  return out;
}

}  // namespace thinkvg::eval::chart
