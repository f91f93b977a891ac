#pragma once

// What a training run will need of memory, from numbers alone: no tensor is made. Shape letters as the models': D
// width, F width inside the MLP, H query heads, J key/value heads, K head width, V vocabulary.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "thinkvg/core/json.h"
#include "thinkvg/dist/plan.h"

namespace thinkvg::train {

// A stack of transformer layers.
struct StackNumbers {
  std::int64_t num_layers = 0;
  std::int64_t width = 0;         // D
  std::int64_t inner_width = 0;   // F
  std::int64_t num_heads = 0;     // H
  std::int64_t num_kv_heads = 0;  // J
  std::int64_t head_width = 0;    // K
  bool gated = true;              // the MLP has a gate: three matrices, not two
};

// The numbers of config.json that memory depends on.
struct ModelNumbers {
  StackNumbers language, vision;
  std::int64_t vocab_size = 0;
  bool tied = false;                 // the embedding table is the output head
  std::int64_t patches_a_token = 4;  // patches of the tower that become one image token
};
// Reads the layouts of transformers 4 and 5, of Qwen2-VL and later, of LLaVA and of Gemma 3. Throws std::runtime_error
// naming the number that is missing.
ModelNumbers read_model_numbers(const Json& config);

// Numbers of a run, for one device.
struct MemorySettings {
  ModelNumbers model;
  std::int64_t num_parameters = 0;  // adapters included
  std::int64_t num_trained = 0;
  bool trains_language = true;  // weights or adapters of it
  bool trains_head = true;      // the embedding table and the output head
  bool trains_vision = true;    // gradients pass the tower
  std::int64_t adapter_rank = 0;
  bool adapter_dropout = false;
  std::int64_t bytes_a_weight = 4;  // 4: float32, 2: bfloat16
  bool gradient_checkpointing = false;

  std::int64_t pass_tokens = 0;        // of one forward and backward pass, pictures included
  std::int64_t pass_image_tokens = 0;  // of them
  std::int64_t pass_targets = 0;       // of them, tokens that carry loss
  std::int64_t passes_a_step = 1;      // on this device, by all its workers
  std::int64_t num_workers = 1;        // passes side by side: threads of a CPU, 1 on an accelerator
  bool on_accelerator = false;

  // Devices over which each is split (dist.sharding); 1: every device has its own whole copy.
  std::int64_t gradient_shards = 1;
  std::int64_t optimizer_shards = 1;
  std::int64_t parameter_shards = 1;
  dist::SplitWeights split;       // where parameters are split
  bool fetches_by_layer = false;  // split weights, for rollouts and evaluations (dist.rollout_weights)
  std::int64_t bucket_bytes = 0;  // of gradients that are sent together; 0: nothing is sent

  bool evaluates = false;  // while training
  bool async_save = false;
  std::int64_t picture_cache_bytes = 0;

  // Reinforcement: completions are drawn between updates.
  struct Rollout {
    std::int64_t num_prompts = 0;    // whose prefix is kept at one time
    std::int64_t prompt_tokens = 0;  // of one, picture included
    std::int64_t num_rows = 0;       // completions side by side
    std::int64_t new_tokens = 0;     // of one, at most
    std::int64_t cache_bytes = 0;    // for keys and values, at most; 0: what they need
    bool reference = false;          // a second copy of the weights
    bool overlaps = false;           // drawn while gradients are computed
  };
  std::optional<Rollout> rollout;
};

struct MemoryItem {
  std::string name;
  std::int64_t bytes = 0;
  std::string meaning;
};

struct MemoryPlan {
  std::vector<MemoryItem> always;   // held through the whole run
  std::vector<MemoryItem> pass;     // while gradients are computed
  std::vector<MemoryItem> rollout;  // while completions are drawn, or split weights evaluated; otherwise empty
  bool rollout_overlaps = false;    // both at the same time
  std::vector<MemoryItem> host;     // beside the device's memory: pictures, checkpoints in writing, the program

  // The largest need at one time, of the device; with_host: of a machine whose memory is the device's, too.
  std::int64_t device_bytes() const;
  std::int64_t host_bytes() const;
};
// An upper bound that a run comes near to (tests/train/memory_plan_test.cc holds it to measured peaks).
MemoryPlan plan_memory(const MemorySettings& settings);

// What of one token a layer keeps for its backward pass, in numbers of the weights' type. `trained`: its weights or
// adapters on its layers take gradients.
std::int64_t kept_numbers(const StackNumbers& stack, const MemorySettings& settings, bool trained);

// Settings that lower the need, the best first; one text each, naming the setting, its present value and what it does.
struct MemoryLevers {
  bool adapters = false;
  bool bfloat16 = false;
  bool checkpointing = false;
  bool async_save = false;
  std::int64_t micro_batch_tokens = 0;
  bool reinforcement = false;
  std::int64_t max_rows = 0;
  std::int64_t cache_mb = 0;
  bool reference = false;
};
std::vector<std::string> memory_advice(const MemoryLevers& levers);

// "1.5 GiB", "12.0 MiB".
std::string format_bytes(std::int64_t bytes);

}  // namespace thinkvg::train
