#pragma once

// Plain C++, so that the kernel's source needs no LibTorch headers and can be compiled for several instruction sets.

#include <cstdint>

namespace thinkvg::nn::cpu {

// Rows of logits: `data` of fp32 or bf16 bits, `row_stride` in elements.
struct LogitRows {
  const void* data = nullptr;
  bool is_bf16 = false;
  std::int64_t num_classes = 0;
  std::int64_t row_stride = 0;
  const std::int64_t* targets = nullptr;
  float inverse_temperature = 1;
};

struct StatRows {
  float* logprob = nullptr;
  float* logsumexp = nullptr;
  float* entropy = nullptr;
};

// gradient_j = inverse_temperature (p_j (base + slope log p_j) + [j = target] target_weight), one of each a row.
struct GradientRows {
  const float* logsumexp = nullptr;
  const float* base = nullptr;
  const float* slope = nullptr;
  const float* target_weight = nullptr;
  void* gradient = nullptr;  // contiguous, type of the logits
};

// Both handle the rows [begin, end).
void token_stats(const LogitRows& logits, std::int64_t begin, std::int64_t end, const StatRows& stats);
void token_stats_gradient(const LogitRows& logits, std::int64_t begin, std::int64_t end, const GradientRows& rows);

}  // namespace thinkvg::nn::cpu
