#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "thinkvg/core/json.h"
#include "thinkvg/data/sample.h"
#include "thinkvg/eval/metrics.h"
#include "thinkvg/grounding/fusion.h"

// Average precision of boxes, for sets such as VinDr-CXR.
namespace thinkvg::eval {

// The boxes of one picture, all in one frame. References carry no score.
struct DetectionImage {
  std::vector<grounding::ScoredBox> predicted;
  std::vector<grounding::ScoredBox> reference;
};

struct DetectionOptions {
  std::vector<double> thresholds = {0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95};
  std::int64_t max_boxes = 100;      // a picture and label: the best of the rest are not looked at
  std::vector<double> also = {0.4};  // told besides, no part of any mean: VinDr-CXR's challenge asked for IoU 0.4
};

struct AveragePrecision {
  double ap = 0;                           // mean over thresholds and labels
  std::map<std::string, double> at;        // mean over labels at one threshold, by name: "0.50"
  std::map<std::string, double> by_label;  // mean over thresholds
  double recall = 0;                       // largest recall, mean over thresholds and labels
  std::int64_t num_reference = 0;
};

// As pycocotools' COCOeval for boxes of any area: a prediction takes the free reference of its label and picture with
// the largest IoU, in order of falling score; precision is made monotone and read at recall 0, 0.01, .. 1. Labels
// without any reference are left out; without any reference at all every value is -1. Ties of scores go by the order of
// the pictures and boxes. Throws std::invalid_argument when a picture mixes frames.
AveragePrecision average_precision(const std::vector<DetectionImage>& images, const DetectionOptions& options = {});

Json detection_to_json(const AveragePrecision& result);
// A table for people: the mean, some thresholds, and the labels.
std::string detection_to_table(const AveragePrecision& result);

// Several readers' samples of one picture (those with a field "reader", as VinDr-CXR gives them) become one, whose
// regions are the readers' boxes after weighted box fusion and whose answer names what any of them found. Its id is the
// picture. Other samples stay as they are; the order is that of first appearance.
std::vector<data::Sample> fuse_readers(const std::vector<data::Sample>& samples,
                                       const grounding::FusionOptions& options = {});

// Answered questions as pictures of a detection benchmark: labels are the names of regions without case and
// punctuation; a predicted box scores the answer's confidence, or 1. `questions[i]` answers `samples[i]`.
std::vector<DetectionImage> detection_images(const std::vector<data::Sample>& samples,
                                             const std::vector<QuestionScore>& questions);

}  // namespace thinkvg::eval
