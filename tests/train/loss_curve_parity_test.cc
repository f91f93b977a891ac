// Against the losses of a plain transformers loop that tests/parity/write_loss_curve.py stored.
#include <gtest/gtest.h>

#include "tests/support/tiny_sft.h"
#include "thinkvg/train/example.h"

namespace thinkvg::train {
namespace {

struct Curve {
  const char* family;
  bool adapters;
};

class LossCurveParity : public ::testing::TestWithParam<Curve> {};

TEST_P(LossCurveParity, TwentyStepsAreThoseOfTransformers) {
  const std::filesystem::path folder = std::filesystem::path(THINKVG_TEST_DATA) / "loss_curve" / GetParam().family;
  const Json expected = read_json_file(folder / "expected.json");
  const test::TemporaryFolder out;
  SftOptions options;
  options.model = (folder / "model").string();
  options.data.path = (folder / "train.jsonl").string();
  options.images = (folder / "pictures").string();
  options.out = (out / "run").string();
  options.seed = expected.at("seed").get<std::int64_t>();
  options.batch_size = expected.at("batch_size").get<std::int64_t>();
  options.run.steps = expected.at("steps").get<std::int64_t>();
  const Json& optimizer = expected.at("optimizer");
  read_settings(options.optimizer, optimizer, "expected.json");
  if (GetParam().adapters) read_settings(options.tuning.lora, expected.at("lora"), "expected.json");

  // The same data in the same order: else the curves could not agree.
  const std::int64_t size = data::open_dataset(options.data.path)->size();
  for (std::int64_t step = 0; step < options.run.steps; ++step)
    EXPECT_EQ(Json(batch_indices(size, options.batch_size, step, static_cast<std::uint64_t>(options.seed))),
              expected.at("order").at(static_cast<std::size_t>(step)));
  run_sft(options);

  const Json& curve = expected.at(GetParam().adapters ? "adapters" : "full");
  const std::vector<Json> metrics = test::metrics_of(out / "run");
  ASSERT_EQ(metrics.size(), curve.at("loss").size());
  for (std::size_t step = 0; step < metrics.size(); ++step) {
    std::int64_t num_tokens = 0;
    for (const Json& index : expected.at("order").at(step))
      num_tokens += expected.at("lengths").at(index.get<std::size_t>()).get<std::int64_t>();
    EXPECT_EQ(metrics[step].at("num_tokens"), num_tokens) << "step " << step;
    EXPECT_NEAR(metrics[step].at("loss").get<double>(), curve.at("loss")[step].get<double>(), 1e-4) << "step " << step;
    const double norm = curve.at("grad_norm")[step].get<double>();
    EXPECT_NEAR(metrics[step].at("grad_norm").get<double>(), norm, 1e-3 * norm + 1e-5) << "step " << step;
  }
  // Twenty steps that learn nothing would agree in any case.
  EXPECT_LT(metrics.back().at("loss").get<double>(), 0.8 * metrics.front().at("loss").get<double>());
}

INSTANTIATE_TEST_SUITE_P(Families, LossCurveParity,
                         ::testing::Values(Curve{"qwen2_5_vl", false}, Curve{"qwen2_5_vl", true}),
                         [](const ::testing::TestParamInfo<Curve>& info) {
                           return std::string(info.param.family) + (info.param.adapters ? "_adapters" : "_full");
                         });

}  // namespace
}  // namespace thinkvg::train
