#pragma once

#include <functional>

#include "thinkvg/train/memory_plan.h"
#include "thinkvg/train/sft.h"

namespace thinkvg::train {

// Runs `body`. Where memory runs out in it, of the machine or of a device, std::runtime_error says so with what was
// asked for and the settings that lower the need (memory_advice); other exceptions go on.
void explaining_memory(const MemoryLevers& levers, const std::function<void()>& body);

MemoryLevers memory_levers(const SftOptions& options);

}  // namespace thinkvg::train
