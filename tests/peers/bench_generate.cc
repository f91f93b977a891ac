// Times the rollout engine on a work file that tests/peers/decode_speed.py wrote, and prints one JSON document:
//   bench_generate MODEL WORK.safetensors --dtype float32|bfloat16 --new_tokens N --completions G --temperature T
//                  --repeats R --threads K [--quantization int8|int4 [--change]]
// Ends are banned, so that every completion has N tokens. seconds: one number a repeat, the tower's pass included;
// first_seconds: the same with one token a completion, so that their difference is decoding alone. With --change
// also what quantised weights change, over the tokens that were drawn: logprob_change, the mean difference of their
// log-probabilities, and kl, the mean divergence of the quantised distribution from that of fp32 weights.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <string>

#include "tests/peers/work_file.h"
#include "thinkvg/core/json.h"
#include "thinkvg/generation/rollout_engine.h"
#include "thinkvg/models/pack.h"
#include "thinkvg/models/quantized_language.h"

namespace {

using namespace thinkvg;

struct Change {
  double logprob = 0;
  double kl = 0;
};

// Of the tokens behind each prompt that one of its completions drew, by one pass: [tokens, V] a prompt.
std::vector<at::Tensor> log_probs_of(models::VisionLanguageModel& model, const std::vector<peers::Work>& work,
                                     const std::vector<std::vector<generation::Completion>>& results) {
  std::vector<at::Tensor> list;
  for (std::size_t i = 0; i < work.size(); ++i) {
    std::vector<std::int64_t> ids = work[i].ids;
    const std::vector<std::int64_t> rows = peers::image_rows(work[i], model.special_tokens().image);
    const std::vector<std::int64_t>& drawn = results[i].front().ids;
    ids.insert(ids.end(), drawn.begin(), drawn.end());
    std::vector<at::Tensor> features;
    if (work[i].patches.values.defined()) features.push_back(model.encode_images(work[i].patches));
    models::PackBuilder packer;
    packer.add({ids, model.token_positions(ids, work[i].patches.grids).positions, rows, features, -1});
    const models::Pack pack = packer.build(at::kCPU);
    nn::PackedAttention attention(pack.layout);
    const at::Tensor hidden =
        models::run_pack(model, pack, attention).narrow(0, std::ssize(work[i].ids) - 1, std::ssize(drawn));
    list.push_back(model.logits(hidden).log_softmax(-1));
  }
  return list;
}

Change change_by(nn::Quantization kind, models::VisionLanguageModel& model, const std::vector<peers::Work>& work,
                 const std::vector<std::vector<generation::Completion>>& results) {
  model.to(at::kFloat);
  const std::vector<at::Tensor> exact = log_probs_of(model, work, results);
  const models::QuantizedLanguage quantized(model, kind);
  const std::vector<at::Tensor> near = log_probs_of(model, work, results);
  Change change;
  double count = 0;
  for (std::size_t i = 0; i < work.size(); ++i) {
    const at::Tensor drawn = at::tensor(results[i].front().ids, at::kLong).unsqueeze(1);
    change.logprob += (exact[i].gather(1, drawn) - near[i].gather(1, drawn)).abs().sum().item<double>();
    change.kl += (exact[i].exp() * (exact[i] - near[i])).sum().item<double>();
    count += static_cast<double>(drawn.numel());
  }
  return {change.logprob / count, change.kl / count};
}

}  // namespace

int main(int argc, char** argv) {
  std::string model_folder, work_file, dtype = "float32", quantization = "none";
  std::int64_t new_tokens = 32, completions = 1, repeats = 3, threads = 0;
  double temperature = 0;
  bool exact = false, state_change = false;
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
  app.add_option("--quantization", quantization)->check(CLI::IsMember({"none", "int8", "int4"}));
  app.add_flag("--change", state_change);
  CLI11_PARSE(app, argc, argv);

  const at::NoGradGuard no_grad;
  if (threads > 0) at::set_num_threads(static_cast<int>(threads));
  const auto model = models::load(model_folder, peers::dtype_of(dtype));
  const std::vector<peers::Work> work = peers::read_work(work_file);
  const generation::EngineOptions options{.exact = exact, .quantization = quantization};
  auto engine = std::make_unique<generation::RolloutEngine>(*model, options);

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
    results =
        engine->generate(requests, {.max_new_tokens = count, .temperature = temperature, .min_new_tokens = count});
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
  Json document = {{"seconds", seconds}, {"first_seconds", first_seconds}, {"ids", ids}};
  engine = nullptr;
  if (state_change && options.weights() != nn::Quantization::none) {
    const Change change = change_by(options.weights(), *model, work, results);
    document["logprob_change"] = change.logprob;
    document["kl"] = change.kl;
  }
  std::printf("%s\n", document.dump().c_str());
  return 0;
}
