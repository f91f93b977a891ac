#include "thinkvg/eval/detection.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>

#include "thinkvg/core/error.h"
#include "thinkvg/grounding/answer.h"

namespace thinkvg::eval {
namespace {

using grounding::ScoredBox;

struct Detection {
  double score = 0;
  bool hit = false;
};

std::vector<const ScoredBox*> of_label(const std::vector<ScoredBox>& boxes, const std::string& label) {
  std::vector<const ScoredBox*> out;
  for (const ScoredBox& box : boxes) {
    if (box.label == label) out.push_back(&box);
  }
  return out;
}

struct ImageOfLabel {
  std::vector<const ScoredBox*> predicted;  // falling scores
  std::size_t num_reference = 0;
  std::vector<double> overlaps;  // [predicted, reference]
};

std::vector<Detection> match(const ImageOfLabel& image, double threshold) {
  std::vector<char> taken(image.num_reference, 0);
  std::vector<Detection> out;
  for (std::size_t p = 0; p < image.predicted.size(); ++p) {
    double best = std::min(threshold, 1 - 1e-10);
    std::size_t chosen = image.num_reference;
    for (std::size_t r = 0; r < image.num_reference; ++r) {
      const double overlap = image.overlaps[p * image.num_reference + r];
      if (taken[r] || overlap < best) continue;
      best = overlap;
      chosen = r;
    }
    if (chosen < image.num_reference) taken[chosen] = 1;
    out.push_back({image.predicted[p]->score, chosen < image.num_reference});
  }
  return out;
}

constexpr int kRecallSteps = 100;

struct Curve {
  double precision = 0;  // mean at the recall steps
  double recall = 0;
};

Curve curve_of(std::vector<Detection> detections, double num_reference) {
  std::stable_sort(detections.begin(), detections.end(),
                   [](const Detection& a, const Detection& b) { return a.score > b.score; });
  std::vector<double> recall, precision;
  double hits = 0;
  for (std::size_t i = 0; i < detections.size(); ++i) {
    hits += detections[i].hit ? 1 : 0;
    recall.push_back(hits / num_reference);
    precision.push_back(hits / (static_cast<double>(i + 1) + std::numeric_limits<double>::epsilon()));
  }
  for (std::size_t i = precision.size(); i-- > 1;) precision[i - 1] = std::max(precision[i - 1], precision[i]);
  Curve curve;
  curve.recall = recall.empty() ? 0 : recall.back();
  for (int step = 0; step <= kRecallSteps; ++step) {
    // As numpy.linspace spaces them: a recall of exactly 0.29 must count where pycocotools counts it.
    const double wanted = step == kRecallSteps ? 1.0 : step * (1.0 / kRecallSteps);
    const auto at = std::lower_bound(recall.begin(), recall.end(), wanted) - recall.begin();
    if (at < static_cast<std::ptrdiff_t>(precision.size())) curve.precision += precision[static_cast<std::size_t>(at)];
  }
  curve.precision /= kRecallSteps + 1;
  return curve;
}

}  // namespace

AveragePrecision average_precision(const std::vector<DetectionImage>& images, const DetectionOptions& options) {
  if (options.thresholds.empty()) throw_invalid("average precision needs at least one IoU threshold");
  if (options.max_boxes < 1) throw_invalid("max_boxes must be at least 1, but is {}", options.max_boxes);
  AveragePrecision result;
  std::set<std::string> labels;
  for (const DetectionImage& image : images) {
    for (const ScoredBox& box : image.reference) labels.insert(box.label);
    result.num_reference += static_cast<std::int64_t>(image.reference.size());
  }
  const auto name_of = [](double threshold) { return fmt::format("{:.2f}", threshold); };
  std::vector<double> thresholds = options.thresholds;
  for (const double threshold : options.also)
    if (std::find(thresholds.begin(), thresholds.end(), threshold) == thresholds.end()) thresholds.push_back(threshold);
  if (labels.empty()) {
    result.ap = result.recall = -1;
    for (const double threshold : thresholds) result.at[name_of(threshold)] = -1;
    return result;
  }
  const auto num_labels = static_cast<double>(labels.size());
  const auto num_thresholds = static_cast<double>(options.thresholds.size());
  for (const std::string& label : labels) {
    std::vector<ImageOfLabel> parts;
    double num_reference = 0;
    for (const DetectionImage& image : images) {
      ImageOfLabel part;
      part.predicted = of_label(image.predicted, label);
      const auto reference = of_label(image.reference, label);
      if (part.predicted.empty() && reference.empty()) continue;
      std::stable_sort(part.predicted.begin(), part.predicted.end(),
                       [](const ScoredBox* a, const ScoredBox* b) { return a->score > b->score; });
      if (static_cast<std::int64_t>(part.predicted.size()) > options.max_boxes) {
        part.predicted.resize(static_cast<std::size_t>(options.max_boxes));
      }
      part.num_reference = reference.size();
      num_reference += static_cast<double>(reference.size());
      for (const ScoredBox* p : part.predicted) {
        for (const ScoredBox* r : reference) part.overlaps.push_back(grounding::iou(p->box, r->box));
      }
      parts.push_back(std::move(part));
    }
    double& label_mean = result.by_label[label];
    for (std::size_t t = 0; t < thresholds.size(); ++t) {
      const double threshold = thresholds[t];
      std::vector<Detection> detections;
      for (const ImageOfLabel& part : parts) {
        const std::vector<Detection> found = match(part, threshold);
        detections.insert(detections.end(), found.begin(), found.end());
      }
      const Curve curve = curve_of(std::move(detections), num_reference);
      result.at[name_of(threshold)] += curve.precision / num_labels;
      if (t >= options.thresholds.size()) continue;
      label_mean += curve.precision / num_thresholds;
      result.ap += curve.precision / (num_labels * num_thresholds);
      result.recall += curve.recall / (num_labels * num_thresholds);
    }
  }
  return result;
}

Json detection_to_json(const AveragePrecision& result) {
  Json json;
  json["ap"] = result.ap;
  for (const auto& [threshold, value] : result.at) json["at"][threshold] = value;
  json["by_label"] = Json::object();
  for (const auto& [label, value] : result.by_label) json["by_label"][label] = value;
  json["recall"] = result.recall;
  json["num_reference"] = result.num_reference;
  json["rule"] = "COCO, all areas, recall read at 101 points";
  return json;
}

std::string detection_to_table(const AveragePrecision& result) {
  if (result.num_reference == 0) return "\nAverage precision: no reference boxes.\n";
  std::string out = fmt::format("\nAverage precision of the boxes (COCO): {:.3f}, recall {:.3f}; {} reference boxes\n",
                                result.ap, result.recall, result.num_reference);
  std::string at;
  for (const char* threshold : {"0.40", "0.50", "0.75"})
    if (const auto found = result.at.find(threshold); found != result.at.end())
      at += fmt::format("{}at IoU {} {:.3f}", at.empty() ? "" : ", ", threshold, found->second);
  if (!at.empty()) out += at + "\n";
  for (const auto& [label, value] : result.by_label) out += fmt::format("  {:<32} {:.3f}\n", label, value);
  return out + "\n";
}

std::vector<data::Sample> fuse_readers(const std::vector<data::Sample>& samples,
                                       const grounding::FusionOptions& options) {
  struct Readings {
    std::size_t place;
    std::vector<std::vector<ScoredBox>> readers;
    std::vector<std::string> answers;
  };
  std::map<std::pair<std::string, std::string>, Readings> readings;  // by picture and question
  std::vector<data::Sample> fused;
  for (const data::Sample& sample : samples) {
    if (!sample.fields.contains("reader")) {
      fused.push_back(sample);
      continue;
    }
    const auto [entry, is_new] = readings.try_emplace({sample.image, sample.question}, Readings{fused.size(), {}, {}});
    if (is_new) {
      fused.push_back(sample);
      fused.back().id = sample.image;
      fused.back().fields.erase("reader");
    }
    auto& boxes = entry->second.readers.emplace_back();
    for (const grounding::Region& region : sample.regions) boxes.push_back({region.box, region.name, 1});
    auto& answers = entry->second.answers;
    if (std::find(answers.begin(), answers.end(), sample.answer) == answers.end()) answers.push_back(sample.answer);
  }
  for (const auto& [key, entry] : readings) {
    data::Sample& sample = fused[entry.place];
    sample.regions.clear();
    std::vector<std::string> names;
    for (const ScoredBox& box : grounding::fuse_boxes(entry.readers, options)) {
      sample.regions.push_back({box.label, box.box});
      if (std::find(names.begin(), names.end(), box.label) == names.end()) names.push_back(box.label);
    }
    // Findings without boxes are all that readers agree on then.
    const auto& answers = names.empty() ? entry.answers : names;
    sample.answer.clear();
    for (const std::string& name : answers) sample.answer += (sample.answer.empty() ? "" : ", ") + name;
  }
  return fused;
}

std::vector<DetectionImage> detection_images(const std::vector<data::Sample>& samples,
                                             const std::vector<QuestionScore>& questions) {
  if (samples.size() != questions.size()) {
    throw_invalid("{} questions were answered of {}", questions.size(), samples.size());
  }
  std::map<std::string, DetectionImage> images;
  for (std::size_t i = 0; i < samples.size(); ++i) {
    DetectionImage& image = images[samples[i].image];
    for (const grounding::Region& region : samples[i].regions) {
      image.reference.push_back({region.box, grounding::normalize_text(region.name), 1});
    }
    if (!questions[i].parsed) continue;
    for (const grounding::Region& region : questions[i].regions) {
      image.predicted.push_back(
          {region.box, grounding::normalize_text(region.name), questions[i].confidence.value_or(1)});
    }
  }
  std::vector<DetectionImage> out;
  for (auto& [name, image] : images) out.push_back(std::move(image));
  return out;
}

}  // namespace thinkvg::eval
