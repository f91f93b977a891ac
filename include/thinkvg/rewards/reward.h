#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "thinkvg/data/sample.h"
#include "thinkvg/grounding/response.h"
#include "thinkvg/rewards/judge.h"
#include "thinkvg/rewards/options.h"

namespace thinkvg::rewards {

// What one reward says about one completion.
struct RewardScore {
  double value = 0;        // see each reward for its range; 0 when not applicable
  bool applicable = true;  // false: there is nothing to judge here; leave it out of the sum
  std::string reason;      // why this value, in words; never empty
};

// A completion as the rewards see it. What it refers to must outlive the call.
struct RewardInput {
  const data::Sample& sample;
  const grounding::ParsedResponse& parsed;   // boxes in `frame`; they are converted to the sample's
  const grounding::ImageGeometry& geometry;  // of the sample's picture
  std::string_view text;                     // the completion as generated
  grounding::BoxFrame frame = {};            // of the boxes in `text`
  bool truncated = false;                    // ended by the length limit
  std::int64_t num_tokens = -1;              // the end token included; -1: unknown
  std::span<const std::int64_t> ids = {};    // tokens of the completion; empty: unknown
  std::int64_t step = 0;                     // of the run
  std::int64_t completion = 0;               // which of its group
};

// A reward. To make one, derive, override name() and score(), and register a factory with register_reward. One that
// asks somebody else (a judge, a program) overrides score_batch, too, to ask for many at once.
//
// Bad model text is data: it scores 0 (or the lowest value) with its reason, and nothing is thrown. What may throw is
// the environment, such as a judge that is down under `on_failure: stop`. Called by one thread at a time.
class Reward {
 public:
  virtual ~Reward() = default;
  // Names the reward in metrics (rewards/<name>/mean) and logs.
  virtual std::string name() const = 0;
  virtual RewardScore score(const RewardInput& input) = 0;
  // The scores of all inputs, in their order.
  virtual std::vector<RewardScore> score_batch(std::span<const RewardInput> inputs);
};

// What a reward is made with, besides its settings.
struct RewardResources {
  std::shared_ptr<Judge> judge;   // for rewards that ask a judge; none: one is made from RewardOptions::judge
  LocalJudgeFactory local_judge;  // how a judge in this process is made, for judge.url: local; see rl/local_judge.h
};
using RewardFactory = std::function<std::unique_ptr<Reward>(const RewardOptions&, const RewardResources&)>;

// The rewards that come along. All but length, cosine and repetition are 0 for a response that does not parse
// completely; a box is none if it is reversed, not a number, or reaches out of its frame by more than a twentieth.
//   answer           agreement with the reference answer, by rules, in [0, 1]: the stand-in for the paper's judged
//                    reward that needs no judge. Closed, single choice: right or wrong. Multi choice, open: see
//                    AnswerOptions.
//   grounding        agreement with the reference boxes in the sample's frame, in [0, 1]: as in GEMeX-ThinkVG (arXiv
//                    2506.17939), 0 unless there are as many boxes as in the reference, else 1 from a mean IoU of 0.75
//                    on. See GroundingOptions for the variants. Not applicable when the reference has no boxes.
//   format           1 if the response parses completely, its reasoning is one, without tags, and its boxes are boxes.
//   region           F1 of the named regions, in [0, 1]. Synonyms are one name, "bilateral lung" is the left and the
//                    right lung, and the wrong side is a wrong region. Not applicable without reference names.
//   think_grounding  share of the regions in the reasoning that are sound, in [0, 1]: a known region's name, a box in
//                    the picture that agrees with the answer's box of that name. 0 where the answer points at regions
//                    and the reasoning at none. Not applicable without reasoning, or where the reference's has no
//                    boxes.
//   consistency      1 if the answer is the one that the reasoning concludes with, 0 if it is another one. Not
//                    applicable where the reasoning states no conclusion that can be read by rule.
//   length           soft over-long penalty of DAPO (arXiv 2503.14476, eq. 13), in [-1, 0], as in TRL.
//   cosine           a right answer earns the more, and a wrong one loses the more, the shorter it is, in [-1, 1]
//                    (arXiv 2502.03373, C.1), as in TRL.
//   repetition       penalty in proportion to the repeated n-grams, in [-1, 0] (arXiv 2502.03373, C.2), as in TRL.
//   judge            the paper's semantic reward: a judge model scores reference and prediction from 1 to 10; 1 if they
//                    differ by less than 2, else 0. See JudgeOptions.
//   program:COMMAND  a program that reads completions as JSON lines and writes one score a line; see ProgramOptions.
//
// Throws std::invalid_argument on an unknown name (with the list) or a bad option.
std::unique_ptr<Reward> make_reward(const std::string& name, const RewardOptions& options,
                                    const RewardResources& resources = {});

// Makes `name` known to make_reward, and so to every setting that lists rewards. Call it before the run starts; may be
// called from several threads. Throws std::invalid_argument when the name is taken, empty, or has one of ":=," in it.
void register_reward(const std::string& name, RewardFactory factory);

// The names that make_reward takes (program: apart), those registered by the user last.
std::vector<std::string> reward_names();

// "answer=1", "grounding=1", "format=1": the paper's three rewards. Its weights are not published.
const std::vector<std::string>& default_rewards();

// What all rewards together say about one completion: R = sum of weight * value over the applicable ones.
struct CompletionReward {
  std::vector<RewardScore> scores;  // one a reward, in the order of the set
  double total = 0;
  bool applicable = false;  // false: no reward was; leave the completion out of its group's mean, with advantage 0
};

// Rewards with their weights. Not thread-safe.
class RewardSet {
 public:
  // `weighted_names`: "name" or "name=weight", such as "answer=1" or "program:./my_reward.py=0.5"; the last "=" counts.
  // Throws std::invalid_argument on an empty list, a weight that is no finite number, an unknown or repeated name.
  RewardSet(const std::vector<std::string>& weighted_names, const RewardOptions& options,
            const RewardResources& resources = {});

  std::size_t size() const { return rewards_.size(); }
  const std::string& name(std::size_t k) const { return names_.at(k); }
  double weight(std::size_t k) const { return weights_.at(k); }

  // In the order of the inputs. A reward that breaks the rules (a value that is not finite, a wrong number of scores)
  // throws std::runtime_error that names it.
  std::vector<CompletionReward> score(std::span<const RewardInput> inputs);

 private:
  std::vector<std::unique_ptr<Reward>> rewards_;
  std::vector<std::string> names_;
  std::vector<double> weights_;
};

// The reason without what changes from completion to completion (numbers, quoted text, boxes, letters of options), for
// counting: "mean IoU 0.512" -> "mean IoU #".
std::string reason_pattern(std::string_view reason);

}  // namespace thinkvg::rewards
