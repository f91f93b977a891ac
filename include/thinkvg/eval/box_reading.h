#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "thinkvg/data/sample.h"
#include "thinkvg/eval/metrics.h"
#include "thinkvg/grounding/box.h"

// How predicted boxes were read, and whether another reading fits the references far better: a wrong frame is the
// commonest reason for a low V-score of another system's predictions, and nothing else shows it.
namespace thinkvg::eval {

struct BoxReading {
  grounding::BoxFrame frame;
  grounding::BoxOrder order = grounding::BoxOrder::xyxy;
  bool operator==(const BoxReading&) const = default;
};

// A scored question with the size of its picture, where that is known. References must outlive the call.
struct SizedQuestion {
  const data::Sample& sample;
  const QuestionScore& score;
  std::optional<grounding::ImageSize> picture;
};

struct LikelierReading {
  BoxReading reading;
  double v_score = 0;          // in that reading, one-to-one
  double v_score_as_read = 0;  // of the same questions
  std::int64_t num_questions = 0;
};

// The reading in which the boxes of `questions` (read in the frame `as_read`, in the order x1, y1, x2, y2) lie on their
// references far better than as they were read: by a V-score of 0.2 or more. Nothing where there is none, or where
// fewer than 5 questions have boxes on both sides. Tried are the frames that models and sets write, and, in the frame
// `as_read`, the other orders. Where a picture's size is needed and not known, a square is taken. At most 500
// questions, spread evenly, are looked at. For telling the user; scores never use it.
std::optional<LikelierReading> likelier_reading(const std::vector<SizedQuestion>& questions,
                                                const grounding::BoxFrame& as_read);

}  // namespace thinkvg::eval
