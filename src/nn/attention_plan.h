#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "nn/varlen_attention.h"
#include "thinkvg/nn/attention.h"

namespace thinkvg::nn {

// `count` sequences of `length` tokens each, end to end from token `start`.
struct AttentionRun {
  std::int64_t start = 0;
  std::int64_t length = 0;
  std::int64_t count = 1;
  std::int64_t num_tokens() const { return length * count; }
};

// The tokens of one prefix, and the runs of tokens (whole sequences) that continue it.
struct PrefixGroup {
  std::int64_t start = 0;
  std::int64_t length = 0;
  std::vector<AttentionRun> queries;  // count 1: neighbouring sequences are one range
};

// The work of one attention call, in pieces that can run side by side.
struct AttentionPlan {
  SequenceLayout layout;
  bool causal = true;
  std::int64_t num_tokens = 0;
  std::vector<AttentionRun> runs;
  std::vector<PrefixGroup> groups;

  // Throws as SequenceLayout::check.
  AttentionPlan(SequenceLayout sequences, bool is_causal);

  // For kernels of a device, made once. Thread-safe.
  const VarlenTensors& varlen_on(const at::Device& device) const;

 private:
  mutable std::once_flag varlen_made_;
  mutable VarlenTensors varlen_;
};

// Attention of a plan out of log-sum-exp merged parts; CPU only. Differentiable.
at::Tensor cpu_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                         const std::shared_ptr<const AttentionPlan>& plan);

// The same, one sequence at a time with an explicit mask: any device, and the reference of the fast path's tests.
at::Tensor plain_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                           const AttentionPlan& plan);
// That under a rule.
at::Tensor masked_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                            const AttentionPlan& plan, const MaskRule& rule);

}  // namespace thinkvg::nn
