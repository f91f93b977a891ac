#pragma once

// Shape letters: T tokens of a pass, N pages, P tokens a page, H query heads, J key/value heads, K head width.

#include <ATen/core/Tensor.h>
#include <c10/core/TensorOptions.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "thinkvg/nn/attention.h"

namespace thinkvg::nn {

// Keys and values in pages of kPageTokens tokens each. Which page belongs to whom is the caller's business (a page
// table a sequence: token t lies in page pages[t / kPageTokens]); several sequences may read the same page. Not
// thread-safe.
class PagedKvCache {
 public:
  static constexpr std::int64_t kPageTokens = 16;  // P

  struct Shape {
    std::int64_t num_layers = 0;
    std::int64_t num_pages = 0;  // N
    std::int64_t num_kv_heads = 0;
    std::int64_t head_dim = 0;
  };
  // On a CPU the memory is taken, but not touched before it is written; elsewhere it is filled with 0.
  PagedKvCache(const Shape& shape, const at::TensorOptions& options);

  // Of one page over all layers.
  static std::int64_t page_bytes(const Shape& shape, std::int64_t bytes_per_number);
  static std::int64_t pages_for(std::int64_t num_tokens) { return (num_tokens + kPageTokens - 1) / kPageTokens; }

  // All layers of page `from` to page `to`.
  void copy_page(std::int64_t from, std::int64_t to);

  const Shape& shape() const { return shape_; }
  // Keys lie dimension by dimension, so that the scores of a page's tokens are computed side by side.
  const at::Tensor& keys(std::int64_t layer) const { return keys_[static_cast<std::size_t>(layer)]; }  // [N, J, K, P]
  const at::Tensor& values(std::int64_t layer) const {                                                 // [N, J, P, K]
    return values_[static_cast<std::size_t>(layer)];
  }

 private:
  Shape shape_;
  std::vector<at::Tensor> keys_;
  std::vector<at::Tensor> values_;
};

// A sequence's part in a pass: tokens [past, past + its length in the pass's layout) of it are computed; those before
// lie in its pages already. The pages reach to the last of the new tokens.
struct PagedSequence {
  std::vector<std::int64_t> pages;
  std::int64_t past = 0;
};

// One pass over a paged cache, for prompts (many tokens a sequence) and for decoding steps (one token a sequence), in
// any mixture. attend() writes the new keys and values into the pages and attends to all tokens of the sequence so far.
// Inference only. On a CPU, rows of fp32 and bf16 are computed by own kernels; elsewhere by ATen. Where sequences share
// their first pages (completions of one prompt, questions about one picture), the kernels read those once for many
// rows.
class PagedAttention final : public AttentionContext {
 public:
  // layout.lengths[i] tokens belong to sequences[i]; the layout has no prefixes. `cache` must outlive this object.
  // Throws std::invalid_argument where pages are missing.
  PagedAttention(PagedKvCache& cache, std::vector<PagedSequence> sequences, SequenceLayout layout);
  at::Tensor attend(std::int64_t layer, const at::Tensor& query, const at::Tensor& key,
                    const at::Tensor& value) override;
  // The layout's images are those of the new tokens.
  at::Tensor attend_masked(std::int64_t layer, const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                           const MaskRule& rule) override;

 private:
  void write(std::int64_t layer, const at::Tensor& key, const at::Tensor& value);
  // Tokens of sequences that begin with the same pages.
  struct RowBlock {
    std::vector<std::int64_t> tokens;
    std::int64_t num_shared;  // pages, full in all of them
  };
  void group_rows(std::int64_t num_heads, std::int64_t group);
  at::Tensor attend_rows(std::int64_t layer, const at::Tensor& query, std::int64_t window);
  at::Tensor attend_sequence(std::int64_t layer, const at::Tensor& query, std::size_t sequence,
                             const MaskRule& rule) const;
  at::Tensor attend_together(std::int64_t layer, const at::Tensor& query, std::int64_t window);

  PagedKvCache& cache_;
  std::vector<PagedSequence> sequences_;
  SequenceLayout layout_;
  std::vector<std::int64_t> starts_;       // first token of each sequence in the pass
  std::vector<std::int64_t> sequence_of_;  // of each token
  std::vector<std::int64_t> place_of_;     // of each token in its sequence
  std::vector<std::int64_t> slots_;        // of each token among those of all pages
  std::int64_t longest_ = 0;               // tokens that the last token of a sequence sees
  bool single_tokens_ = true;              // all sequences have one token
  std::vector<RowBlock> blocks_;           // made by the first layer that computes by rows
  // On the device, made by the first layer that needs them.
  at::Tensor device_pages_, device_slots_;   // of each token's place: its page and its slot there
  at::Tensor tables_, places_;               // [sequences x pages] of the longest; [pages * P], counted
  at::Tensor last_places_;                   // [sequences, 1]
  std::unique_ptr<PackedAttention> packed_;  // where no sequence has a past
};

}  // namespace thinkvg::nn
