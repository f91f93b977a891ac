// A program of one's own with a reward of one's own: it can be named in every list of rewards, `answer=1,short=0.5`.
#include <thinkvg/rewards/reward.h>

#include <cstdio>
#include <memory>

namespace {

using namespace thinkvg;

// 1 for a response of at most 100 bytes.
class ShortReward final : public rewards::Reward {
 public:
  std::string name() const override { return "short"; }
  rewards::RewardScore score(const rewards::RewardInput& input) override {
    return {input.text.size() <= 100 ? 1.0 : 0.0, true, std::to_string(input.text.size()) + " bytes"};
  }
};

}  // namespace

int main() {
  rewards::register_reward("short", [](const rewards::RewardOptions&, const rewards::RewardResources&) {
    return std::make_unique<ShortReward>();
  });
  data::Sample sample;
  sample.type = data::QuestionType::closed;
  sample.answer = "yes";
  const std::string text = "<response><answer>yes</answer></response>";
  const auto parsed = grounding::parse_response(text, sample.frame, false);
  const grounding::ImageGeometry geometry({336, 336});
  const rewards::RewardInput input{.sample = sample, .parsed = parsed, .geometry = geometry, .text = text};
  rewards::RewardSet set({"answer=1", "short=0.5"}, {});
  const rewards::CompletionReward reward = set.score({&input, 1}).front();
  std::printf("reward %.2f, %s: %s\n", reward.total, set.name(1).c_str(), reward.scores[1].reason.c_str());
}
