#pragma once

#include <fstream>
#include <string>
#include <vector>

#include "tests/support/tiny_run.h"
#include "thinkvg/core/files.h"
#include "thinkvg/core/json.h"
#include "thinkvg/train/sft.h"

namespace thinkvg::test {

// A few steps of the tiny model on the tiny set, with a frozen tower.
inline train::SftOptions tiny_sft(const std::string& out) {
  const TinyRun& tiny = tiny_run();
  train::SftOptions options;
  options.model = tiny.model.string();
  options.data.path = tiny.train.string();
  options.images = tiny.images.string();
  options.out = out;
  options.batch_size = 4;
  options.tuning.freeze_vision = options.tuning.freeze_projector = true;
  options.optimizer.lr = 3e-3;
  options.run.steps = 6;
  options.run.save_every = 3;
  return options;
}

inline std::vector<Json> metrics_of(const std::filesystem::path& run) {
  std::vector<Json> lines;
  std::ifstream stream(run / "metrics.jsonl");
  for (std::string line; std::getline(stream, line);) lines.push_back(Json::parse(line));
  return lines;
}

// The hash of the weights: a failed comparison must not print them.
inline std::string weights_of(const std::filesystem::path& run, const std::string& step) {
  return sha256_file(run / "checkpoints" / step / "model.safetensors");
}

}  // namespace thinkvg::test
