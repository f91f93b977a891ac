// No tensors here: settings are read without loading LibTorch.
#include "thinkvg/core/error.h"
#include "thinkvg/models/adapters.h"

namespace thinkvg::models {

void LoraOptions::check() const {
  if (rank < 0) throw_invalid("lora.rank must be 0 (no adapters) or more, but is {}", rank);
  if (rank == 0) return;
  if (!(alpha > 0)) throw_invalid("lora.alpha must be above 0, but is {}", alpha);
  if (!(dropout >= 0 && dropout < 1)) throw_invalid("lora.dropout must be in [0, 1), but is {}", dropout);
  if (target_modules.empty()) throw_invalid("lora.target_modules is empty; give all-linear or names such as q_proj");
  if (parts.empty()) throw_invalid("lora.parts is empty; give some of language, projector, vision");
  for (const std::string& part : parts)
    if (part != "language" && part != "projector" && part != "vision")
      throw_invalid("lora.parts knows language, projector and vision, not '{}'", part);
}

}  // namespace thinkvg::models
