#include "thinkvg/eval/box_reading.h"

#include <algorithm>
#include <array>

#include "thinkvg/grounding/geometry.h"
#include "thinkvg/grounding/overlap.h"
#include "thinkvg/grounding/response.h"

namespace thinkvg::eval {
namespace {

using grounding::Box;
using grounding::BoxFrame;
using grounding::BoxOrder;

constexpr std::size_t kMaxQuestions = 500;
constexpr std::size_t kMinQuestions = 5;
constexpr double kFarBetter = 0.2;

// The boxes of one question, as the prediction wrote their numbers.
struct Written {
  const SizedQuestion* question;
  std::vector<std::array<double, 4>> numbers;
};

std::vector<std::array<double, 4>> numbers_of(const grounding::ParsedResponse& response) {
  std::vector<std::array<double, 4>> numbers;
  for (const grounding::Region& region : response.regions)
    numbers.push_back({region.box.x1, region.box.y1, region.box.x2, region.box.y2});
  // In the wrong order many are no boxes.
  for (const std::string& text : response.bad_boxes)
    if (const auto four = grounding::read_four_numbers(text)) numbers.push_back(*four);
  return numbers;
}

double mean_overlap(const std::vector<Written>& written, const BoxReading& reading) {
  double sum = 0;
  for (const auto& [question, numbers] : written) {
    const data::Sample& sample = question->sample;
    const grounding::ImageGeometry geometry(question->picture.value_or(grounding::ImageSize{1, 1}));
    std::vector<Box> predicted, reference;
    for (const auto& four : numbers)
      predicted.push_back(geometry.convert(make_box(four, reading.order, reading.frame), sample.frame));
    for (const grounding::Region& region : sample.regions)
      reference.push_back(geometry.convert(region.box, sample.frame));
    sum += grounding::overlap_of(predicted, reference).hungarian;
  }
  return sum / static_cast<double>(written.size());
}

std::vector<BoxReading> other_readings(const BoxFrame& as_read, bool sizes_known) {
  std::vector<BoxReading> readings;
  for (const BoxOrder order : {BoxOrder::yxyx, BoxOrder::xywh, BoxOrder::cxcywh}) readings.push_back({as_read, order});
  std::vector<BoxFrame> frames = {BoxFrame::unit(), BoxFrame::hundred(), BoxFrame::thousand()};
  if (sizes_known) frames.push_back(BoxFrame::original());
  for (const std::int64_t side : {224, 336, 448, 512, 896, 1024}) {
    frames.push_back(BoxFrame::letterbox(side));
    frames.push_back(BoxFrame::stretch(side, side));
  }
  for (const BoxFrame& frame : frames)
    if (!(frame == as_read)) readings.push_back({frame, BoxOrder::xyxy});
  return readings;
}

}  // namespace

std::optional<LikelierReading> likelier_reading(const std::vector<SizedQuestion>& questions, const BoxFrame& as_read) {
  std::vector<Written> written;
  for (const SizedQuestion& question : questions) {
    if (question.sample.regions.empty()) continue;
    std::vector<std::array<double, 4>> numbers = numbers_of(question.score.response);
    if (!numbers.empty()) written.push_back({&question, std::move(numbers)});
  }
  if (written.size() < kMinQuestions) return std::nullopt;
  const std::size_t step = (written.size() + kMaxQuestions - 1) / kMaxQuestions;
  std::vector<Written> looked_at;
  for (std::size_t i = 0; i < written.size(); i += step) looked_at.push_back(std::move(written[i]));
  const bool sizes_known = std::all_of(looked_at.begin(), looked_at.end(),
                                       [](const Written& item) { return item.question->picture.has_value(); });
  LikelierReading best;
  best.num_questions = std::ssize(looked_at);
  best.v_score = best.v_score_as_read = mean_overlap(looked_at, {as_read, BoxOrder::xyxy});
  for (const BoxReading& reading : other_readings(as_read, sizes_known)) {
    const double v_score = mean_overlap(looked_at, reading);
    if (v_score <= best.v_score) continue;
    best.v_score = v_score;
    best.reading = reading;
  }
  if (best.v_score < best.v_score_as_read + kFarBetter) return std::nullopt;
  return best;
}

}  // namespace thinkvg::eval
