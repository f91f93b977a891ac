#include "thinkvg/grounding/box.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>
#include <optional>

#include "thinkvg/core/error.h"

namespace thinkvg::grounding {
namespace {

constexpr std::int64_t kMaxExtent = 1'000'000;
constexpr char kFrameNames[] =
    "original, letterbox-N, stretch-N, stretch-WxH, crop-N, unit, hundred, thousand, stored, view";

std::optional<std::int64_t> parse_extent(std::string_view text) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 1 || value > kMaxExtent) return std::nullopt;
  return value;
}

void require_same_frame(const Box& a, const Box& b) {
  if (a.frame == b.frame) return;
  throw_invalid(
      "boxes to be compared must be in one frame, but came in '{}' and '{}'; convert one with ImageGeometry::convert",
      a.frame.name(), b.frame.name());
}

// IoU does not change when an axis is rescaled. Coordinates whose products would overflow or vanish are brought near 1;
// all others stay exactly as they are.
double axis_scale(double largest) {
  if (largest == 0 || (largest > 1e-100 && largest < 1e100)) return 1;
  return largest;
}

double largest_x(const Box& box) { return std::max(std::abs(box.x1), std::abs(box.x2)); }
double largest_y(const Box& box) { return std::max(std::abs(box.y1), std::abs(box.y2)); }

Box divided(const Box& box, double scale_x, double scale_y) {
  return {box.x1 / scale_x, box.y1 / scale_y, box.x2 / scale_x, box.y2 / scale_y, box.frame};
}

double ratio(double part, double whole) { return whole > 0 ? std::clamp(part / whole, 0.0, 1.0) : 0.0; }

// How much of the y axis is covered by set 0, by set 1 and by both, while intervals come and go: a segment tree over
// the compressed coordinates (Bentley's sweep for the area of a union, with two sets in one tree).
class CoverageTree {
 public:
  explicit CoverageTree(std::vector<double> edges)
      : edges_(std::move(edges)), nodes_(4 * std::max<std::size_t>(1, edges_.size())) {}

  void add(double low, double high, int set, int change) {
    const auto index = [this](double value) {
      return static_cast<std::size_t>(std::lower_bound(edges_.begin(), edges_.end(), value) - edges_.begin());
    };
    update(1, {0, edges_.size() - 1}, {index(low), index(high), set, change});
  }

  double both() const { return nodes_[1].both; }
  double either() const { return nodes_[1].length[0] + nodes_[1].length[1] - nodes_[1].both; }

 private:
  struct Node {
    std::array<int, 2> count{};
    std::array<double, 2> length{};
    double both = 0;
  };
  struct Span {
    std::size_t begin, end;
  };
  struct Change {
    std::size_t begin, end;
    int set, change;
  };

  void update(std::size_t id, Span span, const Change& change) {
    if (change.begin >= span.end || change.end <= span.begin) return;
    if (change.begin <= span.begin && span.end <= change.end) {
      nodes_[id].count[change.set] += change.change;
    } else {
      const std::size_t middle = (span.begin + span.end) / 2;
      update(2 * id, {span.begin, middle}, change);
      update(2 * id + 1, {middle, span.end}, change);
    }
    Node& node = nodes_[id];
    const bool leaf = span.end - span.begin == 1;
    const double full = edges_[span.end] - edges_[span.begin];
    for (int set : {0, 1}) {
      if (node.count[set] > 0) {
        node.length[set] = full;
      } else {
        node.length[set] = leaf ? 0 : nodes_[2 * id].length[set] + nodes_[2 * id + 1].length[set];
      }
    }
    if (node.count[0] > 0) {
      node.both = node.length[1];
    } else if (node.count[1] > 0) {
      node.both = node.length[0];
    } else {
      node.both = leaf ? 0 : nodes_[2 * id].both + nodes_[2 * id + 1].both;
    }
  }

  std::vector<double> edges_;
  std::vector<Node> nodes_;
};

double union_iou(const std::vector<Box>& predicted, const std::vector<Box>& reference) {
  const std::array<const std::vector<Box>*, 2> sets = {&predicted, &reference};
  double extent_x = 0, extent_y = 0;
  for (const auto* set : sets) {
    for (const Box& box : *set) {
      require_same_frame(box, reference.front());
      if (!box.is_valid()) continue;
      extent_x = std::max(extent_x, largest_x(box));
      extent_y = std::max(extent_y, largest_y(box));
    }
  }
  const double scale_x = axis_scale(extent_x), scale_y = axis_scale(extent_y);

  struct Event {
    double x, low, high;
    int set, change;
  };
  std::vector<Event> events;
  std::vector<double> edges;
  for (int set : {0, 1}) {
    for (const Box& original : *sets[set]) {
      if (!original.is_valid()) continue;
      const Box box = divided(original, scale_x, scale_y);
      if (!box.is_valid()) continue;
      events.push_back({box.x1, box.y1, box.y2, set, +1});
      events.push_back({box.x2, box.y1, box.y2, set, -1});
      edges.push_back(box.y1);
      edges.push_back(box.y2);
    }
  }
  if (events.empty()) return 0;
  std::sort(edges.begin(), edges.end());
  edges.erase(std::unique(edges.begin(), edges.end()), edges.end());
  std::sort(events.begin(), events.end(), [](const Event& a, const Event& b) { return a.x < b.x; });

  CoverageTree tree(std::move(edges));
  double intersection = 0, whole = 0, last_x = events.front().x;
  for (const Event& event : events) {
    intersection += tree.both() * (event.x - last_x);
    whole += tree.either() * (event.x - last_x);
    last_x = event.x;
    tree.add(event.low, event.high, event.set, event.change);
  }
  return ratio(intersection, whole);
}

double hungarian_iou(const std::vector<Box>& predicted, const std::vector<Box>& reference) {
  std::vector<double> score;
  score.reserve(predicted.size() * reference.size());
  for (const Box& r : reference) {
    for (const Box& p : predicted) score.push_back(iou(p, r));
  }
  const auto rows = static_cast<std::int64_t>(reference.size()), columns = static_cast<std::int64_t>(predicted.size());
  const std::vector<std::int64_t> assigned = assign_maximum(score, rows, columns);
  double sum = 0;
  for (std::int64_t row = 0; row < rows; ++row) {
    if (assigned[row] >= 0) sum += score[row * columns + assigned[row]];
  }
  return sum / static_cast<double>(std::max(rows, columns));
}

}  // namespace

BoxFrame BoxFrame::parse(std::string_view name) {
  if (name == "original") return original();
  if (name == "stored") return stored();
  if (name == "view") return view();
  if (name == "unit") return unit();
  if (name == "hundred") return hundred();
  if (name == "thousand") return thousand();
  const std::size_t dash = name.find('-');
  if (dash != std::string_view::npos) {
    const std::string_view kind = name.substr(0, dash), extent = name.substr(dash + 1);
    if (kind == "letterbox") {
      if (const auto size = parse_extent(extent)) return letterbox(*size);
    } else if (kind == "crop") {
      if (const auto size = parse_extent(extent)) return crop(*size);
    } else if (kind == "stretch") {
      if (const auto size = parse_extent(extent)) return stretch(*size, *size);
      const std::size_t cross = extent.find('x');
      if (cross != std::string_view::npos) {
        const auto width = parse_extent(extent.substr(0, cross)), height = parse_extent(extent.substr(cross + 1));
        if (width && height) return stretch(*width, *height);
      }
    }
  }
  throw_invalid("unknown box frame '{}'; known are: {} (N, W, H: pixels, 1 to {})", name, kFrameNames, kMaxExtent);
}

std::string BoxFrame::name() const {
  switch (kind_) {
    case Kind::original:
      return "original";
    case Kind::letterbox:
      return fmt::format("letterbox-{}", width_);
    case Kind::stretch:
      return width_ == height_ ? fmt::format("stretch-{}", width_) : fmt::format("stretch-{}x{}", width_, height_);
    case Kind::relative:
      return width_ == 1 ? "unit" : width_ == 100 ? "hundred" : "thousand";
    case Kind::crop:
      return fmt::format("crop-{}", width_);
    case Kind::stored:
      return "stored";
    case Kind::view:
      return "view";
  }
  return "original";
}

bool Box::is_valid() const {
  return std::isfinite(x1) && std::isfinite(y1) && std::isfinite(x2) && std::isfinite(y2) && x1 < x2 && y1 < y2;
}

std::string Box::problem() const {
  if (is_valid()) return {};
  for (const double value : {x1, y1, x2, y2}) {
    if (!std::isfinite(value)) return "a coordinate is not a finite number";
  }
  const auto axis = [](char name, double low, double high) -> std::string {
    if (low == high) return fmt::format("{0}1 and {0}2 are both {1}: the box is empty", name, low);
    return fmt::format("{0}1 = {1} is not below {0}2 = {2}: the corners are reversed", name, low, high);
  };
  return !(x1 < x2) ? axis('x', x1, x2) : axis('y', y1, y2);
}

double Box::area() const { return is_valid() ? (x2 - x1) * (y2 - y1) : 0; }

BoxOrder parse_box_order(std::string_view name) {
  if (name == "xyxy") return BoxOrder::xyxy;
  if (name == "yxyx") return BoxOrder::yxyx;
  if (name == "xywh") return BoxOrder::xywh;
  if (name == "cxcywh") return BoxOrder::cxcywh;
  throw_invalid("unknown order of a box's numbers '{}'; known are: xyxy, yxyx, xywh, cxcywh", name);
}

std::string box_order_name(BoxOrder order) {
  switch (order) {
    case BoxOrder::xyxy:
      return "xyxy";
    case BoxOrder::yxyx:
      return "yxyx";
    case BoxOrder::xywh:
      return "xywh";
    case BoxOrder::cxcywh:
      return "cxcywh";
  }
  return "xyxy";
}

Box make_box(const std::array<double, 4>& n, BoxOrder order, const BoxFrame& frame) {
  switch (order) {
    case BoxOrder::xyxy:
      break;
    case BoxOrder::yxyx:
      return {n[1], n[0], n[3], n[2], frame};
    case BoxOrder::xywh:
      return {n[0], n[1], n[0] + n[2], n[1] + n[3], frame};
    case BoxOrder::cxcywh:
      return {n[0] - n[2] / 2, n[1] - n[3] / 2, n[0] + n[2] / 2, n[1] + n[3] / 2, frame};
  }
  return {n[0], n[1], n[2], n[3], frame};
}

double iou(const Box& a, const Box& b) {
  require_same_frame(a, b);
  if (!a.is_valid() || !b.is_valid()) return 0;
  const double scale_x = axis_scale(std::max(largest_x(a), largest_x(b)));
  const double scale_y = axis_scale(std::max(largest_y(a), largest_y(b)));
  if (scale_x != 1 || scale_y != 1) {
    const Box small_a = divided(a, scale_x, scale_y), small_b = divided(b, scale_x, scale_y);
    return small_a.is_valid() && small_b.is_valid() ? iou(small_a, small_b) : 0;
  }
  const double width = std::min(a.x2, b.x2) - std::max(a.x1, b.x1);
  const double height = std::min(a.y2, b.y2) - std::max(a.y1, b.y1);
  if (width <= 0 || height <= 0) return 0;
  const double intersection = width * height;
  return ratio(intersection, a.area() + b.area() - intersection);
}

MultiBoxRule parse_multi_box_rule(std::string_view name) {
  if (name == "paired") return MultiBoxRule::paired;
  if (name == "hungarian") return MultiBoxRule::hungarian;
  if (name == "union") return MultiBoxRule::union_area;
  if (name == "best") return MultiBoxRule::best;
  throw_invalid("unknown rule for several boxes '{}'; known are: paired, hungarian, union, best", name);
}

std::string multi_box_rule_name(MultiBoxRule rule) {
  switch (rule) {
    case MultiBoxRule::paired:
      return "paired";
    case MultiBoxRule::hungarian:
      return "hungarian";
    case MultiBoxRule::union_area:
      return "union";
    case MultiBoxRule::best:
      return "best";
  }
  return "hungarian";
}

double match_boxes(const std::vector<Box>& predicted, const std::vector<Box>& reference, MultiBoxRule rule) {
  if (predicted.empty() && reference.empty()) return 1;
  if (predicted.empty() || reference.empty()) return 0;
  switch (rule) {
    case MultiBoxRule::paired: {
      if (predicted.size() != reference.size()) return 0;
      double sum = 0;
      for (std::size_t i = 0; i < predicted.size(); ++i) sum += iou(predicted[i], reference[i]);
      return sum / static_cast<double>(predicted.size());
    }
    case MultiBoxRule::hungarian:
      return hungarian_iou(predicted, reference);
    case MultiBoxRule::union_area:
      return union_iou(predicted, reference);
    case MultiBoxRule::best: {
      double sum = 0;
      for (const Box& r : reference) {
        double best = 0;
        for (const Box& p : predicted) best = std::max(best, iou(p, r));
        sum += best;
      }
      return sum / static_cast<double>(reference.size());
    }
  }
  return 0;
}

std::vector<std::int64_t> assign_maximum(const std::vector<double>& score, std::int64_t rows, std::int64_t columns) {
  if (rows < 0 || columns < 0 || static_cast<std::int64_t>(score.size()) != rows * columns) {
    throw_invalid("an assignment of {} rows to {} columns needs {} scores, but {} came", rows, columns, rows * columns,
                  score.size());
  }
  for (double value : score) {
    if (!std::isfinite(value))
      throw_invalid("the scores of an assignment must be finite numbers, but one is {}", value);
  }
  std::vector<std::int64_t> assigned(rows, -1);
  if (rows == 0 || columns == 0) return assigned;

  // Shortest augmenting paths want at least as many columns as rows.
  const bool swapped = rows > columns;
  const std::int64_t n = swapped ? columns : rows, m = swapped ? rows : columns;
  const auto cost = [&](std::int64_t i, std::int64_t j) {
    return swapped ? -score[j * columns + i] : -score[i * columns + j];
  };
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  std::vector<double> row_potential(n + 1, 0), column_potential(m + 1, 0);
  std::vector<std::int64_t> row_of(m + 1, 0), previous(m + 1, 0);  // index 0 is a sentinel
  for (std::int64_t i = 1; i <= n; ++i) {
    row_of[0] = i;
    std::int64_t column = 0;
    std::vector<double> slack(m + 1, kInfinity);
    std::vector<char> used(m + 1, 0);
    do {
      used[column] = 1;
      const std::int64_t row = row_of[column];
      double delta = kInfinity;
      std::int64_t next = -1;
      for (std::int64_t j = 1; j <= m; ++j) {
        if (used[j]) continue;
        const double reduced = cost(row - 1, j - 1) - row_potential[row] - column_potential[j];
        if (reduced < slack[j]) {
          slack[j] = reduced;
          previous[j] = column;
        }
        if (next < 0 || slack[j] < delta) {
          delta = slack[j];
          next = j;
        }
      }
      for (std::int64_t j = 0; j <= m; ++j) {
        if (used[j]) {
          row_potential[row_of[j]] += delta;
          column_potential[j] -= delta;
        } else {
          slack[j] -= delta;
        }
      }
      column = next;
    } while (row_of[column] != 0);
    while (column != 0) {
      row_of[column] = row_of[previous[column]];
      column = previous[column];
    }
  }
  for (std::int64_t j = 1; j <= m; ++j) {
    if (row_of[j] == 0) continue;
    if (swapped) {
      assigned[j - 1] = row_of[j] - 1;
    } else {
      assigned[row_of[j] - 1] = j - 1;
    }
  }
  return assigned;
}

}  // namespace thinkvg::grounding
