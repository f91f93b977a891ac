// Times a forward pass over the first prompt of a work file of tests/peers/decode_speed.py (tower, decoder, logits of
// the last token), and prints one JSON document:
//   bench_forward MODEL WORK.safetensors --dtype float32|bfloat16 --repeats R --threads K --logits OUT.safetensors
// seconds: one number a repeat, behind a warm-up; tower_seconds: the tower's share of it.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <string>

#include "tests/peers/work_file.h"
#include "thinkvg/core/json.h"
#include "thinkvg/models/pack.h"

using namespace thinkvg;

int main(int argc, char** argv) {
  std::string model_folder, work_file, logits_file, dtype = "float32";
  std::int64_t repeats = 3, threads = 0;
  CLI::App app("times a forward pass");
  app.add_option("model", model_folder)->required();
  app.add_option("work", work_file)->required();
  app.add_option("--dtype", dtype)->check(CLI::IsMember({"float32", "bfloat16"}));
  app.add_option("--repeats", repeats);
  app.add_option("--threads", threads);
  app.add_option("--logits", logits_file);
  CLI11_PARSE(app, argc, argv);

  const at::NoGradGuard no_grad;
  if (threads > 0) at::set_num_threads(static_cast<int>(threads));
  const auto model = models::load(model_folder, peers::dtype_of(dtype));
  const peers::Work work = peers::read_work(work_file).front();
  double tower_seconds = 0;
  at::Tensor logits;
  const auto forward = [&] {
    models::PackBuilder::Sequence sequence;
    sequence.ids = work.ids;
    sequence.positions = model->token_positions(work.ids, work.patches.grids).positions;
    if (work.patches.values.defined()) {
      sequence.image_rows = peers::image_rows(work, model->special_tokens().image);
      tower_seconds = peers::seconds_of([&] { sequence.image_features = {model->encode_images(work.patches)}; });
    }
    models::PackBuilder builder;
    builder.add(sequence);
    const models::Pack pack = builder.build(at::kCPU);
    nn::PackedAttention attention(pack.layout);
    const at::Tensor hidden = models::run_pack(*model, pack, attention);
    logits = model->logits(hidden.slice(0, -1));
  };
  forward();  // warm-up
  Json seconds = Json::array(), tower = Json::array();
  for (std::int64_t i = 0; i < repeats; ++i) {
    seconds.push_back(peers::seconds_of(forward));
    tower.push_back(tower_seconds);
  }
  if (!logits_file.empty()) models::write_safetensors({{"logits", logits.to(at::kFloat)}}, logits_file);
  std::printf("%s\n", Json({{"seconds", seconds}, {"tower_seconds", tower}}).dump().c_str());
  return 0;
}
