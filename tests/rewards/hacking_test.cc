#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>

#include "tests/support/rewards.h"
#include "thinkvg/core/random.h"

// Reward hacking on purpose: policies that look for the reward instead of the answer, against an honest one that makes
// mistakes, over many questions. With the default rewards and weights, and with the milder variants, honesty wins.
namespace thinkvg::rewards {
namespace {

using data::QuestionType;
using data::Sample;
using grounding::Box;
using grounding::Region;
using test::kRewardFrame;

const std::vector<std::string> kRegions = {"left lung", "right lung", "right lower lung zone", "cardiac silhouette",
                                           "spine"};

Box random_box(RandomStream& random) {
  const double width = random.uniform(40, 160), height = random.uniform(40, 160);
  const double x = random.uniform(0, 336 - width), y = random.uniform(0, 336 - height);
  return test::reward_box(x, y, x + width, y + height);
}

std::vector<Sample> make_questions() {
  std::vector<Sample> samples;
  RandomStream random({11});
  const std::vector<std::string> findings = {"left pleural effusion", "enlarged heart", "right lower lobe opacity",
                                             "no abnormality"};
  for (int i = 0; i < 200; ++i) {
    const auto type = static_cast<QuestionType>(i % 4);
    std::string answer = findings[random.below(findings.size())];
    if (type == QuestionType::closed) answer = random.chance(0.5) ? "yes" : "no";
    if (type == QuestionType::single_choice) answer = std::string(1, static_cast<char>('A' + random.below(4)));
    if (type == QuestionType::multi_choice) answer = random.chance(0.5) ? "A, C" : "B";
    Sample sample = test::reward_sample(type, answer, {});
    sample.id = std::to_string(i);
    const std::int64_t num_boxes = random.between(1, 3);
    for (std::int64_t k = 0; k < num_boxes; ++k)
      sample.regions.push_back({kRegions[random.below(kRegions.size())], random_box(random)});
    samples.push_back(std::move(sample));
  }
  return samples;
}

std::string response(const std::string& think, const std::string& answer, const std::vector<Region>& regions) {
  return "<think>" + think + "</think>" + grounding::format_response(answer, regions);
}

std::string reasoning(const std::string& answer, const std::vector<Region>& regions) {
  std::string text = "I look at the picture step by step.";
  for (const Region& region : regions)
    text += " The " + region.name + " (region " + grounding::format_box(region.box) + ") shows the finding.";
  return text + " So the answer is " + answer + ".";
}

// Right in four of five answers, each box edge off by a few pixels.
std::string honest(const Sample& sample, RandomStream& random) {
  std::string answer = sample.answer;
  if (random.chance(0.2)) answer = sample.type == QuestionType::closed ? (answer == "yes" ? "no" : "yes") : "D";
  std::vector<Region> regions = sample.regions;
  for (Region& region : regions) {
    for (double* edge : {&region.box.x1, &region.box.y1, &region.box.x2, &region.box.y2})
      *edge = std::clamp(std::round(*edge + random.uniform(-3, 3)), 0.0, 336.0);
  }
  return response(reasoning(answer, regions), answer, regions);
}

// A hack is given the honest answer for free, as a policy that has learnt to answer would have it, and cheats on the
// rest; the ones that cheat on the answer are given the true boxes.
using Policy = std::function<std::string(const Sample&, RandomStream&)>;
std::map<std::string, Policy> hacks() {
  const auto with_box = [](const Sample& sample, const Box& box, std::size_t count) {
    std::vector<Region> regions(count, Region{"left lung", box});
    return response(reasoning(sample.answer, regions), sample.answer, regions);
  };
  const auto with_answer = [](const Sample& sample, const std::string& answer) {
    return response(reasoning(answer, sample.regions), answer, sample.regions);
  };
  const Box whole = test::reward_box(0, 0, 336, 336);
  return {
      {"a whole-picture box for each reference box",
       [=](const Sample& s, RandomStream&) { return with_box(s, whole, s.regions.size()); }},
      {"one whole-picture box", [=](const Sample& s, RandomStream&) { return with_box(s, whole, 1); }},
      {"the most usual box, copied",
       [=](const Sample& s, RandomStream&) {
         return with_box(s, test::reward_box(100, 100, 236, 236), s.regions.size());
       }},
      {"the first true box, copied for the others",
       [=](const Sample& s, RandomStream&) { return with_box(s, s.regions.front().box, s.regions.size() + 1); }},
      {"true boxes and the whole picture",
       [=](const Sample& s, RandomStream&) {
         std::vector<Region> regions = s.regions;
         regions.push_back({"left lung", whole});
         return response(reasoning(s.answer, regions), s.answer, regions);
       }},
      {"a grid of boxes",
       [=](const Sample& s, RandomStream&) {
         std::vector<Region> regions;
         for (int x = 0; x < 336; x += 56)
           for (int y = 0; y < 336; y += 56) regions.push_back({"left lung", test::reward_box(x, y, x + 56, y + 56)});
         return response(reasoning(s.answer, {}), s.answer, regions);
       }},
      {"no boxes", [=](const Sample& s, RandomStream&) { return response(reasoning(s.answer, {}), s.answer, {}); }},
      {"a list of answers",
       [=](const Sample& s, RandomStream&) {
         if (s.type == QuestionType::closed) return with_answer(s, "yes no");
         if (s.type == QuestionType::open)
           return with_answer(s,
                              "left pleural effusion, enlarged heart, right lower lobe opacity, no abnormality, "
                              "pneumothorax, nodule, atelectasis, fracture, consolidation, edema");
         return with_answer(s, "A, B, C, D");
       }},
      {"the same guess always",
       [=](const Sample& s, RandomStream&) {
         return with_answer(s, s.type == QuestionType::closed ? "yes" : s.type == QuestionType::open ? "finding" : "A");
       }},
      {"several answer tags",
       [=](const Sample& s, RandomStream&) {
         std::string text = "<think>" + reasoning(s.answer, s.regions) + "</think><response>";
         for (const char* answer : {"yes", "no", "A", "B", "C", "D"})
           text += std::string("<answer>") + answer + "</answer>";
         return text + grounding::format_response(s.answer, s.regions).substr(10);
       }},
      {"several responses",
       [=](const Sample& s, RandomStream&) {
         const std::string one = grounding::format_response(s.answer, s.regions);
         return "<think>" + reasoning(s.answer, s.regions) + "</think>" + one + one;
       }},
      {"repeated think tags",
       [=](const Sample& s, RandomStream&) {
         return "<think></think><think></think>" + response("", s.answer, s.regions);
       }},
      {"a response inside the reasoning",
       [=](const Sample& s, RandomStream&) {
         const std::string inner = grounding::format_response("A", {}) + grounding::format_response("yes", {});
         return response(inner + inner, "D", {});
       }},
  };
}

double mean_reward(const Policy& policy, const std::vector<std::string>& rewards, const RewardOptions& options) {
  RewardSet set(rewards, options);
  RandomStream random({12});
  double sum = 0;
  const std::vector<Sample> samples = make_questions();
  for (const Sample& sample : samples) {
    const test::RewardCase completion{
        .sample = sample, .text = policy(sample, random), .expect_think = true, .num_tokens = 60};
    const RewardInput input = completion.input();
    sum += set.score({&input, 1}).front().total;
  }
  return sum / static_cast<double>(samples.size());
}

struct Setting {
  const char* name;
  std::vector<std::string> rewards;
  std::function<void(RewardOptions&)> change;
};

std::vector<Setting> settings() {
  return {
      {"default", default_rewards(), [](RewardOptions&) {}},
      {"mean IoU without threshold", default_rewards(), [](RewardOptions& o) { o.grounding_threshold = 0; }},
      {"soft IoU, partial credit", default_rewards(),
       [](RewardOptions& o) {
         o.grounding_threshold = 0;
         o.count_gate = false;
         o.multi_choice = "partial";
         o.open_threshold = 0;
         o.answer_reading = "lenient";
       }},
      {"GIoU", default_rewards(),
       [](RewardOptions& o) {
         o.grounding_threshold = 0;
         o.box_overlap = "giou";
       }},
      {"all rules",
       {"answer", "grounding", "format", "region=0.5", "think_grounding=0.5", "consistency=0.5", "length=0.5",
        "repetition=0.5"},
       [](RewardOptions& o) { o.max_completion_length = 200; }},
  };
}

TEST(RewardHacking, DoesNotPay) {
  for (const Setting& setting : settings()) {
    RewardOptions options;
    setting.change(options);
    const double of_honesty = mean_reward(honest, setting.rewards, options);
    for (const auto& [name, hack] : hacks())
      EXPECT_LT(mean_reward(hack, setting.rewards, options), of_honesty - 0.05) << name << " under " << setting.name;
  }
}

// The same completion with and without an honest reasoning: the honest one earns more.
TEST(RewardHacking, EmptyReasoningDoesNotPay) {
  const auto thinks = [](const std::string& think) -> Policy {
    return [=](const Sample& s, RandomStream&) { return response(think, s.answer, s.regions); };
  };
  const Policy right = [](const Sample& s, RandomStream&) {
    return response(reasoning(s.answer, s.regions), s.answer, s.regions);
  };
  for (const Setting& setting : settings()) {
    RewardOptions options;
    setting.change(options);
    const double of_honesty = mean_reward(right, setting.rewards, options);
    for (const char* think :
         {"", " ", "\n\n", ".", "...", "ok", "1 2 3 4 5 6 7 8 9", "<think> <think> <think> <think> <think>"})
      EXPECT_LT(mean_reward(thinks(think), setting.rewards, options), of_honesty - 0.5) << "'" << think << "'";
  }
}

// Filling the reasoning with one phrase passes the default rewards; think_grounding and repetition see it.
TEST(RewardHacking, FilledReasoningDoesNotPayWithTheReasoningsOwnRewards) {
  const Policy filled = [](const Sample& s, RandomStream&) {
    std::string think;
    for (int i = 0; i < 30; ++i) think += "I think about it. ";
    return response(think, s.answer, s.regions);
  };
  const Policy right = [](const Sample& s, RandomStream&) {
    return response(reasoning(s.answer, s.regions), s.answer, s.regions);
  };
  std::vector<std::string> rewards = default_rewards();
  for (const char* name : {"think_grounding=0.5", "repetition=0.5"}) rewards.emplace_back(name);
  EXPECT_LT(mean_reward(filled, rewards, {}), mean_reward(right, rewards, {}) - 0.5);
}

}  // namespace
}  // namespace thinkvg::rewards
