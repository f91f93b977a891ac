#include "thinkvg/generation/benchmark.h"

#include <gmock/gmock.h>

#include "tests/support/tiny_run.h"
#include "thinkvg/models/bundle.h"

namespace thinkvg::generation {
namespace {

BenchmarkOptions tiny_benchmark() {
  BenchmarkOptions options;
  options.model = test::tiny_run().model.string();
  options.prompt_tokens = 32;
  options.new_tokens = 6;
  options.batch_sizes = {1, 3};
  options.num_prompts = 2;
  options.group_size = 4;
  options.train_tokens = 128;
  options.repeats = 2;
  return options;
}

TEST(BenchmarkTest, TimesEachKindOfWork) {
  const BenchmarkResult result = run_benchmark(tiny_benchmark());
  ASSERT_EQ(result.rows.size(), 5u);
  const std::tuple<const char*, std::int64_t, double> expected[] = {
      {"prefill", 1, 32}, {"decode", 1, 5}, {"decode", 3, 15}, {"rollout", 8, 48}, {"training pass", 4, 128}};
  for (std::size_t i = 0; i < result.rows.size(); ++i) {
    const BenchmarkRow& row = result.rows[i];
    EXPECT_EQ(std::make_tuple(row.name, row.batch, row.num_tokens), expected[i]);
    EXPECT_EQ(row.seconds.size(), 2u);
    EXPECT_GE(row.best(), row.median());
    EXPECT_GT(row.least_seconds, 0);
    EXPECT_THAT(benchmark_table(result), testing::HasSubstr(row.name));
  }
  EXPECT_GT(result.machine.gigabytes_per_s, 0.1);
  EXPECT_GT(result.machine.gigaflops_per_s, 0.1);
  EXPECT_EQ(result.dtype, "float32");
  std::int64_t num_parameters = 0;
  const models::ModelBundle bundle = models::load_bundle(tiny_benchmark().model);
  for (const auto& item : bundle.model->named_parameters())
    if (bundle.model->part_of(item.key()) == models::ModelPart::language) num_parameters += item.value().numel();
  EXPECT_EQ(result.num_parameters, num_parameters);
  const Json document = benchmark_json(result);
  EXPECT_EQ(document["rows"].size(), 5u);
  EXPECT_EQ(document["rows"][3]["name"], "rollout");
}

// A longer prompt, more completions and more tokens all ask for more time, whatever the machine.
TEST(BenchmarkTest, TheLimitGrowsWithTheWork) {
  BenchmarkOptions options = tiny_benchmark();
  options.repeats = 1;
  options.batch_sizes = {4};
  const BenchmarkResult small = run_benchmark(options);
  options.prompt_tokens *= 4;
  options.new_tokens *= 4;
  options.train_tokens *= 16;
  const BenchmarkResult large = run_benchmark(options);
  for (std::size_t i = 0; i < small.rows.size(); ++i) {
    const double of_small = small.rows[i].least_seconds * small.machine.gigaflops_per_s;
    const double of_large = large.rows[i].least_seconds * large.machine.gigaflops_per_s;
    EXPECT_GT(of_large, of_small) << small.rows[i].name;
  }
}

TEST(BenchmarkTest, OtherTypesAndNoTraining) {
  BenchmarkOptions options = tiny_benchmark();
  options.dtype = "bfloat16";
  options.train_tokens = 0;
  options.batch_sizes = {};
  options.repeats = 1;
  const BenchmarkResult result = run_benchmark(options);
  EXPECT_EQ(result.dtype, "bfloat16");
  EXPECT_EQ(result.rows.size(), 2u);
}

TEST(BenchmarkTest, RefusesWhatCannotBeTimed) {
  for (const auto change :
       {+[](BenchmarkOptions& o) { o.dtype = "int8"; }, +[](BenchmarkOptions& o) { o.new_tokens = 1; },
        +[](BenchmarkOptions& o) { o.repeats = 0; }, +[](BenchmarkOptions& o) { o.batch_sizes = {0}; },
        +[](BenchmarkOptions& o) { o.train_tokens = -1; }}) {
    BenchmarkOptions options = tiny_benchmark();
    change(options);
    EXPECT_THROW(run_benchmark(options), std::invalid_argument);
  }
}

}  // namespace
}  // namespace thinkvg::generation
