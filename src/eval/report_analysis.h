#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "thinkvg/eval/report.h"

// What the single answers of a run say together.
namespace thinkvg::eval {

inline constexpr std::size_t kIouBins = 20;

// V-scores of the questions whose reference has boxes: exactly 0, and kIouBins equal parts of (0, 1].
struct IouHistogram {
  std::int64_t zero = 0;
  std::array<std::int64_t, kIouBins> bins{};
  std::int64_t count = 0;
};
IouHistogram iou_histogram(const std::vector<ReportPrediction>& predictions);

inline constexpr std::size_t kReliabilityBins = 10;

// Whether a model's confidence tells how often it is right: graded answers by their confidence.
struct Reliability {
  struct Bin {
    double confidence = 0;  // mean
    double accuracy = 0;
    std::int64_t count = 0;
  };
  std::array<Bin, kReliabilityBins> bins{};
  std::int64_t count = 0;
  double confidence = 0, accuracy = 0;
  // Expected calibration error: mean over answers of |accuracy - confidence| of their bin (Guo et al., 2017).
  double calibration_error = 0;
};
// Nothing where no graded answer has a confidence.
std::optional<Reliability> reliability(const std::vector<ReportPrediction>& predictions);

// What was named where something else was meant: rows are the references' names, columns the predictions'; the last
// column counts references without a predicted box. Boxes are paired by the best one-to-one assignment of their
// overlap.
struct Confusion {
  std::vector<std::string> rows, columns;
  std::vector<std::vector<std::int64_t>> counts;

  bool empty() const { return rows.empty(); }
};
// By name; the `max_names` most frequent names (the references' count twice), the others as "other".
Confusion region_confusion(const std::vector<ReportPrediction>& predictions, std::size_t max_names);
// By side: left, right, both sides, midline.
Confusion side_confusion(const std::vector<ReportPrediction>& predictions);

// "left", "right", "both sides" or "midline", as the name of a region says.
std::string side_of(const std::string& name);

}  // namespace thinkvg::eval
