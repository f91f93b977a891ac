#include "thinkvg/grounding/fusion.h"

#include <algorithm>

#include "thinkvg/core/error.h"

namespace thinkvg::grounding {
namespace {

// Boxes that are taken for one finding.
struct Cluster {
  std::vector<const ScoredBox*> boxes;
  Box mean;
  double score = 0;  // mean of the boxes' scores

  void add(const ScoredBox& box) {
    boxes.push_back(&box);
    double weight = 0;
    mean = {0, 0, 0, 0, box.box.frame};
    for (const ScoredBox* part : boxes) {
      mean.x1 += part->score * part->box.x1;
      mean.y1 += part->score * part->box.y1;
      mean.x2 += part->score * part->box.x2;
      mean.y2 += part->score * part->box.y2;
      weight += part->score;
    }
    mean.x1 /= weight;
    mean.y1 /= weight;
    mean.x2 /= weight;
    mean.y2 /= weight;
    score = weight / static_cast<double>(boxes.size());
  }
};

// Falling scores; of equal ones the later first.
template <class T>
void sort_by_score(std::vector<T>& items) {
  std::reverse(items.begin(), items.end());
  std::stable_sort(items.begin(), items.end(), [](const T& a, const T& b) { return a.score > b.score; });
}

}  // namespace

std::vector<ScoredBox> fuse_boxes(const std::vector<std::vector<ScoredBox>>& sources, const FusionOptions& options) {
  for (const double value : {options.iou_threshold, options.skip_below}) {
    if (!(value >= 0 && value <= 1)) throw_invalid("a threshold of box fusion lies in [0, 1], but is {}", value);
  }
  std::vector<std::string> labels;
  std::vector<std::vector<ScoredBox>> by_label;
  for (const auto& source : sources) {
    for (const ScoredBox& box : source) {
      if (!box.box.is_valid() || !(box.score > 0) || box.score < options.skip_below) continue;
      auto place = static_cast<std::size_t>(std::find(labels.begin(), labels.end(), box.label) - labels.begin());
      if (place == labels.size()) {
        labels.push_back(box.label);
        by_label.emplace_back();
      }
      by_label[place].push_back(box);
    }
  }
  std::vector<ScoredBox> fused;
  for (auto& boxes : by_label) {
    sort_by_score(boxes);
    std::vector<Cluster> clusters;
    for (const ScoredBox& box : boxes) {
      Cluster* nearest = nullptr;
      double best = options.iou_threshold;
      for (Cluster& cluster : clusters) {
        const double overlap = iou(cluster.mean, box.box);
        if (overlap <= best) continue;
        best = overlap;
        nearest = &cluster;
      }
      if (!nearest) nearest = &clusters.emplace_back();
      nearest->add(box);
    }
    const auto num_sources = static_cast<double>(sources.size());
    for (const Cluster& cluster : clusters) {
      const double agreeing = std::min(num_sources, static_cast<double>(cluster.boxes.size()));
      fused.push_back({cluster.mean, boxes.front().label, cluster.score * agreeing / num_sources});
    }
  }
  sort_by_score(fused);
  return fused;
}

}  // namespace thinkvg::grounding
