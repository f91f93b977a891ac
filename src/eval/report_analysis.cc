#include "eval/report_analysis.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <set>

#include "thinkvg/grounding/answer.h"
#include "thinkvg/grounding/geometry.h"

namespace thinkvg::eval {
namespace {

constexpr const char* kNoBox = "no box";
constexpr const char* kOther = "other";
constexpr const char* kUnnamed = "unnamed";

struct NamePair {
  std::string reference, predicted;
};

// The reference regions of a question with what was predicted for them. A shared name breaks ties of overlap.
std::vector<NamePair> pair_names(const ReportPrediction& prediction) {
  const grounding::ImageGeometry geometry(prediction.size);
  const auto& reference = prediction.reference_regions;
  const auto& predicted = prediction.regions;
  std::vector<std::string> names;
  for (const grounding::Region& region : predicted) names.push_back(grounding::normalize_region_name(region.name));
  std::vector<double> score;
  std::vector<NamePair> pairs;
  for (const grounding::Region& region : reference) {
    pairs.push_back({grounding::normalize_region_name(region.name), kNoBox});
    for (std::size_t p = 0; p < predicted.size(); ++p) {
      const double overlap = grounding::iou(geometry.convert(region.box, prediction.frame),
                                            geometry.convert(predicted[p].box, prediction.frame));
      score.push_back(overlap + (names[p] == pairs.back().reference ? 1e-6 : 0));
    }
  }
  const auto assigned = grounding::assign_maximum(score, static_cast<std::int64_t>(reference.size()),
                                                  static_cast<std::int64_t>(predicted.size()));
  for (std::size_t r = 0; r < pairs.size(); ++r) {
    if (assigned[r] < 0) continue;
    const std::string& name = names[static_cast<std::size_t>(assigned[r])];
    pairs[r].predicted = name.empty() ? kUnnamed : name;
  }
  std::erase_if(pairs, [](const NamePair& pair) { return pair.reference.empty(); });
  return pairs;
}

using NameOf = std::function<std::string(const std::string&)>;

Confusion count_pairs(const std::vector<ReportPrediction>& predictions, const std::vector<std::string>& names,
                      const NameOf& name_of) {
  std::map<std::string, std::map<std::string, std::int64_t>> counts;
  std::set<std::string> used;
  for (const ReportPrediction& prediction : predictions) {
    for (const NamePair& pair : pair_names(prediction)) {
      const bool is_name = pair.predicted != kNoBox && pair.predicted != kUnnamed;
      const std::string column = is_name ? name_of(pair.predicted) : pair.predicted;
      ++counts[name_of(pair.reference)][column];
      used.insert(column);
    }
  }
  Confusion out;
  for (const std::string& name : names) {
    if (counts.contains(name)) out.rows.push_back(name);
    if (counts.contains(name) || used.contains(name)) out.columns.push_back(name);
  }
  for (const char* name : {kUnnamed, kNoBox}) {
    if (used.contains(name)) out.columns.push_back(name);
  }
  for (const std::string& row : out.rows) {
    auto& line = out.counts.emplace_back();
    for (const std::string& column : out.columns) line.push_back(counts[row][column]);
  }
  return out;
}

}  // namespace

IouHistogram iou_histogram(const std::vector<ReportPrediction>& predictions) {
  IouHistogram out;
  for (const ReportPrediction& prediction : predictions) {
    if (!prediction.v_score) continue;
    ++out.count;
    if (*prediction.v_score <= 0) {
      ++out.zero;
    } else {
      const auto bin = static_cast<std::size_t>(std::ceil(*prediction.v_score * kIouBins)) - 1;
      ++out.bins[std::min(bin, kIouBins - 1)];
    }
  }
  return out;
}

std::optional<Reliability> reliability(const std::vector<ReportPrediction>& predictions) {
  Reliability out;
  for (const ReportPrediction& prediction : predictions) {
    if (!prediction.confidence || !prediction.a_score) continue;
    const double confidence = std::clamp(*prediction.confidence, 0.0, 1.0);
    const double right = *prediction.a_score >= 1 ? 1 : 0;
    auto& bin = out.bins[std::min(static_cast<std::size_t>(confidence * kReliabilityBins), kReliabilityBins - 1)];
    bin.confidence += confidence;
    bin.accuracy += right;
    ++bin.count;
    out.confidence += confidence;
    out.accuracy += right;
    ++out.count;
  }
  if (out.count == 0) return std::nullopt;
  const auto all = static_cast<double>(out.count);
  for (auto& bin : out.bins) {
    if (bin.count == 0) continue;
    bin.confidence /= static_cast<double>(bin.count);
    bin.accuracy /= static_cast<double>(bin.count);
    out.calibration_error += std::abs(bin.accuracy - bin.confidence) * static_cast<double>(bin.count) / all;
  }
  out.confidence /= all;
  out.accuracy /= all;
  return out;
}

std::string side_of(const std::string& name) {
  const auto has = [&](std::string_view word) {
    for (std::size_t at = name.find(word); at != std::string::npos; at = name.find(word, at + 1)) {
      const bool starts = at == 0 || name[at - 1] == ' ', end = at + word.size() == name.size();
      if (starts && (end || name[at + word.size()] == ' ')) return true;
    }
    return false;
  };
  const bool left = has("left"), right = has("right");
  if (has("bilateral") || has("both") || (left && right)) return "both sides";
  if (left) return "left";
  return right ? "right" : "midline";
}

Confusion region_confusion(const std::vector<ReportPrediction>& predictions, std::size_t max_names) {
  std::map<std::string, std::int64_t> frequency;
  for (const ReportPrediction& prediction : predictions) {
    for (const grounding::Region& region : prediction.reference_regions) {
      const std::string name = grounding::normalize_region_name(region.name);
      if (!name.empty()) frequency[name] += 2;
    }
    for (const grounding::Region& region : prediction.regions) {
      const std::string name = grounding::normalize_region_name(region.name);
      if (!name.empty()) ++frequency[name];
    }
  }
  std::vector<std::pair<std::string, std::int64_t>> ordered(frequency.begin(), frequency.end());
  std::stable_sort(ordered.begin(), ordered.end(), [](const auto& a, const auto& b) { return a.second > b.second; });
  std::set<std::string> kept;
  for (const auto& [name, count] : ordered) {
    if (kept.size() < max_names) kept.insert(name);
  }
  std::vector<std::string> names;
  // Sides together: left and right of the same region stand next to each other.
  for (const auto& [name, count] : ordered) {
    if (kept.contains(name)) names.push_back(name);
  }
  const auto bare = [](const std::string& name) {
    for (const std::string_view side : {"left ", "right ", "bilateral "}) {
      if (name.starts_with(side)) return name.substr(side.size());
    }
    return name;
  };
  std::stable_sort(names.begin(), names.end(), [&](const std::string& a, const std::string& b) {
    return bare(a) == bare(b) ? a < b : bare(a) < bare(b);
  });
  names.push_back(kOther);
  return count_pairs(predictions, names,
                     [&](const std::string& name) { return kept.contains(name) ? name : std::string(kOther); });
}

Confusion side_confusion(const std::vector<ReportPrediction>& predictions) {
  return count_pairs(predictions, {"right", "left", "both sides", "midline"}, side_of);
}

}  // namespace thinkvg::eval
