#include "thinkvg/dist/plan.h"

#include "thinkvg/core/error.h"
#include "thinkvg/dist/options.h"

namespace thinkvg::dist {
namespace {

constexpr std::int64_t kFloatBytes = 4;

void check(const PlannedTraining& training, std::int64_t world_size) {
  DistOptions options;
  options.sharding = training.sharding;
  options.check();
  if (world_size < 1) throw_invalid("a plan needs at least one process, not {}", world_size);
}

}  // namespace

std::int64_t all_reduce_bytes(std::int64_t bytes, std::int64_t world_size) {
  return 2 * gather_bytes(bytes, world_size);
}
std::int64_t gather_bytes(std::int64_t bytes, std::int64_t world_size) { return bytes / world_size * (world_size - 1); }

PlannedCommunication plan_communication(const PlannedTraining& training, std::int64_t world_size,
                                        std::int64_t num_micro_batches) {
  check(training, world_size);
  const std::int64_t gradients = kFloatBytes * training.num_trained;
  PlannedCommunication communication;
  if (training.sharding == "none") {
    communication.gradients = all_reduce_bytes(gradients, world_size);
    return communication;
  }
  communication.gradients = gather_bytes(gradients, world_size);
  if (training.sharding != "optimizer") communication.gradients *= num_micro_batches;
  if (training.sharding == "parameters") {
    const SplitWeights& split = training.split;
    const std::int64_t fetched =
        split.outside + num_micro_batches * (split.in_blocks + split.backward) + training.whole_fetches * split.total();
    communication.parameters = gather_bytes(training.bytes_per_weight * fetched, world_size);
    return communication;
  }
  communication.parameters = gather_bytes(training.bytes_per_weight * training.num_trained, world_size);
  return communication;
}

}  // namespace thinkvg::dist
