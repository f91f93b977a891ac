#include <algorithm>
#include <array>
#include <optional>
#include <set>
#include <utility>

#include "rewards/builtin.h"
#include "thinkvg/core/error.h"
#include "thinkvg/grounding/answer.h"

namespace thinkvg::rewards {
namespace {

using data::QuestionType;
using grounding::AnswerReading;
using grounding::Region;

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return out;
}

std::string_view trim(std::string_view text) {
  constexpr std::string_view kSpaces = " \t\r\n\f\v";
  const std::size_t begin = text.find_first_not_of(kSpaces);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kSpaces) - begin + 1);
}

class ThinkGroundingReward final : public Reward {
 public:
  explicit ThinkGroundingReward(const RewardOptions& options) : agreement_(options.think_agreement) {
    check_share("think_agreement", agreement_);
  }

  std::string name() const override { return "think_grounding"; }

  RewardScore score(const RewardInput& input) override {
    if (!input.sample.think.empty()) {
      const auto reference = grounding::parse_response("<think>" + input.sample.think + "</think>", input.sample.frame);
      if (reference.think_regions.empty()) return not_applicable("the reference's reasoning points at no region");
    }
    if (!input.parsed.complete) return zero_incomplete(input);
    if (!input.parsed.has_think) return not_applicable("there is no reasoning");
    const std::size_t num_items = input.parsed.think_regions.size() + input.parsed.bad_think_boxes.size();
    if (num_items == 0) {
      if (input.parsed.regions.empty()) return not_applicable("neither reasoning nor answer points at a region");
      return zero("the reasoning points at no region");
    }
    std::set<std::string> known;  // names of the reference, which need not be among the usual ones
    for (const Region& region : input.sample.regions) known.insert(grounding::normalize_region_name(region.name));
    std::size_t num_sound = 0;
    std::string problem;
    for (const Region& region : input.parsed.think_regions) {
      std::string why = fault(input, region, known);
      if (why.empty()) {
        ++num_sound;
      } else {
        problem = std::move(why);
      }
    }
    if (!input.parsed.bad_think_boxes.empty()) problem = "no box: " + input.parsed.bad_think_boxes.front();
    const double value = static_cast<double>(num_sound) / static_cast<double>(num_items);
    if (problem.empty()) return scored(value, fmt::format("all {} regions of the reasoning are sound", num_items));
    return scored(value, std::move(problem));
  }

 private:
  // What is wrong with a region of the reasoning; empty if nothing is.
  std::string fault(const RewardInput& input, const Region& region, const std::set<std::string>& known) const {
    const std::string name = grounding::normalize_region_name(region.name);
    if (name.empty()) return "a box without a region's name";
    if (!grounding::is_region_name(name) && !known.contains(name))
      return fmt::format("no region is called '{:.60}'", name);
    const PlacedBox placed = place_box(input, region.box);
    if (!placed.problem.empty()) return placed.problem;
    std::optional<double> best;
    for (const Region& answered : input.parsed.regions) {
      if (grounding::normalize_region_name(answered.name) != name) continue;
      const PlacedBox other = place_box(input, answered.box);
      best = std::max(best.value_or(0), other.problem.empty() ? grounding::iou(placed.box, other.box) : 0.0);
    }
    if (best && *best < agreement_)
      return fmt::format("reasoning and answer place '{:.60}' apart: IoU {:.2f}", name, *best);
    return "";
  }

  double agreement_;
};

// What a reasoning concludes with, as text: behind its last "answer is" and the like, else its last sentence.
struct Conclusion {
  std::string_view text;
  bool announced = false;  // by "the answer is"
};

Conclusion find_conclusion(std::string_view think) {
  const std::string small = lower(think);
  std::size_t best = std::string::npos;
  for (const std::string_view lead : {"answer is", "answers are", "answer:", "answers:", "answer should be",
                                      "correct option is", "correct options are", "correct choice is"}) {
    const std::size_t found = small.rfind(lead);
    if (found == std::string::npos) continue;
    const std::size_t end = found + lead.size();
    if (best == std::string::npos || end > best) best = end;
  }
  if (best != std::string::npos) return {trim(think.substr(best)), true};
  // A full stop ends a sentence where a space and a capital follow, or the text ends.
  std::string_view body = trim(think);
  while (!body.empty() && (body.back() == '.' || body.back() == '!')) body.remove_suffix(1);
  std::size_t begin = 0;
  for (std::size_t i = 0; i + 2 < body.size(); ++i) {
    const bool stop = body[i] == '.' || body[i] == '!' || body[i] == ';' || body[i] == '\n';
    if (stop && (body[i] == '\n' || body[i + 1] == ' ' || body[i + 1] == '\n')) begin = i + 1;
  }
  return {trim(body.substr(begin)), false};
}

// The first sentence of what follows "the answer is".
std::string_view first_sentence(std::string_view text) {
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\n' || text[i] == ';') return text.substr(0, i);
    if (text[i] == '.' && (i + 1 == text.size() || text[i + 1] == ' ' || text[i + 1] == '\n')) return text.substr(0, i);
  }
  return text;
}

std::string_view without_lead_word(std::string_view sentence) {
  for (bool again = true; again;) {
    again = false;
    for (const std::string_view lead :
         {"so", "therefore", "thus", "hence", "overall", "in conclusion", "in summary", "finally", "consequently"}) {
      if (sentence.size() <= lead.size() || lower(sentence.substr(0, lead.size())) != lead) continue;
      if (sentence[lead.size()] != ' ' && sentence[lead.size()] != ',') continue;
      sentence = trim(sentence.substr(lead.size() + 1));
      again = true;
    }
  }
  return sentence;
}

bool has_negation(const std::string& normalized) {
  const std::string padded = " " + normalized + " ";
  for (const char* word : {" no ", " not ", " without ", " neither ", " nor ", " none ", " rather than ", " absent "})
    if (padded.find(word) != std::string::npos) return true;
  return false;
}

// Letters of the options whose own text the sentence holds; nothing where a negation leaves it open.
std::optional<std::string> letters_by_text(std::string_view sentence, const std::vector<std::string>& choices) {
  std::string padded = " " + grounding::normalize_text(sentence) + " ";
  std::vector<std::pair<std::string, char>> options;  // longest text first, so that a part of one is none
  for (const std::string& choice : choices) {
    const std::size_t colon = choice.find(':');
    if (colon == std::string::npos || colon == 0) continue;
    const std::string text = grounding::normalize_text(choice.substr(colon + 1));
    if (!text.empty()) options.emplace_back(text, choice[colon - 1]);
  }
  std::stable_sort(options.begin(), options.end(),
                   [](const auto& a, const auto& b) { return a.first.size() > b.first.size(); });
  std::string letters;
  for (const auto& [text, letter] : options) {
    const std::string wanted = " " + text + " ";
    bool found = false;
    for (std::size_t at = padded.find(wanted); at != std::string::npos; at = padded.find(wanted)) {
      found = true;
      padded.replace(at, wanted.size(), " | ");
    }
    if (found) letters += letter;
  }
  if (letters.empty() || has_negation(padded)) return std::nullopt;
  std::sort(letters.begin(), letters.end());
  return letters;
}

class ConsistencyReward final : public Reward {
 public:
  std::string name() const override { return "consistency"; }

  RewardScore score(const RewardInput& input) override {
    if (!input.parsed.complete) return zero_incomplete(input);
    if (!input.parsed.has_think) return not_applicable("there is no reasoning");
    const Conclusion conclusion = find_conclusion(input.parsed.think);
    switch (input.sample.type) {
      case QuestionType::closed:
        return score_yes_no(input, conclusion);
      case QuestionType::single_choice:
      case QuestionType::multi_choice:
        return score_letters(input, conclusion);
      case QuestionType::open:
        return score_text(input, conclusion);
    }
    return not_applicable("unknown question type");
  }

 private:
  static RewardScore no_conclusion() { return not_applicable("the reasoning states no conclusion"); }

  static RewardScore compare(const std::string& concluded, const std::string& answered) {
    if (concluded == answered) return scored(1, "the answer is the reasoning's conclusion");
    return zero(fmt::format("the reasoning concludes '{:.60}', the answer is '{:.60}'", concluded, answered));
  }

  static RewardScore score_yes_no(const RewardInput& input, const Conclusion& conclusion) {
    const std::string_view text = without_lead_word(conclusion.text);
    std::optional<bool> concluded = grounding::read_yes_no(text, AnswerReading::lenient);
    // "No pneumothorax is seen" speaks of the picture; only after "the answer is", or alone, is a "no" the conclusion.
    if (!conclusion.announced && !grounding::read_yes_no(text, AnswerReading::strict) &&
        text.find(',') == std::string_view::npos)
      concluded = std::nullopt;
    if (!concluded) return no_conclusion();
    const auto answered = grounding::read_yes_no(input.parsed.answer, AnswerReading::lenient);
    const auto word = [](bool yes) { return yes ? "yes" : "no"; };
    return compare(word(*concluded), answered ? word(*answered) : input.parsed.answer);
  }

  static RewardScore score_letters(const RewardInput& input, const Conclusion& conclusion) {
    const auto& choices = input.sample.choices;
    std::optional<std::string> concluded;
    if (conclusion.announced) {
      // A label's text may hold full stops: the whole rest first, then its first sentence.
      for (const std::string_view text : {conclusion.text, first_sentence(conclusion.text)}) {
        concluded = grounding::read_option_letters(text, AnswerReading::lenient, choices);
        if (concluded) break;
      }
      if (!concluded) concluded = letters_by_text(first_sentence(conclusion.text), choices);
    } else {
      concluded = letters_by_text(without_lead_word(conclusion.text), choices);
    }
    if (!concluded) return no_conclusion();
    const auto answered = grounding::read_option_letters(input.parsed.answer, AnswerReading::lenient, choices);
    return compare(*concluded, answered.value_or(input.parsed.answer));
  }

  static RewardScore score_text(const RewardInput& input, const Conclusion& conclusion) {
    if (!conclusion.announced) return no_conclusion();
    const std::string_view text = first_sentence(conclusion.text);
    if (grounding::token_f1(text, input.parsed.answer) >= 0.5)
      return scored(1, "the answer is the reasoning's conclusion");
    return zero(fmt::format("the reasoning concludes '{:.60}', the answer is '{:.60}'", text, input.parsed.answer));
  }
};

}  // namespace

std::unique_ptr<Reward> make_think_grounding_reward(const RewardOptions& options, const RewardResources&) {
  return std::make_unique<ThinkGroundingReward>(options);
}

std::unique_ptr<Reward> make_consistency_reward(const RewardOptions&, const RewardResources&) {
  return std::make_unique<ConsistencyReward>();
}

}  // namespace thinkvg::rewards
