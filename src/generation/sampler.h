#pragma once

// Shape letters: V vocabulary.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "thinkvg/core/random.h"
#include "thinkvg/generation/rollout_engine.h"
#include "thinkvg/generation/sampling.h"
#include "thinkvg/text/token_constraint.h"

namespace thinkvg::generation {

struct SampledToken {
  std::int64_t id = 0;
  float logprob = 0;
  TopLogprobs top;
};

// Draws the tokens of one completion. What it draws depends on its settings, the logits, its own random stream and its
// own tokens.
class Sampler {
 public:
  struct Settings {
    SamplingOptions sampling;
    std::vector<std::int64_t> banned;  // all of them
    std::vector<std::int64_t> end_ids;
    std::int64_t num_top = 0;
    std::shared_ptr<const text::TokenConstraint> constraint;
  };
  // `settings` is shared by the completions of a request. `prompt`: for the repetition penalty.
  Sampler(std::shared_ptr<const Settings> settings, std::span<const std::int64_t> prompt, RandomStream random);

  // Draws from a row of raw logits [V], which it changes. Nothing where no id is left.
  std::optional<SampledToken> draw(std::span<float> logits);

 private:
  void mask(std::span<float> logits) const;
  void note(std::int64_t id);

  std::shared_ptr<const Settings> settings_;
  RandomStream random_;
  text::TokenConstraint::State state_ = 0;
  std::int64_t num_drawn_ = 0;
  std::vector<std::int64_t> seen_;  // ids of prompt and answer, each once
  std::vector<std::uint64_t> seen_bits_;
};

}  // namespace thinkvg::generation
