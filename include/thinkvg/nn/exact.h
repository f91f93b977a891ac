#pragma once

namespace thinkvg::nn {

// While one of these lives, anywhere in the process, forward passes in fp32 on a CPU give each token the same bits
// whatever else is in the pass: alone, in a batch, behind a cached prefix, in training or in decoding. Matrix products,
// attention and norms then add up in a fixed order (Linear, head_token_stats, VisionLanguageModel::logits,
// PackedAttention, PagedAttention). Slower for long passes. Attention inside of vision towers stays as it is: picture
// features are computed once and taken by both sides. Nests; thread-safe.
class ExactForward {
 public:
  ExactForward();
  ~ExactForward();
  ExactForward(const ExactForward&) = delete;
  ExactForward& operator=(const ExactForward&) = delete;
};
bool exact_forward();

}  // namespace thinkvg::nn
