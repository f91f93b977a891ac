#pragma once

#include <memory>
#include <string>
#include <vector>

#include "thinkvg/rewards/reward.h"

namespace thinkvg::test {

inline const grounding::BoxFrame kRewardFrame = grounding::BoxFrame::letterbox(336);

inline grounding::Box reward_box(double x1, double y1, double x2, double y2) { return {x1, y1, x2, y2, kRewardFrame}; }

// A question about a 3056 x 2544 picture with its reference; every region is called "left lung".
inline data::Sample reward_sample(data::QuestionType type, const std::string& answer,
                                  const std::vector<grounding::Box>& boxes) {
  data::Sample sample;
  sample.id = "1";
  sample.type = type;
  sample.question = "What is seen?";
  sample.answer = answer;
  sample.frame = kRewardFrame;
  if (type == data::QuestionType::single_choice || type == data::QuestionType::multi_choice)
    sample.choices = {"A: left lung", "B: right lung", "C: heart", "D: spine"};
  for (const grounding::Box& box : boxes) sample.regions.push_back({"left lung", box});
  return sample;
}

// One completion, with what the rewards need of it.
struct RewardCase {
  data::Sample sample;
  std::string text;
  bool expect_think = false;
  grounding::BoxFrame frame = kRewardFrame;
  bool truncated = false;
  std::int64_t num_tokens = 10;
  std::vector<std::int64_t> ids = {};

  grounding::ParsedResponse parsed = grounding::parse_response(text, frame, expect_think);
  grounding::ImageGeometry geometry = grounding::ImageGeometry({3056, 2544});

  rewards::RewardInput input() const {
    return {.sample = sample,
            .parsed = parsed,
            .geometry = geometry,
            .text = text,
            .frame = frame,
            .truncated = truncated,
            .num_tokens = num_tokens,
            .ids = ids};
  }
};

inline rewards::RewardScore reward_score(const std::string& name, const RewardCase& completion,
                                         const rewards::RewardOptions& options = {},
                                         const rewards::RewardResources& resources = {}) {
  return rewards::make_reward(name, options, resources)->score(completion.input());
}

}  // namespace thinkvg::test
