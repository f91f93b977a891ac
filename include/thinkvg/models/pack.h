#pragma once

// Shape letters: T tokens, I image tokens, D width.

#include <cstdint>
#include <vector>

#include "thinkvg/models/vision_language_model.h"

namespace thinkvg::models {

// Several sequences end to end, as one forward pass takes them.
struct Pack {
  at::Tensor ids;             // [T] int64
  at::Tensor positions;       // [3, T] int64
  at::Tensor image_rows;      // [I] int64; undefined without pictures
  at::Tensor image_features;  // [I, D]; undefined without pictures
  nn::SequenceLayout layout;
};

class PackBuilder {
 public:
  struct Sequence {
    std::vector<std::int64_t> ids;
    at::Tensor positions;                    // [3, length]
    std::vector<std::int64_t> image_rows;    // places in `ids`
    std::vector<at::Tensor> image_features;  // one a picture
    std::int64_t prefix = -1;                // index of the sequence that this one continues
  };
  // Returns the row of its first token; its index is the number of sequences added before.
  std::int64_t add(const Sequence& sequence);
  std::int64_t num_tokens() const { return static_cast<std::int64_t>(ids_.size()); }
  std::int64_t num_sequences() const { return static_cast<std::int64_t>(layout_.lengths.size()); }
  Pack build(at::Device device) const;

 private:
  std::vector<std::int64_t> ids_;
  std::vector<at::Tensor> positions_;
  std::vector<std::int64_t> image_rows_;
  std::vector<at::Tensor> image_features_;
  nn::SequenceLayout layout_;
};

// Positions of tokens that continue a text: the same number on the three axes, counted from `first`. [3, length]
at::Tensor text_positions(std::int64_t first, std::int64_t length);

// Hidden states behind the last norm [T, D].
at::Tensor run_pack(VisionLanguageModel& model, const Pack& pack, nn::AttentionContext& attention);

// Ids that a completion never holds, in sampling and in log-probs: the image token and the markers around it.
std::vector<std::int64_t> banned_ids(const SpecialTokens& special);

}  // namespace thinkvg::models
