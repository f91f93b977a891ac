// What opening a model costs. Memory is the peak of a process that does nothing else (death tests of style "threadsafe"
// start this program once more).
#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <fstream>

#include "tests/support/temporary_folder.h"
#include "thinkvg/core/files.h"
#include "thinkvg/models/skeleton.h"
#include "thinkvg/models/vision_language_model.h"

namespace thinkvg::models {
namespace {

namespace fs = std::filesystem;

Json config_of(std::int64_t width, std::int64_t inner, std::int64_t layers, std::int64_t heads, std::int64_t vocab,
               const Json& vision) {
  return {{"model_type", "qwen2_5_vl"},
          {"tie_word_embeddings", false},
          {"image_token_id", 5},
          {"text_config",
           {{"vocab_size", vocab},
            {"hidden_size", width},
            {"intermediate_size", inner},
            {"num_hidden_layers", layers},
            {"num_attention_heads", heads},
            {"num_key_value_heads", heads / 7},
            {"rope_parameters", {{"mrope_section", {16, 24, 24}}}}}},
          {"vision_config", vision}};
}

std::int64_t resident_bytes() {
  std::ifstream statm("/proc/self/statm");
  std::int64_t total = 0, resident = 0;
  statm >> total >> resident;
  return resident * 4096;
}

// About 130 million weights in five shards, all of them of a size; the folder's name goes to the child by environment.
class StoredModel {
 public:
  StoredModel(const char* variable, at::ScalarType stored) : variable_(variable) {
    if (const char* given = std::getenv(variable); given != nullptr) {
      path_ = given;
      return;
    }
    made_ = std::make_unique<test::TemporaryFolder>();
    path_ = made_->path();
    const Json vision = {{"depth", 1},     {"hidden_size", 64},      {"intermediate_size", 64},
                         {"num_heads", 2}, {"out_hidden_size", 896}, {"fullatt_block_indexes", {0}}};
    write_file_atomically(made_->path() / "config.json", config_of(896, 2304, 16, 7, 2048, vision).dump());
    const auto model = make_empty(path_);
    for (at::Tensor& parameter : model->parameters())
      parameter.set_data(at::full(parameter.sizes(), 0.125, at::TensorOptions(stored)));
    FolderContent content = model_content(*model);
    content.max_file_bytes = 60'000'000;
    write_content(content, path_);
    ::setenv(variable, path_.c_str(), 1);
  }
  ~StoredModel() { ::unsetenv(variable_); }
  StoredModel(const StoredModel&) = delete;
  StoredModel& operator=(const StoredModel&) = delete;
  const fs::path& path() const { return path_; }

 private:
  const char* variable_;
  std::unique_ptr<test::TemporaryFolder> made_;
  fs::path path_;
};

// Loads, reads every weight, and compares the peak with the weights' own size. Exit code 0: at most 5 % more.
[[noreturn]] void measure(const fs::path& folder, std::optional<at::ScalarType> dtype) {
  at::ones({1 << 20}).sum();  // the threads and their memory
  const std::int64_t before = resident_bytes();
  const auto model = load(folder, dtype);
  std::int64_t weights = 0;
  double total = 0;
  for (const at::Tensor& parameter : model->parameters()) {
    weights += static_cast<std::int64_t>(parameter.nbytes());
    total += parameter.sum().item<double>();
  }
  const std::int64_t taken = peak_memory_bytes() - before;
  fmt::print(stderr, "{:.1f} MB for {:.1f} MB of weights, sum {}\n", static_cast<double>(taken) / 1e6,
             static_cast<double>(weights) / 1e6, total);
  const bool read = taken > weights * 95 / 100;  // else the measurement is wrong
  std::_Exit(read && weights > 200'000'000 && taken <= weights * 105 / 100 ? 0 : 1);
}

class LoadMemoryDeathTest : public testing::TestWithParam<std::pair<at::ScalarType, std::optional<at::ScalarType>>> {};

TEST_P(LoadMemoryDeathTest, PeaksAtTheWeights) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const StoredModel stored("THINKVG_LOAD_MEMORY_MODEL", GetParam().first);
  EXPECT_EXIT(measure(stored.path(), GetParam().second), testing::ExitedWithCode(0), "MB of weights");
}

INSTANTIATE_TEST_SUITE_P(, LoadMemoryDeathTest,
                         testing::Values(std::pair(at::kBFloat16, std::nullopt), std::pair(at::kFloat, std::nullopt),
                                         std::pair(at::kBFloat16, std::optional(at::kFloat)),
                                         std::pair(at::kHalf, std::optional(at::kBFloat16)),
                                         std::pair(at::kFloat, std::optional(at::kBFloat16))),
                         [](const auto& info) {
                           std::string name = c10::toString(info.param.first);
                           if (info.param.second) name += std::string("As") + c10::toString(*info.param.second);
                           return name;
                         });

// Qwen2.5-VL-7B without its weights: names and shapes alone.
TEST(Skeleton, AModelOfSevenBillionTakesNoTimeAndNoMemory) {
  const test::TemporaryFolder folder;
  const Json vision = {{"depth", 32},     {"hidden_size", 1280},     {"intermediate_size", 3420},
                       {"num_heads", 16}, {"out_hidden_size", 3584}, {"fullatt_block_indexes", {7, 15, 23, 31}}};
  write_file_atomically(folder / "config.json", config_of(3584, 18944, 28, 28, 152064, vision).dump());
  const std::int64_t before = resident_bytes();
  const auto start = std::chrono::steady_clock::now();
  const auto model = make_empty(folder.path());
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::int64_t count = 0;
  for (const at::Tensor& parameter : model->parameters()) count += parameter.numel();
  EXPECT_EQ(count, 8'292'166'656);
  EXPECT_LT(seconds, 1.0);
  EXPECT_LT(resident_bytes() - before, 64 << 20);
}

}  // namespace
}  // namespace thinkvg::models
