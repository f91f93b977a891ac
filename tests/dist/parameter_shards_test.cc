#include "thinkvg/train/parameter_shards.h"

#include <cmath>

#include "tests/dist/workers.h"
#include "tests/support/tiny_run.h"

namespace thinkvg::dist {
namespace {

using ::testing::HasSubstr;

// Steps of tests/dist/worker.cc, in which some processes have passes with pictures, some without, and some fewer.
WorkersResult run_steps(std::int64_t processes, const Json& tuning) {
  const WorkersResult result = run_workers(
      "split_weights", processes,
      {{"model", test::tiny_run().model.string()}, {"tuning", tuning}, {"dist", {{"sharding", "parameters"}}}});
  expect_success(result);
  return result;
}

void expect_same_steps(const Json& got, const Json& expected) {
  ASSERT_EQ(got.size(), expected.size());
  for (std::size_t step = 0; step < expected.size(); ++step) {
    for (const char* name : {"norm", "loss"}) {
      const double value = expected[step][name].get<double>();
      EXPECT_NEAR(got[step][name].get<double>(), value, 1e-5 * std::max(1.0, value)) << name << " " << step;
    }
    for (const auto& [name, sum] : expected[step]["sums"].items()) {
      const double value = sum.get<double>();
      EXPECT_NEAR(got[step]["sums"].at(name).get<double>(), value, 1e-4 * std::max(1.0, value)) << name << " " << step;
    }
  }
}

TEST(ParameterShardsDist, ATowerThatSomeProcessesDoNotNeedGivesTheSameSteps) {
  const std::vector<Json> tunings = {
      Json::object(),
      {{"gradient_checkpointing", true}},
      {{"freeze_vision", true}},
      {{"freeze_vision", true}, {"freeze_projector", true}},
      {{"lora", {{"rank", 2}, {"parts", {"language", "vision"}}}}, {"gradient_checkpointing", true}}};
  for (const Json& tuning : tunings) {
    SCOPED_TRACE(tuning.dump());
    const WorkersResult one = run_steps(1, tuning);
    EXPECT_FALSE(one.ranks.front().contains("unfetched"));
    const WorkersResult several = run_steps(tuning.empty() ? 4 : 2, tuning);
    for (const Json& rank : several.ranks) expect_same_steps(rank.at("steps"), one.ranks.front().at("steps"));
  }
}

TEST(ParameterShardsDist, ABlockIsThereWhileItIsNeeded) {
  const train::TrainedModel trained(test::tiny_run().model, {}, 0);
  const SplitWeights weights = train::split_weights(trained);
  EXPECT_EQ(weights.total(), trained.num_parameters());
  EXPECT_GT(weights.in_blocks, 2 * weights.largest_block);
  const WorkersResult result = run_steps(2, Json::object());
  for (const Json& rank : result.ranks) {
    EXPECT_EQ(rank.at("here_between"), 0);
    EXPECT_LE(rank.at("most_here").get<std::int64_t>(), weights.outside + weights.largest_block);
    EXPECT_THAT(rank.at("unfetched").get<std::string>(), HasSubstr("must be fetched"));
  }
}

TEST(SplitWeightsTest, LeaveOutATowerThatNeverChanges) {
  train::TuningOptions tuning;
  const std::filesystem::path model = test::tiny_run().model;
  const SplitWeights all = train::split_weights(train::TrainedModel(model, tuning, 0));
  tuning.freeze_vision = true;
  const SplitWeights projector = train::split_weights(train::TrainedModel(model, tuning, 0));
  EXPECT_EQ(projector.total(), all.total());
  EXPECT_LT(projector.backward, all.backward) << "no gradient passes the tower";
  EXPECT_LT(projector.trained_outside, projector.outside);
  tuning.freeze_projector = true;
  const train::TrainedModel language(model, tuning, 0);
  EXPECT_EQ(train::split_weights(language).total(), language.num_trained());
}

}  // namespace
}  // namespace thinkvg::dist
