#pragma once

#include <cstdint>
#include <string>

namespace thinkvg::dist {

// Bytes that a process sends for one collective of `bytes` (of the whole tensor) under ring algorithms, as counted in
// CommunicationStats.
std::int64_t all_reduce_bytes(std::int64_t bytes, std::int64_t world_size);
std::int64_t gather_bytes(std::int64_t bytes, std::int64_t world_size);  // all-gather and reduce-scatter

// The weights that `dist.sharding parameters` splits, frozen ones included, in numbers.
struct SplitWeights {
  std::int64_t outside = 0;          // in no block: fetched once a step, and there through all of its passes
  std::int64_t trained_outside = 0;  // of them
  std::int64_t in_blocks = 0;        // fetched for each forward pass, block by block
  std::int64_t backward = 0;         // of them, what is fetched again for the backward pass
  std::int64_t largest_block = 0;
  std::int64_t in_tower = 0;  // of those in blocks, what is not the decoder's
  std::int64_t total() const { return outside + in_blocks; }
};

// What is trained, as far as exchanges between processes depend on it.
struct PlannedTraining {
  std::int64_t num_trained = 0;
  std::int64_t bytes_per_weight = 4;  // 4: float32, 2: bfloat16
  std::string sharding = "none";      // DistOptions
  SplitWeights split;                 // sharding parameters alone
  std::int64_t whole_fetches = 0;     // times a step that all of the split weights are fetched: for rollouts
  std::int64_t layer_passes = 0;      // or passes without gradient, layer by layer (dist.rollout_weights)
  std::int64_t shard_size = 0;        // DistOptions
};

// Bytes that one process sends in one optimizer step, as CommunicationStats counts them.
struct PlannedCommunication {
  std::int64_t gradients = 0;   // fp32
  std::int64_t parameters = 0;  // after the update, or where they are split whenever needed; in the weights' type
  std::int64_t total() const { return gradients + parameters; }
};

// Shares are not rounded up to whole numbers: with t trained tensors the truth is at most 12 t W bytes more; split
// weights begin at multiples of 16 numbers, where less than 16 numbers more a tensor travel each time.
// `num_micro_batches`: of the process with the most. Throws std::invalid_argument for a sharding that DistOptions does
// not know, or a world_size below 1. Memory is planned by train/memory_plan.h.
PlannedCommunication plan_communication(const PlannedTraining& training, std::int64_t world_size,
                                        std::int64_t num_micro_batches);

}  // namespace thinkvg::dist
