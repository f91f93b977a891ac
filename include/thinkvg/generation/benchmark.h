#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "thinkvg/core/json.h"
#include "thinkvg/core/settings.h"
#include "thinkvg/generation/rollout_engine.h"
#include "thinkvg/nn/device.h"

namespace thinkvg::generation {

struct BenchmarkOptions {
  std::string model;
  std::string dtype;
  std::string device = "auto";
  std::int64_t prompt_tokens = 512;
  std::int64_t new_tokens = 64;
  std::vector<std::int64_t> batch_sizes = {1, 8, 32};
  std::int64_t num_prompts = 8;
  std::int64_t group_size = 8;
  std::int64_t train_tokens = 2048;
  std::int64_t repeats = 5;
  std::int64_t num_threads = 0;
  bool json = false;
  EngineOptions engine;

  void visit(SettingsVisitor& v) {
    v.setting("model", model, "Model folder, or run folder (its newest checkpoint).");
    v.setting("dtype", dtype, models::kDtypeHelp);
    v.setting("device", device, nn::kDeviceHelp);
    v.setting("prompt_tokens", prompt_tokens, "Tokens of a prompt.");
    v.setting("new_tokens", new_tokens, "Tokens of a completion; none ends earlier.");
    v.setting("batch_sizes", batch_sizes, "Completions that are decoded side by side, one row of the table each.");
    v.setting("num_prompts", num_prompts, "Prompts of the rollout, as a GRPO step draws it.");
    v.setting("group_size", group_size, "Completions of each of them.");
    v.setting("train_tokens", train_tokens,
              "Tokens of a training pass of the language model, in sequences of prompt_tokens; 0: none is timed.");
    v.setting("repeats", repeats, "How often each row is timed, after one round that does not count.");
    v.setting("num_threads", num_threads, "CPU threads; 0: all cores.");
    v.setting("json", json, "Print one JSON document.");
    v.section("engine", engine, "The rollout engine.");
  }
  // Throws std::invalid_argument naming the setting.
  void check() const;
};

// What the machine itself gives, measured in the same run. Rates count 1e9.
struct MachineSpeed {
  std::string name;    // of the processor
  std::string device;  // where the model is: "cpu", "cuda:0"; what the rates below are of
  std::int64_t num_threads = 0;
  double load = 0;             // runnable processes in the last minute, before anything was timed
  double gigabytes_per_s = 0;  // read from memory, all threads
  double gigaflops_per_s = 0;  // of a large matrix product in the model's dtype
};

// One row of the table: the same work, timed again and again.
struct BenchmarkRow {
  std::string name;                  // "prefill", "decode", "rollout", "training pass"
  std::int64_t batch = 1;            // sequences side by side
  double num_tokens = 0;             // of one repeat
  std::vector<double> seconds = {};  // of each repeat
  // Seconds that the machine's speed asks for at least: weights, keys and values read once a step at gigabytes_per_s,
  // or the multiplications at gigaflops_per_s, whichever takes longer. Of the
  // model's own weights: those of fewer bits (engine.quantization) may beat it.
  double least_seconds = 0;

  double best() const;            // tokens a second of the fastest repeat
  double median() const;          // of the middle one
  double share_of_limit() const;  // least_seconds / the fastest repeat
};

struct BenchmarkResult {
  MachineSpeed machine;
  std::string model, dtype;
  std::int64_t num_parameters = 0;  // of the language model with its head
  std::vector<BenchmarkRow> rows;
};

// Times prompts and completions of the engine, and passes of training, of a model with made-up prompts of text: random
// ids, drawn without end tokens. decode: the time of completions of new_tokens, less that of completions of one.
// rollout: num_prompts x group_size completions at temperature 1, prompts included; its tokens are the completions'.
// training pass: forward and backward through the language model and the loss of every token, one pass a worker as the
// trainers do it. Other work on the machine makes all of it slower: look at `load`.
// Throws std::invalid_argument for settings, std::runtime_error for a folder that cannot be read.
BenchmarkResult run_benchmark(const BenchmarkOptions& options);

std::string benchmark_table(const BenchmarkResult& result);
Json benchmark_json(const BenchmarkResult& result);

}  // namespace thinkvg::generation
