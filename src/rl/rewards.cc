#include "thinkvg/rl/rewards.h"

#include <algorithm>
#include <functional>
#include <tuple>
#include <utility>

#include "thinkvg/core/error.h"
#include "thinkvg/grounding/answer.h"

namespace thinkvg::rl {
namespace {

using data::QuestionType;
using grounding::Box;
using grounding::MultiBoxRule;

// A box that was converted between frames must not miss a threshold by the last bits.
constexpr double kRoundingSlack = 1e-9;

RewardScore zero(std::string reason) { return {0, true, std::move(reason)}; }

RewardScore zero_incomplete(const RewardInput& input) {
  return zero(input.truncated ? input.parsed.problem + " (cut off at the length limit)" : input.parsed.problem);
}

double with_threshold(double value, double threshold) {
  if (threshold <= 0) return value;
  return value >= threshold - kRoundingSlack ? 1 : 0;
}

void check_threshold(const char* name, double threshold) {
  if (threshold >= 0 && threshold <= 1) return;
  throw_invalid("{} must be between 0 and 1, but is {}", name, threshold);
}

class AnswerReward final : public Reward {
 public:
  explicit AnswerReward(const RewardOptions& options)
      : reading_(grounding::parse_answer_reading(options.answer_reading)),
        partial_(options.multi_choice == "partial"),
        open_threshold_(options.open_threshold) {
    if (!partial_ && options.multi_choice != "exact") {
      throw_invalid("multi_choice must be 'exact' or 'partial', but is '{}'", options.multi_choice);
    }
    check_threshold("open_threshold", open_threshold_);
  }

  std::string name() const override { return "answer"; }

  RewardScore score(const RewardInput& input) const override {
    if (!input.parsed.complete) return zero_incomplete(input);
    const std::string& said = input.parsed.answer;
    const data::Sample& sample = input.sample;
    switch (sample.type) {
      case QuestionType::closed:
        if (grounding::yes_no_matches(said, sample.answer, reading_)) return {1, true, ""};
        return zero(fmt::format("the reference is '{}'", sample.answer));
      case QuestionType::single_choice:
      case QuestionType::multi_choice: {
        const auto match = grounding::match_option_letters(said, sample.answer, reading_, sample.choices);
        const bool by_share = partial_ && sample.type == QuestionType::multi_choice;
        return {by_share ? match.jaccard : (match.exact ? 1.0 : 0.0), true, match.problem};
      }
      case QuestionType::open: {
        const double f1 = grounding::token_f1(said, sample.answer);
        const double value = with_threshold(f1, open_threshold_);
        return {value, true, value < 1 ? fmt::format("token F1 {:.2f}", f1) : ""};
      }
    }
    return zero("unknown question type");
  }

 private:
  grounding::AnswerReading reading_;
  bool partial_;
  double open_threshold_;
};

std::size_t count_distinct(const std::vector<Box>& boxes) {
  std::vector<Box> sorted = boxes;
  const auto key = [](const Box& box) { return std::tie(box.x1, box.y1, box.x2, box.y2); };
  std::sort(sorted.begin(), sorted.end(), [&](const Box& a, const Box& b) { return key(a) < key(b); });
  const auto end =
      std::unique(sorted.begin(), sorted.end(), [&](const Box& a, const Box& b) { return key(a) == key(b); });
  return static_cast<std::size_t>(end - sorted.begin());
}

class GroundingReward final : public Reward {
 public:
  explicit GroundingReward(const RewardOptions& options)
      : rule_(grounding::parse_multi_box_rule(options.box_rule)), threshold_(options.grounding_threshold) {
    if (rule_ != MultiBoxRule::hungarian && rule_ != MultiBoxRule::paired) {
      throw_invalid("the grounding reward compares box by box: box_rule must be 'hungarian' or 'paired', but is '{}'",
                    options.box_rule);
    }
    check_threshold("grounding_threshold", threshold_);
  }

  std::string name() const override { return "grounding"; }

  RewardScore score(const RewardInput& input) const override {
    if (input.sample.regions.empty()) return {0, false, "the reference has no boxes"};
    if (!input.parsed.complete) return zero_incomplete(input);
    if (!input.parsed.bad_boxes.empty()) return zero(fmt::format("no box: {}", input.parsed.bad_boxes.front()));
    if (input.parsed.regions.size() != input.sample.regions.size()) {
      return zero(
          fmt::format("{} boxes, the reference has {}", input.parsed.regions.size(), input.sample.regions.size()));
    }
    std::vector<Box> predicted, reference;
    for (const auto& region : input.parsed.regions) {
      const Box box = input.geometry.convert(region.box, input.sample.frame);
      if (!box.is_valid()) return zero(fmt::format("no box in the picture's frame: {}", format_box(region.box)));
      predicted.push_back(box);
    }
    for (const auto& region : input.sample.regions) {
      reference.push_back(input.geometry.convert(region.box, input.sample.frame));
    }
    if (count_distinct(predicted) < count_distinct(reference)) return zero("one box is given several times");
    const double mean_iou = grounding::match_boxes(predicted, reference, rule_);
    const double value = with_threshold(mean_iou, threshold_);
    return {value, true, value < 1 ? fmt::format("mean IoU {:.3f}", mean_iou) : ""};
  }

 private:
  MultiBoxRule rule_;
  double threshold_;
};

class FormatReward final : public Reward {
 public:
  std::string name() const override { return "format"; }

  RewardScore score(const RewardInput& input) const override {
    if (!input.parsed.complete) return zero_incomplete(input);
    if (!input.parsed.bad_boxes.empty()) return zero(fmt::format("no box: {}", input.parsed.bad_boxes.front()));
    return {1, true, ""};
  }
};

// A new reward: its class above, one line here, a table test.
using Factory = std::function<std::unique_ptr<Reward>(const RewardOptions&)>;
const std::vector<std::pair<std::string, Factory>>& registry() {
  static const std::vector<std::pair<std::string, Factory>> rewards = {
      {"answer", [](const RewardOptions& options) { return std::make_unique<AnswerReward>(options); }},
      {"grounding", [](const RewardOptions& options) { return std::make_unique<GroundingReward>(options); }},
      {"format", [](const RewardOptions&) { return std::make_unique<FormatReward>(); }},
  };
  return rewards;
}

}  // namespace

const std::vector<std::string>& reward_names() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> all;
    for (const auto& [name, factory] : registry()) all.push_back(name);
    return all;
  }();
  return names;
}

std::unique_ptr<Reward> make_reward(const std::string& name, const RewardOptions& options) {
  for (const auto& [known, factory] : registry()) {
    if (known == name) return factory(options);
  }
  const std::string near = nearest_name(name, reward_names());
  throw_invalid("unknown reward '{}'{}; known are: {}", name, near.empty() ? "" : ", did you mean '" + near + "'?",
                fmt::join(reward_names(), ", "));
}

}  // namespace thinkvg::rl
