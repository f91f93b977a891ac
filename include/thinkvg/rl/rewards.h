#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "thinkvg/core/settings.h"
#include "thinkvg/data/sample.h"
#include "thinkvg/grounding/response.h"

namespace thinkvg::rl {

// What one reward says about one completion.
struct RewardScore {
  double value = 0;        // in [0, 1]; 0 when not applicable
  bool applicable = true;  // false: the question gives this reward nothing to judge; leave it out of the sum
  std::string reason;      // why it is not 1 (or not applicable), in words; empty for full marks
};

// A completion as the rewards see it. References and views must outlive the call.
struct RewardInput {
  const data::Sample& sample;
  const grounding::ParsedResponse& parsed;   // boxes in any frame; they are converted to the sample's
  const grounding::ImageGeometry& geometry;  // of the sample's picture
  std::string_view text;                     // the completion as generated
  bool truncated = false;                    // ended by the length limit
};

// Immutable; score() may run in several threads. It never throws on model text: bad text scores 0, with its reason.
class Reward {
 public:
  virtual ~Reward() = default;
  virtual std::string name() const = 0;
  virtual RewardScore score(const RewardInput& input) const = 0;
};

struct RewardOptions {
  std::string answer_reading = "strict";
  std::string multi_choice = "exact";
  double open_threshold = 0.5;
  std::string box_rule = "hungarian";
  double grounding_threshold = 0.75;

  void visit(SettingsVisitor& v) {
    v.setting("answer_reading", answer_reading,
              "How yes/no and option letters are read: strict (the answer and nothing else) or lenient.");
    v.setting("multi_choice", multi_choice,
              "Answer reward of multi choice: exact (the same set) or partial (Jaccard index of the two sets).");
    v.setting("open_threshold", open_threshold,
              "Answer reward of open questions: 1 from this token F1 on, else 0; 0 takes the F1 itself.");
    v.setting("box_rule", box_rule, "How several boxes are compared behind the count gate: hungarian or paired.");
    v.setting("grounding_threshold", grounding_threshold,
              "Grounding reward: 1 from this mean IoU on, else 0; 0 takes the mean IoU itself.");
  }
};

// The rewards of GEMeX-ThinkVG (arXiv 2506.17939), all of them 0 for a response that does not parse completely:
//   answer     agreement with the reference answer; the rule-based stand-in for the paper's judged (semantic) reward.
//              Closed, single choice: right or wrong. Multi choice, open: see RewardOptions.
//   grounding  0 unless there are as many predicted boxes as reference boxes; then their mean IoU in the sample's
//              frame, with threshold. A box given twice, or one that is no box, scores 0. Not applicable when the
//              reference has no boxes.
//   format     1 if the response parses completely and all of its boxes are boxes.
// Throws std::invalid_argument on an unknown name (with the list) or a bad option.
std::unique_ptr<Reward> make_reward(const std::string& name, const RewardOptions& options);

// The names that make_reward takes.
const std::vector<std::string>& reward_names();

}  // namespace thinkvg::rl
