#pragma once

#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "thinkvg/grounding/answer.h"
#include "thinkvg/rewards/reward.h"

// What the rewards that come along share. One factory a reward, listed in registry.cc.
namespace thinkvg::rewards {

std::unique_ptr<Reward> make_answer_reward(const RewardOptions& options, const RewardResources& resources);
std::unique_ptr<Reward> make_grounding_reward(const RewardOptions& options, const RewardResources& resources);
std::unique_ptr<Reward> make_format_reward(const RewardOptions& options, const RewardResources& resources);
std::unique_ptr<Reward> make_region_reward(const RewardOptions& options, const RewardResources& resources);
std::unique_ptr<Reward> make_think_grounding_reward(const RewardOptions& options, const RewardResources& resources);
std::unique_ptr<Reward> make_consistency_reward(const RewardOptions& options, const RewardResources& resources);
std::unique_ptr<Reward> make_length_reward(const RewardOptions& options, const RewardResources& resources);
std::unique_ptr<Reward> make_cosine_reward(const RewardOptions& options, const RewardResources& resources);
std::unique_ptr<Reward> make_repetition_reward(const RewardOptions& options, const RewardResources& resources);
std::unique_ptr<Reward> make_judge_reward(const RewardOptions& options, const RewardResources& resources);
std::unique_ptr<Reward> make_program_reward(const std::string& command, const RewardOptions& options);

// The answer reward by rules alone; for a question that needs a judge nothing.
class AnswerRules {
 public:
  explicit AnswerRules(const RewardOptions& options);
  RewardScore score(const RewardInput& input) const;

 private:
  grounding::AnswerReading reading_;
  std::string multi_choice_;
  double open_threshold_;
};

inline RewardScore scored(double value, std::string reason) { return {value, true, std::move(reason)}; }
inline RewardScore zero(std::string reason) { return {0, true, std::move(reason)}; }
inline RewardScore not_applicable(std::string reason) { return {0, false, std::move(reason)}; }

// Why an incomplete response scores nothing.
RewardScore zero_incomplete(const RewardInput& input);

// The score of a completion that could not be scored. Throws std::runtime_error under on_failure: stop.
RewardScore failed_score(const FailurePolicy& policy, const std::string& reward, const std::string& problem);

// 1 from the threshold on, else 0; the value itself for threshold 0. A box that was converted between frames does not
// miss the threshold by the last bits.
double with_threshold(double value, double threshold);

// Throws std::invalid_argument unless 0 <= value <= 1.
void check_share(const char* name, double value);
// Throws std::invalid_argument unless `value` is one of the names, with the list.
void check_one_of(const char* setting, const std::string& value, std::initializer_list<const char*> names);

// A box in the sample's frame, or why it is none there.
struct PlacedBox {
  grounding::Box box;
  std::string problem;
};
// Whether `box` is a box that lies in the frame it was written in (a twentieth of its extent beyond is let pass, and
// whatever the reference's own boxes do), and where it lies in the sample's frame.
PlacedBox place_box(const RewardInput& input, const grounding::Box& box);

}  // namespace thinkvg::rewards
