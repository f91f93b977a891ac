// Times opening a model folder once, and prints one JSON document:
//   bench_load MODEL [--dtype float32|bfloat16]     without it: the dtype of the files
// load_seconds: until the model can be used; read_seconds: touching every page of its weights then, which a load that
// maps files puts off; peak_memory: VmHWM behind both; checksum: the sum of one number a page.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <string>

#include "tests/peers/work_file.h"
#include "thinkvg/core/files.h"
#include "thinkvg/core/json.h"

using namespace thinkvg;

int main(int argc, char** argv) {
  std::string model_folder, dtype;
  CLI::App app("times loading");
  app.add_option("model", model_folder)->required();
  app.add_option("--dtype", dtype)->check(CLI::IsMember({"float32", "bfloat16"}));
  CLI11_PARSE(app, argc, argv);

  const at::NoGradGuard no_grad;
  const std::int64_t memory_before = peak_memory_bytes();
  std::shared_ptr<models::VisionLanguageModel> model;
  const double load_seconds = peers::seconds_of(
      [&] { model = dtype.empty() ? models::load(model_folder) : models::load(model_folder, peers::dtype_of(dtype)); });
  std::int64_t weights = 0;
  double checksum = 0;
  const double read_seconds = peers::seconds_of([&] {
    for (const at::Tensor& parameter : model->parameters()) {
      weights += static_cast<std::int64_t>(parameter.nbytes());
      const std::int64_t stride = 4096 / static_cast<std::int64_t>(parameter.element_size());
      checksum += parameter.flatten().slice(0, 0, std::nullopt, stride).to(at::kDouble).sum().item<double>();
    }
  });
  const Json result = {{"load_seconds", load_seconds}, {"read_seconds", read_seconds},
                       {"weights", weights},           {"memory_before", memory_before},
                       {"checksum", checksum},         {"peak_memory", peak_memory_bytes()}};
  std::printf("%s\n", result.dump().c_str());
  return 0;
}
