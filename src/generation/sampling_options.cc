// No tensors here: settings are read without loading LibTorch.
#include "thinkvg/core/error.h"
#include "thinkvg/generation/rollout_engine.h"

namespace thinkvg::generation {

void SamplingOptions::check() const {
  if (max_new_tokens < 1) throw_invalid("max_new_tokens must be at least 1, but is {}", max_new_tokens);
  if (!(temperature >= 0)) throw_invalid("temperature must be 0 or more, but is {}", temperature);
  if (top_k < 0) throw_invalid("top_k must be 0 (off) or more, but is {}", top_k);
  if (!(top_p > 0 && top_p <= 1)) throw_invalid("top_p must be in (0, 1], but is {}", top_p);
  if (!(min_p >= 0 && min_p <= 1)) throw_invalid("min_p must be in [0, 1], but is {}", min_p);
  if (!(repetition_penalty > 0)) throw_invalid("repetition_penalty must be above 0, but is {}", repetition_penalty);
  if (min_new_tokens < 0 || min_new_tokens > max_new_tokens)
    throw_invalid("min_new_tokens must be from 0 to max_new_tokens {}, but is {}", max_new_tokens, min_new_tokens);
}

void EngineOptions::check() const {
  if (max_rows < 1) throw_invalid("max_rows must be at least 1, but is {}", max_rows);
  if (cache_mb < 0) throw_invalid("cache_mb must be 0 (chosen) or more, but is {}", cache_mb);
  if (weights() != nn::Quantization::none && exact)
    throw_invalid("quantization {} and exact exclude each other: quantised weights are not the trainer's; give one",
                  quantization);
}

nn::Quantization EngineOptions::weights() const {
  if (quantization == "none") return nn::Quantization::none;
  if (quantization == "int8") return nn::Quantization::int8;
  if (quantization == "int4") return nn::Quantization::int4;
  throw_invalid("quantization must be none, int8 or int4, but is '{}'", quantization);
}

}  // namespace thinkvg::generation
