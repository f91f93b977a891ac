#pragma once

#include "rewards/builtin.h"
#include "thinkvg/rewards/judge.h"

namespace thinkvg::rewards {

// The paper's semantic reward, for the rewards that need it: 1 if the judge's scores of prediction and reference differ
// by less than max_difference, else 0. Incomplete and empty answers score 0, and the reference's own words 1, without a
// question to the judge.
class JudgeScorer {
 public:
  // Without a judge among the resources one is made from the options. `reward`: the name to complain under.
  JudgeScorer(std::string reward, const JudgeOptions& options, const RewardResources& resources);
  std::vector<RewardScore> score(std::span<const RewardInput> inputs);

 private:
  std::string reward_;
  JudgeOptions options_;
  std::shared_ptr<Judge> judge_;
  JudgePrompt prompt_;
};

}  // namespace thinkvg::rewards
