// No tensors here: settings are read without loading LibTorch.
#include "thinkvg/core/error.h"
#include "thinkvg/generation/rollout_engine.h"

namespace thinkvg::generation {

void SamplingOptions::check() const {
  if (max_new_tokens < 1) throw_invalid("max_new_tokens must be at least 1, but is {}", max_new_tokens);
  if (!(temperature >= 0)) throw_invalid("temperature must be 0 or more, but is {}", temperature);
  if (top_k < 0) throw_invalid("top_k must be 0 (off) or more, but is {}", top_k);
  if (!(top_p > 0 && top_p <= 1)) throw_invalid("top_p must be in (0, 1], but is {}", top_p);
}

}  // namespace thinkvg::generation
