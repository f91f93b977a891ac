#include <algorithm>
#include <charconv>
#include <cmath>
#include <mutex>
#include <utility>

#include "rewards/builtin.h"
#include "thinkvg/core/error.h"

namespace thinkvg::rewards {
namespace {

constexpr std::string_view kProgramPrefix = "program:";

using Entry = std::pair<std::string, RewardFactory>;

// A new reward: a source file with its class and factory, one line here, a table test.
struct Registry {
  std::mutex mutex;
  std::vector<Entry> rewards = {
      {"answer", make_answer_reward},
      {"grounding", make_grounding_reward},
      {"format", make_format_reward},
      {"region", make_region_reward},
      {"think_grounding", make_think_grounding_reward},
      {"consistency", make_consistency_reward},
      {"length", make_length_reward},
      {"cosine", make_cosine_reward},
      {"repetition", make_repetition_reward},
      {"judge", make_judge_reward},
  };
};

Registry& registry() {
  static Registry known;
  return known;
}

RewardFactory find_factory(const std::string& name) {
  Registry& known = registry();
  const std::lock_guard lock(known.mutex);
  for (const auto& [reward, factory] : known.rewards)
    if (reward == name) return factory;
  return nullptr;
}

struct WeightedName {
  std::string name;
  double weight = 1;
};

// "program:./score --mode=fast=0.5": what follows the last "=" is the weight, if it is a number; a built-in name must
// be followed by one.
WeightedName parse_weighted_name(const std::string& text) {
  const std::size_t equals = text.rfind('=');
  if (equals == std::string::npos) return {text, 1};
  double weight = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data() + equals + 1, end, weight);
  if (error != std::errc() || stop != end || !std::isfinite(weight)) {
    if (text.starts_with(kProgramPrefix)) return {text, 1};
    throw_invalid("rewards: '{}' must be name or name=weight", text);
  }
  return {text.substr(0, equals), weight};
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

}  // namespace

std::vector<RewardScore> Reward::score_batch(std::span<const RewardInput> inputs) {
  std::vector<RewardScore> scores;
  scores.reserve(inputs.size());
  for (const RewardInput& input : inputs) scores.push_back(score(input));
  return scores;
}

void register_reward(const std::string& name, RewardFactory factory) {
  if (name.empty() || name.find_first_of(":=, \t\n") != std::string::npos)
    throw_invalid("a reward's name must be a word without any of ':=,', but is '{}'", name);
  if (!factory) throw_invalid("the reward '{}' needs a factory", name);
  Registry& known = registry();
  const std::lock_guard lock(known.mutex);
  for (const auto& [reward, unused] : known.rewards)
    if (reward == name) throw_invalid("there is a reward '{}' already; choose another name", name);
  known.rewards.emplace_back(name, std::move(factory));
}

std::vector<std::string> reward_names() {
  Registry& known = registry();
  const std::lock_guard lock(known.mutex);
  std::vector<std::string> names;
  for (const auto& [name, factory] : known.rewards) names.push_back(name);
  return names;
}

const std::vector<std::string>& default_rewards() {
  static const std::vector<std::string> rewards = {"answer=1", "grounding=1", "format=1"};
  return rewards;
}

std::unique_ptr<Reward> make_reward(const std::string& name, const RewardOptions& options,
                                    const RewardResources& resources) {
  if (name.starts_with(kProgramPrefix)) return make_program_reward(name.substr(kProgramPrefix.size()), options);
  if (const RewardFactory factory = find_factory(name)) {
    std::unique_ptr<Reward> reward = factory(options, resources);
    if (reward == nullptr) throw_invalid("the factory of the reward '{}' made none", name);
    return reward;
  }
  const std::vector<std::string> known = reward_names();
  const std::string near = nearest_name(name, known);
  throw_invalid("unknown reward '{}'{}; known are: {}, program:COMMAND", name,
                near.empty() ? "" : ", did you mean '" + near + "'?", fmt::join(known, ", "));
}

RewardSet::RewardSet(const std::vector<std::string>& weighted_names, const RewardOptions& options,
                     const RewardResources& given) {
  if (weighted_names.empty()) throw_invalid("rewards is empty; give at least one, such as grounding=1");
  for (const std::string& text : weighted_names) {
    const WeightedName entry = parse_weighted_name(text);
    rewards_.push_back(make_reward(entry.name, options, given));
    weights_.push_back(entry.weight);
    const std::string name = rewards_.back()->name();
    if (std::find(names_.begin(), names_.end(), name) != names_.end())
      throw_invalid("rewards: two of them are called '{}'; each may stand once", name);
    names_.push_back(name);
  }
}

std::vector<CompletionReward> RewardSet::score(std::span<const RewardInput> inputs) {
  std::vector<CompletionReward> results(inputs.size());
  if (inputs.empty()) return results;
  for (std::size_t k = 0; k < rewards_.size(); ++k) {
    std::vector<RewardScore> scores = rewards_[k]->score_batch(inputs);
    if (scores.size() != inputs.size())
      throw_failure("the reward '{}' gave {} scores for {} completions", names_[k], scores.size(), inputs.size());
    for (std::size_t i = 0; i < scores.size(); ++i) {
      if (!std::isfinite(scores[i].value))
        throw_failure("the reward '{}' gave the value {} for a completion of '{}'; it must be finite", names_[k],
                      scores[i].value, inputs[i].sample.id);
      if (scores[i].applicable) {
        results[i].total += weights_[k] * scores[i].value;
        results[i].applicable = true;
      }
      results[i].scores.push_back(std::move(scores[i]));
    }
  }
  return results;
}

std::string reason_pattern(std::string_view reason) {
  std::string pattern;
  const auto in_word = [&](std::size_t i) { return is_letter(reason[i]) || is_digit(reason[i]); };
  for (std::size_t i = 0; i < reason.size();) {
    const char c = reason[i];
    const bool word_before = i > 0 && in_word(i - 1);
    if (c == '\'' && !word_before) {
      const std::size_t end = reason.find('\'', i + 1);
      if (end != std::string_view::npos) {
        pattern += "'#'";
        i = end + 1;
        continue;
      }
    }
    if (c == '[') {
      const std::size_t end = reason.find(']', i);
      pattern += "[#]";
      i = end == std::string_view::npos ? reason.size() : end + 1;
      continue;
    }
    if (is_digit(c) && !word_before) {
      while (i < reason.size() && (is_digit(reason[i]) || reason[i] == '.' || reason[i] == 'e')) ++i;
      if (reason[i - 1] == '.') --i;  // a full stop
      pattern += '#';
      continue;
    }
    // Option letters: one to eight capitals that are a word ("A", "AC"); "IoU" and "F1" are none.
    if (c >= 'A' && c <= 'H' && !word_before) {
      std::size_t end = i;
      while (end < reason.size() && reason[end] >= 'A' && reason[end] <= 'H') ++end;
      if (end == reason.size() || !in_word(end)) {
        pattern += '#';
        i = end;
        continue;
      }
    }
    pattern += c;
    ++i;
  }
  return pattern;
}

}  // namespace thinkvg::rewards
