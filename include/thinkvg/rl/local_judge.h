#pragma once

#include <memory>

#include "thinkvg/generation/rollout_engine.h"
#include "thinkvg/models/bundle.h"
#include "thinkvg/rewards/judge.h"
#include "thinkvg/rewards/reward.h"

namespace thinkvg::rl {

// A judge model in this process: any model folder that the engine loads, asked without a picture. Its random numbers
// depend on the texts alone, so that the same question gets the same reply.
class LocalJudge final : public rewards::Judge {
 public:
  // judge.model is a model folder, or a run folder (its newest checkpoint); judge.max_tokens and judge.temperature
  // hold. The model goes to `device`. Throws as models::load_bundle.
  explicit LocalJudge(const rewards::JudgeOptions& options, const generation::EngineOptions& engine = {},
                      at::Device device = at::kCPU);
  std::vector<rewards::JudgeReply> ask(std::span<const rewards::JudgeRequest> requests) override;

 private:
  models::ModelBundle bundle_;
  generation::RolloutEngine engine_;
  generation::SamplingOptions sampling_;
};

// Resources for a RewardSet with which judge.url: local works. The model is loaded when the first reward needs it, and
// shared by all that do.
rewards::RewardResources reward_resources(const generation::EngineOptions& engine = {}, at::Device device = at::kCPU);

}  // namespace thinkvg::rl
