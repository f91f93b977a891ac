#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>
#include <unordered_map>

#include "rewards/builtin.h"
#include "thinkvg/core/error.h"

namespace thinkvg::rewards {
namespace {

std::int64_t known_length(const RewardInput& input, const char* reward) {
  if (input.num_tokens >= 0) return input.num_tokens;
  if (!input.ids.empty()) return static_cast<std::int64_t>(input.ids.size());
  throw_invalid("the reward '{}' needs the number of tokens of each completion; this one of '{}' has none", reward,
                input.sample.id);
}

std::int64_t longest_length(const RewardOptions& options, const char* reward) {
  if (options.max_completion_length > 0) return options.max_completion_length;
  throw_invalid("the reward '{}' needs the longest length of a completion: give reward.max_completion_length", reward);
}

class LengthReward final : public Reward {
 public:
  explicit LengthReward(const RewardOptions& options)
      : longest_(longest_length(options, "length")),
        cache_(options.overlong_cache > 0 ? options.overlong_cache : std::max<std::int64_t>(1, longest_ / 5)) {
    if (options.overlong_cache < 0 || cache_ > longest_)
      throw_invalid("overlong_cache must be between 0 and the longest length, {}, but is {}", longest_,
                    options.overlong_cache);
  }

  std::string name() const override { return "length"; }

  RewardScore score(const RewardInput& input) override {
    const std::int64_t length = known_length(input, "length");
    const std::string reason = fmt::format("{} tokens, penalised from {} on", length, longest_ - cache_);
    if (length <= longest_ - cache_) return scored(0, reason);
    if (length > longest_) return scored(-1, reason);
    return scored(static_cast<double>(longest_ - cache_ - length) / static_cast<double>(cache_), reason);
  }

 private:
  std::int64_t longest_;
  std::int64_t cache_;
};

// An answer is right where the answer reward, by rules, gives it full marks.
class CosineReward final : public Reward {
 public:
  explicit CosineReward(const RewardOptions& options)
      : rules_(options), options_(options), longest_(longest_length(options, "cosine")) {}

  std::string name() const override { return "cosine"; }

  RewardScore score(const RewardInput& input) override {
    const RewardScore answer = rules_.score(input);
    const bool right = answer.value >= 1;
    const std::int64_t length = known_length(input, "cosine");
    // Beyond the longest length the cosine would climb again.
    const double progress = std::min(1.0, static_cast<double>(length) / static_cast<double>(longest_));
    const double at_short = right ? options_.cosine_right_short : options_.cosine_wrong_short;
    const double at_long = right ? options_.cosine_right_long : options_.cosine_wrong_long;
    const double value = at_long + (at_short - at_long) * (1 + std::cos(progress * std::numbers::pi)) / 2;
    return scored(value, fmt::format("{} answer of {} tokens", right ? "a right" : "a wrong", length));
  }

 private:
  AnswerRules rules_;
  RewardOptions options_;
  std::int64_t longest_;
};

class RepetitionReward final : public Reward {
 public:
  explicit RepetitionReward(const RewardOptions& options)
      : size_(options.repetition_ngram),
        penalty_(options.repetition_penalty),
        by_tokens_(options.repetition_unit == "tokens") {
    check_one_of("repetition_unit", options.repetition_unit, {"words", "tokens"});
    if (size_ < 1) throw_invalid("repetition_ngram must be at least 1, but is {}", size_);
    if (!(penalty_ <= 0) || !std::isfinite(penalty_))
      throw_invalid("repetition_penalty must not be above 0, but is {}", penalty_);
  }

  std::string name() const override { return "repetition"; }

  RewardScore score(const RewardInput& input) override {
    if (by_tokens_ && input.ids.empty() && input.num_tokens != 0)
      throw_invalid(
          "the reward 'repetition' needs the tokens of each completion, and this one of '{}' has none; set "
          "repetition_unit to words",
          input.sample.id);
    const std::vector<std::int64_t> units =
        by_tokens_ ? std::vector<std::int64_t>(input.ids.begin(), input.ids.end()) : number_words(input.text);
    const std::int64_t total = static_cast<std::int64_t>(units.size()) - size_ + 1;
    if (total < 1) return scored(0, "too short to repeat itself");
    const double share = 1 - static_cast<double>(count_distinct(units, total)) / static_cast<double>(total);
    return scored(share > 0 ? share * penalty_ : 0, fmt::format("{:.0f} % of the {}-grams repeat", 100 * share, size_));
  }

 private:
  static std::vector<std::int64_t> number_words(std::string_view text) {
    std::unordered_map<std::string, std::int64_t> numbers;
    std::vector<std::int64_t> units;
    std::string word;
    const auto end_word = [&] {
      if (word.empty()) return;
      const auto next = static_cast<std::int64_t>(numbers.size());
      units.push_back(numbers.emplace(word, next).first->second);
      word.clear();
    };
    for (const char c : text) {
      if (c == ' ' || (c >= '\t' && c <= '\r')) {
        end_word();
      } else {
        word += c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
      }
    }
    end_word();
    return units;
  }

  // Distinct n-grams among the first `total` places.
  std::int64_t count_distinct(const std::vector<std::int64_t>& units, std::int64_t total) const {
    std::vector<std::int64_t> starts(static_cast<std::size_t>(total));
    std::iota(starts.begin(), starts.end(), 0);
    const auto gram = [&](std::int64_t start) {
      return std::span(units).subspan(static_cast<std::size_t>(start), static_cast<std::size_t>(size_));
    };
    std::sort(starts.begin(), starts.end(), [&](std::int64_t a, std::int64_t b) {
      return std::lexicographical_compare(gram(a).begin(), gram(a).end(), gram(b).begin(), gram(b).end());
    });
    std::int64_t count = 1;
    for (std::size_t i = 1; i < starts.size(); ++i)
      count += std::equal(gram(starts[i]).begin(), gram(starts[i]).end(), gram(starts[i - 1]).begin()) ? 0 : 1;
    return count;
  }

  std::int64_t size_;
  double penalty_;
  bool by_tokens_;
};

}  // namespace

std::unique_ptr<Reward> make_length_reward(const RewardOptions& options, const RewardResources&) {
  return std::make_unique<LengthReward>(options);
}
std::unique_ptr<Reward> make_cosine_reward(const RewardOptions& options, const RewardResources&) {
  return std::make_unique<CosineReward>(options);
}
std::unique_ptr<Reward> make_repetition_reward(const RewardOptions& options, const RewardResources&) {
  return std::make_unique<RepetitionReward>(options);
}

}  // namespace thinkvg::rewards
