#pragma once

// Shape letters: T tokens of all sequences end to end, H query heads, J key/value heads (H a multiple of J), K head
// width.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

namespace thinkvg::nn {

struct AttentionPlan;

// Which tokens of a packed row belong together. Sequence i holds lengths[i] tokens; sequences lie end to end, without
// padding. Where `prefix` is given, sequence i continues sequence prefix[i] < i: its tokens see all tokens of that one,
// besides their own past. prefix[i] = -1: it starts by itself. A prefix must itself start by itself.
struct SequenceLayout {
  // Neighbouring tokens of one sequence, counted in the row.
  struct Block {
    std::int64_t start = 0;
    std::int64_t length = 0;
    bool operator==(const Block&) const = default;
  };

  std::vector<std::int64_t> lengths;
  std::vector<std::int64_t> prefix;  // empty: no sequence has one
  // The image tokens of each picture, in ascending order: what a MaskRule may let see each other.
  std::vector<Block> images = {};

  std::int64_t num_tokens() const;
  // Throws std::invalid_argument naming the first sequence that breaks the rules above.
  void check() const;
};

// How a layer's attention differs from plain causal attention.
struct MaskRule {
  std::int64_t window = 0;    // a token sees itself and the window - 1 tokens before it; 0: its whole past
  bool image_blocks = false;  // tokens of one picture see each other, the later ones too (within the window)
};

// How the queries of one forward pass find their keys: in the pack itself (training, prefill) or in a cache (decoding).
// The model calls attend() once a layer; the same model code serves both.
class AttentionContext {
 public:
  virtual ~AttentionContext() = default;
  // query [T, H, K], key and value [T, J, K], rotary embedding already applied. Returns [T, H, K]. Causal; scores are
  // scaled by 1 / sqrt(K).
  virtual at::Tensor attend(std::int64_t layer, const at::Tensor& query, const at::Tensor& key,
                            const at::Tensor& value) = 0;
  // The same under a rule. Here: attend() for the plain rule, std::invalid_argument for others.
  virtual at::Tensor attend_masked(std::int64_t layer, const at::Tensor& query, const at::Tensor& key,
                                   const at::Tensor& value, const MaskRule& rule);
  // A context with the same effect that may outlive this one and records nothing, for a pass that is repeated
  // (activation checkpointing). Throws std::invalid_argument where a pass cannot be repeated: a decoding cache.
  virtual std::shared_ptr<AttentionContext> repeatable() const;
};

// Causal attention inside each sequence of a pack, and to its prefix. Differentiable. Not thread-safe.
// Sequences are never padded and a prefix is never copied: the parts "own past" and "prefix" are computed apart and
// merged by their log-sum-exp. Any order of sequences is right; those of one prefix side by side are fastest.
class PackedAttention final : public AttentionContext {
 public:
  // Checks the layout (SequenceLayout::check).
  explicit PackedAttention(SequenceLayout layout);
  ~PackedAttention() override;
  std::shared_ptr<AttentionContext> repeatable() const override;
  // Keeps each layer's key and value (detached): what a decoding cache is filled from.
  void record() { record_ = true; }

  at::Tensor attend(std::int64_t layer, const at::Tensor& query, const at::Tensor& key,
                    const at::Tensor& value) override;
  // Sequences that the rule changes are computed one by one with an explicit mask (sliding windows in 16 bit on CUDA:
  // all together), the pack as a whole by attend() where it changes none.
  at::Tensor attend_masked(std::int64_t layer, const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                           const MaskRule& rule) override;

  struct KeyValue {
    at::Tensor key;    // [T, J, K]
    at::Tensor value;  // [T, J, K]
  };
  // One entry a layer after a recorded pass.
  const std::vector<KeyValue>& recorded() const { return recorded_; }

 private:
  explicit PackedAttention(std::shared_ptr<const AttentionPlan> plan);
  void record_layer(std::int64_t layer, const at::Tensor& key, const at::Tensor& value);

  std::shared_ptr<const AttentionPlan> plan_;
  bool record_ = false;
  std::vector<KeyValue> recorded_;
};

// Attention without a mask inside each block of a pack: vision towers. query, key, value [T, H, K]; block i holds
// lengths[i] tokens. Returns [T, H, K]. Differentiable.
at::Tensor block_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                           const std::vector<std::int64_t>& lengths);

}  // namespace thinkvg::nn
