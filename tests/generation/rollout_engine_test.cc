#include "thinkvg/generation/rollout_engine.h"

#include <ATen/ATen.h>

#include <cmath>
#include <map>
#include <numeric>
#include <optional>

#include "tests/generation/questions.h"
#include "thinkvg/core/random.h"
#include "thinkvg/nn/exact.h"
#include "thinkvg/nn/head_stats.h"

namespace thinkvg::generation {
namespace {

class RolloutEngineTest : public QuestionsTest {
 protected:
  // Log-probabilities of a completion by one full forward pass over prompt and completion.
  std::vector<float> recomputed(const Question& question, const std::vector<std::int64_t>& completion,
                                double temperature) const {
    const at::NoGradGuard no_grad;
    std::vector<std::int64_t> ids = question.prompt.ids;
    ids.insert(ids.end(), completion.begin(), completion.end());
    models::PackBuilder packer;
    packer.add({ids,
                bundle_.model->token_positions(ids, question.grids).positions,
                question.prompt.image_rows,
                {question.features},
                -1});
    const models::Pack pack = packer.build(at::kCPU);
    nn::PackedAttention attention(pack.layout);
    at::Tensor logits = bundle_.model->logits(models::run_pack(*bundle_.model, pack, attention)) / temperature;
    for (const std::int64_t id : models::banned_ids(bundle_.model->special_tokens()))
      logits.select(1, id).fill_(-std::numeric_limits<float>::infinity());
    const at::Tensor log_probs = logits.log_softmax(-1);
    std::vector<float> values;
    for (std::size_t t = 0; t < completion.size(); ++t)
      values.push_back(
          log_probs[static_cast<std::int64_t>(question.prompt.ids.size() + t) - 1][completion[t]].item<float>());
    return values;
  }

  // Log-probabilities as the trainers compute them: prompt and completions in one pack with a shared prefix, statistics
  // out of the head; with gradients.
  std::vector<std::vector<float>> trainer_log_probs(std::size_t index,
                                                    const std::vector<std::vector<std::int64_t>>& completions,
                                                    double temperature, bool exact_mode) const {
    std::optional<nn::ExactForward> exact;
    if (exact_mode) exact.emplace();
    const Question& question = questions_[index];
    const std::int64_t prompt_length = std::ssize(question.prompt.ids);
    models::PackBuilder packer;
    packer.add(
        {question.prompt.ids, question.positions.positions, question.prompt.image_rows, {question.features}, -1});
    std::vector<std::int64_t> rows, targets;
    for (const auto& ids : completions) {
      const std::int64_t begin =
          packer.add({ids, models::text_positions(question.positions.next, std::ssize(ids)), {}, {}, 0});
      for (std::int64_t t = 0; t < std::ssize(ids); ++t) {
        rows.push_back(t == 0 ? prompt_length - 1 : begin + t - 1);
        targets.push_back(ids[static_cast<std::size_t>(t)]);
      }
    }
    const models::Pack pack = packer.build(at::kCPU);
    nn::PackedAttention attention(pack.layout);
    const at::Tensor hidden = models::run_pack(*bundle_.model, pack, attention);
    const auto stats =
        nn::head_token_stats(hidden.index_select(0, at::tensor(rows, at::kLong)), bundle_.model->output_weight(),
                             at::tensor(targets, at::kLong),
                             {.temperature = temperature,
                              .banned = at::tensor(models::banned_ids(bundle_.model->special_tokens()), at::kLong)});
    std::vector<std::vector<float>> values;
    std::int64_t row = 0;
    for (const auto& ids : completions) {
      const float* from = stats.logprob.const_data_ptr<float>() + row;
      values.emplace_back(from, from + ids.size());
      row += std::ssize(ids);
    }
    return values;
  }
};

TEST_F(RolloutEngineTest, ReportsTheLogProbsOfAFullPass) {
  RolloutEngine engine(*bundle_.model, {5});
  for (const double temperature : {1.0, 0.7}) {
    const auto results = engine.generate(requests(3), {24, temperature, 0, 1.0});
    for (std::size_t i = 0; i < results.size(); ++i) {
      for (const Completion& completion : results[i]) {
        const auto expected = recomputed(questions_[i], completion.ids, temperature);
        ASSERT_EQ(completion.logprobs.size(), expected.size());
        for (std::size_t t = 0; t < expected.size(); ++t) EXPECT_NEAR(completion.logprobs[t], expected[t], 2e-5);
      }
    }
  }
}

TEST_F(RolloutEngineTest, GreedyTakesTheLikeliestTokenOfAFullPass) {
  RolloutEngine engine(*bundle_.model, {4});
  const auto results = engine.generate(requests(1), {16, 0.0, 0, 1.0});
  for (std::size_t i = 0; i < results.size(); ++i) {
    const Completion& completion = results[i].front();
    for (std::size_t t = 0; t < completion.ids.size(); ++t) {
      std::vector<std::int64_t> before(completion.ids.begin(), completion.ids.begin() + static_cast<std::ptrdiff_t>(t));
      float best = -1e9f;
      before.push_back(0);
      for (std::int64_t id = 0; id < bundle_.model->vocab_size(); id += 37) {
        before.back() = id;
        best = std::max(best, recomputed(questions_[i], before, 1.0).back());
      }
      EXPECT_GE(completion.logprobs[t] + 1e-5, best);
    }
  }
}

TEST_F(RolloutEngineTest, CompletionsDoNotDependOnTheirNeighbours) {
  RolloutEngine wide(*bundle_.model, {64});
  RolloutEngine narrow(*bundle_.model, {2});
  const SamplingOptions sampling{20, 1.0, 0, 1.0};
  const auto all = wide.generate(requests(4), sampling);
  const auto few = narrow.generate(requests(4), sampling);
  const auto alone = wide.generate({requests(4)[3]}, sampling);
  for (std::size_t i = 0; i < all.size(); ++i)
    for (std::size_t g = 0; g < 4; ++g) EXPECT_EQ(all[i][g].ids, few[i][g].ids);
  for (std::size_t g = 0; g < 4; ++g) EXPECT_EQ(all[3][g].ids, alone[0][g].ids);
  EXPECT_NE(all[0][0].ids, all[0][1].ids);
}

TEST_F(RolloutEngineTest, NeverDrawsBannedIdsAndStopsAtTheEnd) {
  RolloutEngine engine(*bundle_.model, {});
  const auto results = engine.generate(requests(8), {64, 1.5, 0, 1.0});
  const auto banned = models::banned_ids(bundle_.model->special_tokens());
  const auto& ends = bundle_.model->special_tokens().end;
  ASSERT_FALSE(banned.empty());
  int num_stopped = 0;
  for (const auto& group : results) {
    for (const Completion& completion : group) {
      for (std::size_t t = 0; t < completion.ids.size(); ++t) {
        EXPECT_EQ(std::count(banned.begin(), banned.end(), completion.ids[t]), 0);
        const bool is_end = std::count(ends.begin(), ends.end(), completion.ids[t]) > 0;
        EXPECT_EQ(is_end, completion.finish == FinishReason::stop && t + 1 == completion.ids.size());
      }
      EXPECT_LE(completion.ids.size(), 64u);
      if (completion.finish == FinishReason::length) EXPECT_EQ(completion.ids.size(), 64u);
      num_stopped += completion.finish == FinishReason::stop;
    }
  }
  EXPECT_GT(num_stopped, 0);
}

TEST_F(RolloutEngineTest, TopKOfOneIsGreedy) {
  RolloutEngine engine(*bundle_.model, {});
  const auto greedy = engine.generate(requests(1), {12, 0.0, 0, 1.0});
  const auto top_one = engine.generate(requests(1), {12, 1.0, 1, 1.0});
  const auto tiny_mass = engine.generate(requests(1), {12, 1.0, 0, 1e-6});
  for (std::size_t i = 0; i < greedy.size(); ++i) {
    EXPECT_EQ(greedy[i][0].ids, top_one[i][0].ids);
    EXPECT_EQ(greedy[i][0].ids, tiny_mass[i][0].ids);
  }
}

TEST_F(RolloutEngineTest, SamplesFollowTheDistribution) {
  RolloutEngine engine(*bundle_.model, {256});
  auto request = requests(2000)[0];
  const auto results = engine.generate({request}, {1, 1.0, 0, 1.0});
  std::map<std::int64_t, int> counts;
  std::map<std::int64_t, double> probability;
  for (const Completion& completion : results[0]) {
    ++counts[completion.ids[0]];
    probability[completion.ids[0]] = std::exp(completion.logprobs[0]);
  }
  for (const auto& [id, p] : probability)
    EXPECT_NEAR(counts[id] / 2000.0, p, 4.5 * std::sqrt(p * (1 - p) / 2000.0) + 1e-3) << id;
}

TEST_F(RolloutEngineTest, WrongSettingsNameThemselves) {
  RolloutEngine engine(*bundle_.model, {});
  for (const SamplingOptions& sampling : {SamplingOptions{0, 1.0, 0, 1.0}, SamplingOptions{1, -1.0, 0, 1.0},
                                          SamplingOptions{1, 1.0, -1, 1.0}, SamplingOptions{1, 1.0, 0, 0.0}})
    EXPECT_THROW(engine.generate(requests(1), sampling), std::invalid_argument);
  EXPECT_THROW(RolloutEngine(*bundle_.model, {0}), std::invalid_argument);
}

TEST_F(RolloutEngineTest, QuantizedWeightsGiveNearbyLogProbs) {
  const SamplingOptions sampling{.max_new_tokens = 24};
  const auto plain = RolloutEngine(*bundle_.model, {}).generate(requests(3), sampling);
  // The mean difference of a token's log-probability; that of a tiny model of random weights.
  const std::pair<const char*, double> kinds[] = {{"int8", 0.05}, {"int4", 0.4}};
  double before = 0;
  for (const auto& [name, bound] : kinds) {
    const auto results = RolloutEngine(*bundle_.model, {.quantization = name}).generate(requests(3), sampling);
    double difference = 0;
    std::int64_t count = 0;
    for (std::size_t i = 0; i < results.size(); ++i)
      for (const Completion& completion : results[i]) {
        const auto expected = recomputed(questions_[i], completion.ids, 1.0);
        for (std::size_t t = 0; t < expected.size(); ++t, ++count)
          difference += std::abs(completion.logprobs[t] - expected[t]);
      }
    difference /= static_cast<double>(count);
    EXPECT_LT(difference, bound) << name;
    EXPECT_GT(difference, 2 * before + 1e-5) << name;
    before = difference;
  }
  // The model is what it was.
  const auto after = RolloutEngine(*bundle_.model, {}).generate(requests(3), sampling);
  for (std::size_t i = 0; i < plain.size(); ++i)
    for (std::size_t g = 0; g < plain[i].size(); ++g) {
      EXPECT_EQ(after[i][g].ids, plain[i][g].ids);
      EXPECT_EQ(after[i][g].logprobs, plain[i][g].logprobs);
    }
}

TEST_F(RolloutEngineTest, QuantizedCompletionsDoNotDependOnTheirNeighbours) {
  const SamplingOptions sampling{.max_new_tokens = 20};
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    bundle_.model->to(type);
    for (const char* name : {"int8", "int4"}) {
      const auto complete = [&](std::int64_t max_rows, const std::vector<GenerationRequest>& some) {
        return RolloutEngine(*bundle_.model, {.max_rows = max_rows, .prefix_cache = false, .quantization = name})
            .generate(some, sampling);
      };
      const auto all = complete(64, requests(4)), few = complete(2, requests(4)), again = complete(64, requests(4));
      const auto alone = complete(64, {requests(4)[3]});
      for (std::size_t i = 0; i < all.size(); ++i)
        for (std::size_t g = 0; g < 4; ++g) {
          EXPECT_EQ(all[i][g].ids, few[i][g].ids) << name;
          EXPECT_EQ(all[i][g].logprobs, few[i][g].logprobs) << name;
          EXPECT_EQ(all[i][g].logprobs, again[i][g].logprobs) << name;
        }
      for (std::size_t g = 0; g < 4; ++g) EXPECT_EQ(all[3][g].logprobs, alone[0][g].logprobs) << name;
    }
  }
}

TEST_F(RolloutEngineTest, QuantizationIsRefusedWhereItMakesNoSense) {
  const auto message_of = [&](const EngineOptions& options) {
    try {
      RolloutEngine engine(*bundle_.model, options);
    } catch (const std::invalid_argument& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_THAT(message_of({.quantization = "int5"}), testing::HasSubstr("none, int8 or int4"));
  EXPECT_THAT(message_of({.exact = true, .quantization = "int8"}), testing::HasSubstr("exact"));
  {
    const RolloutEngine engine(*bundle_.model, {.quantization = "int8"});
    EXPECT_THAT(message_of({.quantization = "int4"}), testing::HasSubstr("already"));
  }
  EXPECT_EQ(message_of({.quantization = "int4"}), "");
  bundle_.model->to(at::kHalf);
  EXPECT_THAT(message_of({.quantization = "int8"}), testing::HasSubstr("float32 or bfloat16"));
}

// A cache that holds a few completions: others wait, and the youngest give their pages back.
TEST_F(RolloutEngineTest, AFullCacheChangesNoCompletion) {
  const SamplingOptions sampling{.max_new_tokens = 90, .min_new_tokens = 60};
  RolloutEngine roomy(*bundle_.model, {});
  // Two layers, two heads of width 8, 16 tokens of fp32 keys and values: 4 KiB a page, 256 pages.
  RolloutEngine tight(*bundle_.model, {.max_rows = 64, .cache_mb = 1});
  const auto expected = roomy.generate(requests(12), sampling);
  EXPECT_EQ(roomy.stats().preemptions, 0);
  const auto results = tight.generate(requests(12), sampling);
  EXPECT_GT(tight.stats().preemptions, 0);
  EXPECT_EQ(tight.stats().new_tokens, roomy.stats().new_tokens);
  for (std::size_t i = 0; i < results.size(); ++i)
    for (std::size_t g = 0; g < 12; ++g) {
      EXPECT_EQ(results[i][g].ids, expected[i][g].ids);
      for (std::size_t t = 0; t < results[i][g].ids.size(); ++t)
        EXPECT_NEAR(results[i][g].logprobs[t], expected[i][g].logprobs[t], 2e-5);
    }
  EXPECT_THROW(tight.generate(requests(1), {.max_new_tokens = 10000}), std::invalid_argument);
}

// Settings of all kinds in one batch, in random batches and orders: each completion is the one it is alone.
TEST_F(RolloutEngineTest, MixedSettingsInRandomBatchesGiveTheSameCompletions) {
  RandomStream random({6});
  std::vector<GenerationRequest> all;
  std::vector<SamplingOptions> settings;
  for (std::uint64_t i = 0; i < 14; ++i) {
    GenerationRequest one = i % 4 == 0   ? text_request("Where is it?", i)
                            : i % 4 == 1 ? two_pictures(i % 6, (i + 1) % 6)
                                         : request(i % 6, 1);
    one.num_completions = random.between(1, 4);
    one.stream = {21, i};
    one.num_top_logprobs = random.between(0, 3);
    if (random.chance(0.5)) one.banned_ids = {static_cast<std::int64_t>(random.below(400))};
    all.push_back(std::move(one));
    settings.push_back({.max_new_tokens = random.between(1, 40),
                        .temperature = random.chance(0.3) ? 0 : random.uniform(0.5, 1.5),
                        .top_k = random.chance(0.4) ? random.between(1, 50) : 0,
                        .top_p = random.chance(0.4) ? random.uniform(0.3, 1) : 1,
                        .min_p = random.chance(0.4) ? random.uniform(0, 0.3) : 0,
                        .repetition_penalty = random.chance(0.4) ? random.uniform(1, 1.5) : 1});
  }
  RolloutEngine alone(*bundle_.model, {.exact = true}, bundle_.tokenizer.get());
  std::vector<std::vector<Completion>> expected;
  for (std::size_t i = 0; i < all.size(); ++i) expected.push_back(alone.generate({all[i]}, settings[i])[0]);
  for (const std::int64_t max_rows : {1, 3, 9, 64}) {
    std::vector<std::size_t> order(all.size());
    std::iota(order.begin(), order.end(), 0);
    random.shuffle(order);
    std::vector<GenerationRequest> some;
    std::vector<SamplingOptions> its;
    for (const std::size_t i : order) {
      some.push_back(all[i]);
      its.push_back(settings[i]);
    }
    RolloutEngine engine(*bundle_.model, {.max_rows = max_rows, .prefix_cache = max_rows != 3, .exact = true},
                         bundle_.tokenizer.get());
    const auto results = engine.generate_each(some, its);
    for (std::size_t i = 0; i < order.size(); ++i) {
      ASSERT_EQ(results[i].size(), expected[order[i]].size());
      for (std::size_t g = 0; g < results[i].size(); ++g) {
        EXPECT_EQ(results[i][g].ids, expected[order[i]][g].ids) << max_rows << " rows, request " << order[i];
        EXPECT_EQ(results[i][g].logprobs, expected[order[i]][g].logprobs);
        EXPECT_EQ(results[i][g].top, expected[order[i]][g].top);
        EXPECT_EQ(results[i][g].text, expected[order[i]][g].text);
      }
    }
  }
}

// Exact mode: bit for bit what a training pass over prompt and completion computes, whatever shared the batch, whether
// pages were reused or given back; and the default mode's gap, which is rounding.
TEST_F(RolloutEngineTest, ExactLogProbsAreTheTrainersToTheBit) {
  for (const std::int64_t max_rows : {2, 7, 64}) {
    RolloutEngine engine(*bundle_.model, {.max_rows = max_rows, .cache_mb = max_rows == 64 ? 1 : 0, .exact = true});
    for (const double temperature : {1.0, 0.7}) {
      const auto results = engine.generate(requests(5), {.max_new_tokens = 70, .temperature = temperature});
      for (std::size_t i = 0; i < results.size(); ++i)
        for (const Completion& completion : results[i])
          EXPECT_EQ(completion.logprobs, trainer_log_probs(i, {completion.ids}, temperature, true)[0]) << max_rows;
      // Several completions behind one shared prompt, as GRPO packs them.
      const auto packed =
          trainer_log_probs(0, {results[0][0].ids, results[0][1].ids, results[0][2].ids}, temperature, true);
      for (std::size_t g = 0; g < 3; ++g) EXPECT_EQ(results[0][g].logprobs, packed[g]);
    }
  }
  RolloutEngine engine(*bundle_.model, {});
  const auto results = engine.generate(requests(5), {.max_new_tokens = 70});
  double gap = 0;
  for (std::size_t i = 0; i < results.size(); ++i)
    for (const Completion& completion : results[i]) {
      const auto expected = trainer_log_probs(i, {completion.ids}, 1.0, false)[0];
      for (std::size_t t = 0; t < expected.size(); ++t)
        gap = std::max(gap, std::abs(static_cast<double>(completion.logprobs[t]) - expected[t]));
    }
  RecordProperty("largest_gap_of_the_default_mode", std::to_string(gap));
  EXPECT_LT(gap, 2e-5);
}

TEST_F(RolloutEngineTest, QuestionsAboutOnePictureShareItsPages) {
  std::vector<GenerationRequest> all;
  for (std::uint64_t i = 0; i < 5; ++i) {
    GenerationRequest one = two_pictures(2, 3);
    const auto words = bundle_.tokenizer->encode(" Which of them? " + std::to_string(i));
    one.prompt.ids.insert(one.prompt.ids.end(), words.begin(), words.end());
    one.stream = {31, i};
    all.push_back(std::move(one));
  }
  all.insert(all.begin() + 2, two_pictures(3, 2));  // the same two, but not in their order: nothing of them is shared
  const SamplingOptions sampling{.max_new_tokens = 10};
  RolloutEngine shared(*bundle_.model, {}), apart(*bundle_.model, {.prefix_cache = false});
  const auto first = shared.generate(all, sampling), second = apart.generate(all, sampling);
  for (std::size_t i = 0; i < all.size(); ++i) EXPECT_EQ(first[i][0].ids, second[i][0].ids);
  EXPECT_EQ(apart.stats().reused_tokens, 0);
  EXPECT_GE(shared.stats().reused_tokens, 4 * (std::ssize(two_pictures(2, 3).prompt.ids) / 16 * 16));
  EXPECT_EQ(shared.stats().reused_tokens + shared.stats().prompt_tokens, apart.stats().prompt_tokens);
}

// Pages must not outlive the weights that they were computed with.
TEST_F(RolloutEngineTest, ChangedWeightsAreSeenAtOnce) {
  RolloutEngine engine(*bundle_.model, {});
  const SamplingOptions sampling{.max_new_tokens = 5};
  engine.generate(requests(1), sampling);
  {
    const at::NoGradGuard no_grad;
    for (at::Tensor& parameter : bundle_.model->parameters()) parameter.mul_(1.1);
  }
  const auto results = engine.generate(requests(1), sampling);
  for (std::size_t i = 0; i < results.size(); ++i) {
    const auto expected = recomputed(questions_[i], results[i][0].ids, 1.0);
    for (std::size_t t = 0; t < expected.size(); ++t) EXPECT_NEAR(results[i][0].logprobs[t], expected[t], 2e-5);
  }
}

TEST_F(RolloutEngineTest, StopTextsEndACompletionBeforeThem) {
  RolloutEngine engine(*bundle_.model, {}, bundle_.tokenizer.get());
  const SamplingOptions sampling{.max_new_tokens = 60, .min_new_tokens = 60};
  const auto plain = engine.generate(requests(4), sampling);
  int num_cut = 0;
  for (std::size_t i = 0; i < plain.size(); ++i) {
    // A piece out of the middle of the first completion, across tokens.
    const std::string& text = plain[i][0].text;
    GenerationRequest stopped = request(i, 4);
    stopped.stop = {"never in there", text.substr(text.size() / 2, 3)};
    const auto results = engine.generate({stopped}, sampling)[0];
    for (std::size_t g = 0; g < 4; ++g) {
      const std::size_t place = plain[i][g].text.find(stopped.stop[1]);
      EXPECT_EQ(results[g].text, plain[i][g].text.substr(0, place));
      if (place == std::string::npos) {
        EXPECT_EQ(results[g].finish, FinishReason::length);
        continue;
      }
      ++num_cut;
      EXPECT_EQ(results[g].finish, FinishReason::stop);
      EXPECT_EQ(results[g].stop_text, stopped.stop[1]);
      EXPECT_LE(results[g].ids.size(), plain[i][g].ids.size());
      EXPECT_TRUE(std::equal(results[g].ids.begin(), results[g].ids.end(), plain[i][g].ids.begin()));
    }
  }
  EXPECT_GE(num_cut, 6);
  GenerationRequest stopped = request(0, 1);
  stopped.stop = {"x"};
  EXPECT_THROW(RolloutEngine(*bundle_.model, {}).generate({stopped}, sampling), std::invalid_argument);
  stopped.stop = {""};
  EXPECT_THROW(engine.generate({stopped}, sampling), std::invalid_argument);
}

// bf16 weights, for which the decoding kernels have a path of their own.
TEST_F(RolloutEngineTest, Bfloat16AgreesWithAFullPass) {
  bundle_.model->to(at::kBFloat16);
  RolloutEngine engine(*bundle_.model, {.max_rows = 9});
  const auto results = engine.generate(requests(3), {.max_new_tokens = 24});
  double sum = 0, count = 0;
  for (std::size_t i = 0; i < results.size(); ++i)
    for (const Completion& completion : results[i]) {
      const auto expected = recomputed(questions_[i], completion.ids, 1.0);
      for (std::size_t t = 0; t < expected.size(); ++t) sum += std::abs(completion.logprobs[t] - expected[t]);
      count += static_cast<double>(expected.size());
    }
  EXPECT_LT(sum / count, 0.03);
}

}  // namespace
}  // namespace thinkvg::generation
