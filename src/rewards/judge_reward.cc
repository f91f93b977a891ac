#include <cmath>

#include "rewards/judge_scorer.h"
#include "thinkvg/core/error.h"
#include "thinkvg/core/log.h"

namespace thinkvg::rewards {
namespace {

class JudgeReward final : public Reward {
 public:
  JudgeReward(const RewardOptions& options, const RewardResources& resources)
      : scorer_("judge", options.judge, resources) {}
  std::string name() const override { return "judge"; }
  RewardScore score(const RewardInput& input) override { return scorer_.score({&input, 1}).front(); }
  std::vector<RewardScore> score_batch(std::span<const RewardInput> inputs) override { return scorer_.score(inputs); }

 private:
  JudgeScorer scorer_;
};

}  // namespace

JudgeScorer::JudgeScorer(std::string reward, const JudgeOptions& options, const RewardResources& resources)
    : reward_(std::move(reward)), options_(options), judge_(resources.judge) {
  if (judge_) {
    options_.failure.check("judge");
  } else {
    judge_ = make_judge(options_, resources.local_judge);
  }
  prompt_ = JudgePrompt::read(options_.prompt);
}

std::vector<RewardScore> JudgeScorer::score(std::span<const RewardInput> inputs) {
  std::vector<RewardScore> scores(inputs.size());
  std::vector<JudgedPair> pairs;
  std::vector<std::size_t> places;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const RewardInput& input = inputs[i];
    if (!input.parsed.complete) {
      scores[i] = zero_incomplete(input);
    } else if (input.parsed.answer == input.sample.answer) {
      scores[i] = scored(1, "answered in the reference's words");
    } else {
      pairs.push_back({input.sample.question, fmt::format("{}", fmt::join(input.sample.choices, "\n")),
                       input.sample.think, input.sample.answer, input.parsed.answer});
      places.push_back(i);
    }
  }
  if (pairs.empty()) return scores;
  const std::vector<PairVerdict> verdicts =
      judge_pairs(*judge_, prompt_, pairs, {options_.swap, options_.parse_attempts});
  std::size_t num_failed = 0;
  std::string problem;
  for (std::size_t i = 0; i < verdicts.size(); ++i) {
    const PairVerdict& verdict = verdicts[i];
    RewardScore& score = scores[places[i]];
    if (!verdict.problem.empty()) {
      ++num_failed;
      problem = verdict.problem;
      score = failed_score(options_.failure, reward_, "the judge gave no scores: " + verdict.problem);
      continue;
    }
    const double difference = std::abs(verdict.prediction - verdict.reference);
    score = scored(difference < options_.max_difference ? 1 : 0,
                   fmt::format("the judge gives {:.1f}, the reference {:.1f}", verdict.prediction, verdict.reference));
  }
  if (num_failed > 0)
    spdlog::warn("reward {}: {} of {} completions could not be judged ({}), such as: {}", reward_, num_failed,
                 pairs.size(), options_.failure.on_failure, problem);
  return scores;
}

std::unique_ptr<Reward> make_judge_reward(const RewardOptions& options, const RewardResources& resources) {
  return std::make_unique<JudgeReward>(options, resources);
}

}  // namespace thinkvg::rewards
