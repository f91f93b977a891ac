#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "thinkvg/core/json.h"
#include "thinkvg/data/sample.h"
#include "thinkvg/eval/metrics.h"

// What a system scores that looks at no picture and reads no question.
namespace thinkvg::eval {

enum class Baseline {
  majority_answer,  // for each question type the most frequent reference answer of the set; no boxes
  random_boxes,  // as many boxes as the reference of another question has, of sizes drawn from all references, placed
                 // uniformly inside the frame's extent; the answer is the majority answer
};
std::string baseline_name(Baseline baseline);   // "majority_answer", "random_boxes"
std::string baseline_title(Baseline baseline);  // for people

// One response a question, in the questions' order, boxes in each sample's frame. The majority is that of these very
// references, so that it is an upper bound of what guessing gives. Random numbers depend on the seed and a sample's id.
std::vector<std::string> baseline_responses(const std::vector<data::Sample>& samples, Baseline baseline,
                                            std::int64_t seed);

// {"majority_answer": {"title": .., "a_score": {..}, ..}, "random_boxes": {..}}: the metrics that a baseline says
// something about, in the layout of scores_to_json. Boxes of the `original` frame, whose extent is the picture's, are
// placed in the smallest rectangle that holds all references of the set.
Json baselines_to_json(const std::vector<data::Sample>& samples, const MetricOptions& options);

}  // namespace thinkvg::eval
