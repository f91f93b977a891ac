#include "thinkvg/generation/rollout_engine.h"

#include <gmock/gmock.h>

#include "tests/support/tiny_run.h"
#include "thinkvg/generation/question.h"
#include "thinkvg/nn/kv_cache.h"

namespace thinkvg::generation {
namespace {

class RolloutEngineTest : public testing::Test {
 protected:
  void SetUp() override {
    const test::TinyRun& tiny = test::tiny_run();
    bundle_ = models::load_bundle(tiny.model);
    const auto dataset = data::open_dataset(tiny.test);
    QuestionBuilder builder(bundle_, {{}, tiny.images.string(), true, {}});
    std::vector<data::Sample> samples;
    for (std::int64_t i = 0; i < 6; ++i) samples.push_back(dataset->get(i));
    questions_ = builder.build(samples);
  }

  std::vector<GenerationRequest> requests(std::int64_t num_completions) const {
    std::vector<GenerationRequest> list;
    for (std::size_t i = 0; i < questions_.size(); ++i)
      list.push_back({questions_[i].prompt, questions_[i].grids, {questions_[i].features}, num_completions, {7, i}});
    return list;
  }

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

  models::ModelBundle bundle_;
  std::vector<Question> questions_;
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

}  // namespace
}  // namespace thinkvg::generation
