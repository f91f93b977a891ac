#include "thinkvg/grounding/answer.h"

#include <algorithm>

#include "rewards/builtin.h"
#include "rewards/judge_scorer.h"
#include "thinkvg/core/error.h"

namespace thinkvg::rewards {
namespace {

using data::QuestionType;

// The share of the reference's letters that were chosen; 0 with a letter that is not among them.
double subset_share(const std::string& said, const std::string& wanted) {
  for (const char letter : said)
    if (wanted.find(letter) == std::string::npos) return 0;
  return static_cast<double>(said.size()) / static_cast<double>(wanted.size());
}

class AnswerReward final : public Reward {
 public:
  AnswerReward(const RewardOptions& options, const RewardResources& resources) : rules_(options) {
    check_one_of("open_text", options.open_text, {"overlap", "judge"});
    if (options.open_text == "judge") judge_ = std::make_unique<JudgeScorer>("answer", options.judge, resources);
  }

  std::string name() const override { return "answer"; }

  RewardScore score(const RewardInput& input) override { return score_batch({&input, 1}).front(); }

  std::vector<RewardScore> score_batch(std::span<const RewardInput> inputs) override {
    std::vector<RewardScore> scores(inputs.size());
    std::vector<RewardInput> judged;
    std::vector<std::size_t> places;
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      if (judge_ && inputs[i].sample.type == QuestionType::open) {
        judged.push_back(inputs[i]);
        places.push_back(i);
      } else {
        scores[i] = rules_.score(inputs[i]);
      }
    }
    if (judged.empty()) return scores;
    std::vector<RewardScore> of_judge = judge_->score(judged);
    for (std::size_t i = 0; i < places.size(); ++i) scores[places[i]] = std::move(of_judge[i]);
    return scores;
  }

 private:
  AnswerRules rules_;
  std::unique_ptr<JudgeScorer> judge_;
};

}  // namespace

AnswerRules::AnswerRules(const RewardOptions& options)
    : reading_(grounding::parse_answer_reading(options.answer_reading)),
      multi_choice_(options.multi_choice),
      open_threshold_(options.open_threshold) {
  check_one_of("multi_choice", multi_choice_, {"exact", "partial", "subset"});
  check_share("open_threshold", open_threshold_);
}

RewardScore AnswerRules::score(const RewardInput& input) const {
  if (!input.parsed.complete) return zero_incomplete(input);
  const std::string& said = input.parsed.answer;
  const data::Sample& sample = input.sample;
  switch (sample.type) {
    case QuestionType::closed:
      if (grounding::yes_no_matches(said, sample.answer, reading_)) return scored(1, "answered as the reference");
      return zero(fmt::format("the reference is '{:.60}'", sample.answer));
    case QuestionType::single_choice:
    case QuestionType::multi_choice: {
      const auto match = grounding::match_option_letters(said, sample.answer, reading_, sample.choices);
      if (match.exact) return scored(1, "answered as the reference");
      if (sample.type == QuestionType::single_choice || multi_choice_ == "exact") return zero(match.problem);
      if (multi_choice_ == "partial") return scored(match.jaccard, match.problem);
      const auto letters = grounding::read_option_letters(said, reading_, sample.choices);
      const auto wanted =
          grounding::read_option_letters(sample.answer, grounding::AnswerReading::lenient, sample.choices);
      return scored(letters && wanted ? subset_share(*letters, *wanted) : 0, match.problem);
    }
    case QuestionType::open: {
      const double f1 = grounding::token_f1(said, sample.answer);
      return scored(with_threshold(f1, open_threshold_), fmt::format("token F1 {:.2f}", f1));
    }
  }
  return zero("unknown question type");
}

std::unique_ptr<Reward> make_answer_reward(const RewardOptions& options, const RewardResources& resources) {
  return std::make_unique<AnswerReward>(options, resources);
}

}  // namespace thinkvg::rewards
