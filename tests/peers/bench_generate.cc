// Times the rollout engine on a work file that tests/peers/decode_speed.py wrote, and prints one JSON document:
//   bench_generate MODEL WORK.safetensors --dtype float32|bfloat16 --new_tokens N --completions G --temperature T
//                  --repeats R --threads K
// Ends are banned, so that every completion has N tokens. seconds: one number a repeat, the tower's pass included;
// first_seconds: the same with one token a completion, so that their difference is decoding alone.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <string>

#include "tests/peers/work_file.h"
#include "thinkvg/core/json.h"
#include "thinkvg/generation/rollout_engine.h"

using namespace thinkvg;

int main(int argc, char** argv) {
  std::string model_folder, work_file, dtype = "float32";
  std::int64_t new_tokens = 32, completions = 1, repeats = 3, threads = 0;
  double temperature = 0;
  bool exact = false;
  CLI::App app("times generation");
  app.add_option("model", model_folder)->required();
  app.add_option("work", work_file)->required();
  app.add_option("--dtype", dtype)->check(CLI::IsMember({"float32", "bfloat16"}));
  app.add_option("--new_tokens", new_tokens);
  app.add_option("--completions", completions);
  app.add_option("--temperature", temperature);
  app.add_option("--repeats", repeats);
  app.add_option("--threads", threads);
  app.add_flag("--exact", exact);
  CLI11_PARSE(app, argc, argv);

  const at::NoGradGuard no_grad;
  if (threads > 0) at::set_num_threads(static_cast<int>(threads));
  const auto model = models::load(model_folder, peers::dtype_of(dtype));
  const std::vector<peers::Work> work = peers::read_work(work_file);
  generation::RolloutEngine engine(*model, {.exact = exact});

  std::vector<std::vector<generation::Completion>> results;
  const auto generate = [&](std::int64_t count) {
    std::vector<generation::GenerationRequest> requests;
    for (std::size_t i = 0; i < work.size(); ++i) {
      generation::GenerationRequest request;
      request.prompt.ids = work[i].ids;
      if (work[i].patches.values.defined()) {
        request.prompt.image_rows = peers::image_rows(work[i], model->special_tokens().image);
        request.grids = work[i].patches.grids;
        request.image_features = {model->encode_images(work[i].patches)};
      }
      request.num_completions = completions;
      request.stream = {i};
      requests.push_back(std::move(request));
    }
    results = engine.generate(requests, {.max_new_tokens = count, .temperature = temperature, .min_new_tokens = count});
  };
  generate(std::min<std::int64_t>(new_tokens, 4));  // warm-up
  Json seconds = Json::array(), first_seconds = Json::array();
  for (std::int64_t i = 0; i < repeats; ++i) {
    first_seconds.push_back(peers::seconds_of([&] { generate(1); }));
    seconds.push_back(peers::seconds_of([&] { generate(new_tokens); }));
  }
  Json ids = Json::array();
  for (const auto& group : results)
    for (const generation::Completion& completion : group) ids.push_back(completion.ids);
  std::printf("%s\n", Json({{"seconds", seconds}, {"first_seconds", first_seconds}, {"ids", ids}}).dump().c_str());
  return 0;
}
