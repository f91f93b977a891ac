#pragma once

#include <cstdint>
#include <string>

namespace thinkvg::dist {

// Bytes that a process sends for one collective of `bytes` (of the whole tensor) under ring algorithms, as counted in
// CommunicationStats.
std::int64_t all_reduce_bytes(std::int64_t bytes, std::int64_t world_size);
std::int64_t gather_bytes(std::int64_t bytes, std::int64_t world_size);  // all-gather and reduce-scatter

// What is trained, as far as memory and exchanges between processes depend on it.
struct PlannedTraining {
  std::int64_t num_parameters = 0;  // of the model with its adapters, frozen ones too
  std::int64_t num_trained = 0;
  std::int64_t bytes_per_weight = 4;  // 4: float32, 2: bfloat16
  std::int64_t bucket_mb = 64;        // DistOptions
  std::string sharding = "none";      // DistOptions
};

// Bytes on one process, apart from activations, which do not depend on the number of processes.
struct PlannedMemory {
  std::int64_t weights = 0;
  std::int64_t gradients = 0;  // sums over micro-batches, and those of the present one before they are added
  std::int64_t optimizer = 0;  // two fp32 moments, and fp32 masters of weights that are less
  std::int64_t buckets = 0;    // what is being sent and received
  std::int64_t total() const { return weights + gradients + optimizer + buckets; }
};

// Bytes that one process sends in one optimizer step, as CommunicationStats counts them.
struct PlannedCommunication {
  std::int64_t gradients = 0;   // fp32
  std::int64_t parameters = 0;  // after the update, in the weights' type
  std::int64_t total() const { return gradients + parameters; }
};

// Both round each tensor's share up to whole numbers: with t trained tensors the truth is at most 12 t W bytes more.
// Throws std::invalid_argument for a sharding that DistOptions does not know, or a world_size below 1.
PlannedMemory plan_memory(const PlannedTraining& training, std::int64_t world_size);
// `num_micro_batches`: of the process with the most.
PlannedCommunication plan_communication(const PlannedTraining& training, std::int64_t world_size,
                                        std::int64_t num_micro_batches);

}  // namespace thinkvg::dist
