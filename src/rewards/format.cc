#include <algorithm>
#include <array>

#include "rewards/builtin.h"
#include "thinkvg/core/error.h"
#include "thinkvg/grounding/answer.h"

namespace thinkvg::rewards {
namespace {

// Words of prose: numbers, and so the boxes, are none.
std::int64_t count_words(std::string_view text) {
  const std::string plain = grounding::normalize_text(text);
  std::int64_t count = 0;
  for (std::size_t begin = 0; begin < plain.size();) {
    const std::size_t end = std::min(plain.find(' ', begin), plain.size());
    const std::string_view word = std::string_view(plain).substr(begin, end - begin);
    count += word.find_first_not_of("0123456789.") != std::string_view::npos ? 1 : 0;
    begin = end + 1;
  }
  return count;
}

class FormatReward final : public Reward {
 public:
  explicit FormatReward(const RewardOptions& options) : min_think_words_(options.min_think_words) {
    if (min_think_words_ < 0) throw_invalid("min_think_words must not be negative, but is {}", min_think_words_);
  }

  std::string name() const override { return "format"; }

  RewardScore score(const RewardInput& input) override {
    if (!input.parsed.complete) return zero_incomplete(input);
    if (!input.parsed.bad_boxes.empty()) return zero("no box: " + input.parsed.bad_boxes.front());
    if (input.parsed.has_think) {
      for (const std::string_view tag : {"think>", "response>", "answer>", "location>", "ref>", "box>"}) {
        const std::size_t found = input.parsed.think.find(tag);
        if (found != std::string::npos && found > 0 &&
            (input.parsed.think[found - 1] == '<' || input.parsed.think[found - 1] == '/'))
          return zero(fmt::format("a tag inside <think>: <{}", tag));
      }
      // A reference with a shorter reasoning is as short as it may be.
      std::int64_t fewest = min_think_words_;
      if (!input.sample.think.empty()) fewest = std::min(fewest, count_words(input.sample.think));
      const std::int64_t words = count_words(input.parsed.think);
      if (words < fewest)
        return zero(words == 0 ? "the reasoning is empty" : fmt::format("a reasoning of {} words", words));
    }
    return scored(1, "well formed");
  }

 private:
  std::int64_t min_think_words_;
};

}  // namespace

std::unique_ptr<Reward> make_format_reward(const RewardOptions& options, const RewardResources&) {
  return std::make_unique<FormatReward>(options);
}

}  // namespace thinkvg::rewards
