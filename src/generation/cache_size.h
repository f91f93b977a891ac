#pragma once

#include <cstdint>

#include "thinkvg/generation/rollout_engine.h"

namespace thinkvg::generation {

// How many pages of keys and values an engine takes.
struct CacheDemand {
  std::int64_t wanted = 0;  // pages with which nothing ever waits
  std::int64_t least = 0;   // pages that one completion needs: without them nothing can run
  std::int64_t share = 1;   // engines that share the memory
};
// From options.cache_mb, or else from what is free. At least 1.
std::int64_t cache_pages(const models::VisionLanguageModel& model, const EngineOptions& options,
                         const CacheDemand& demand);

// Throws std::invalid_argument for options that this model's device does not offer.
void check_device(const models::VisionLanguageModel& model, const EngineOptions& options);

}  // namespace thinkvg::generation
