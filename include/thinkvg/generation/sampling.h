#pragma once

#include <cstdint>

#include "thinkvg/core/settings.h"

namespace thinkvg::generation {

// How the next token is drawn. In this order, as transformers does it: repetition penalty, banned ids, constraint,
// temperature, top-k, top-p (of what top-k left), min-p.
struct SamplingOptions {
  std::int64_t max_new_tokens = 256;
  double temperature = 1.0;
  std::int64_t top_k = 0;
  double top_p = 1.0;
  double min_p = 0.0;
  double repetition_penalty = 1.0;
  std::int64_t min_new_tokens = 0;

  void visit(SettingsVisitor& v) {
    v.setting("max_new_tokens", max_new_tokens, "A completion is cut behind this many tokens.");
    v.setting("temperature", temperature, "Logits are divided by it; 0 takes the likeliest token.");
    v.setting("top_k", top_k, "Sample among this many likeliest tokens; 0: all.");
    v.setting("top_p", top_p, "Sample among the likeliest tokens that together have this probability.");
    v.setting("min_p", min_p, "Leave out tokens less likely than this times the likeliest one; 0: none.");
    v.setting("repetition_penalty", repetition_penalty,
              "Positive logits of tokens that prompt or answer hold are divided by it, others multiplied; 1: off.");
    v.setting("min_new_tokens", min_new_tokens, "No end before this many tokens.");
  }
  // Throws std::invalid_argument naming the setting.
  void check() const;
};

}  // namespace thinkvg::generation
