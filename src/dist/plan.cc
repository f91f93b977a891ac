#include "thinkvg/dist/plan.h"

#include "thinkvg/core/error.h"
#include "thinkvg/dist/options.h"

namespace thinkvg::dist {
namespace {

constexpr std::int64_t kFloatBytes = 4;

// The processes of a shard.
std::int64_t check(const PlannedTraining& training, std::int64_t world_size) {
  DistOptions options;
  options.sharding = training.sharding;
  options.shard_size = training.shard_size;
  options.check();
  if (world_size < 1) throw_invalid("a plan needs at least one process, not {}", world_size);
  return options.processes_a_shard(world_size);
}

}  // namespace

std::int64_t all_reduce_bytes(std::int64_t bytes, std::int64_t world_size) {
  return 2 * gather_bytes(bytes, world_size);
}
std::int64_t gather_bytes(std::int64_t bytes, std::int64_t world_size) { return bytes / world_size * (world_size - 1); }

PlannedCommunication plan_communication(const PlannedTraining& training, std::int64_t world_size,
                                        std::int64_t num_micro_batches) {
  const std::int64_t shard = check(training, world_size), replicas = world_size / shard;
  const std::int64_t gradients = kFloatBytes * training.num_trained;
  PlannedCommunication communication;
  if (training.sharding == "none") {
    communication.gradients = all_reduce_bytes(gradients, world_size);
    return communication;
  }
  communication.gradients = gather_bytes(gradients, shard);
  if (training.sharding != "optimizer") communication.gradients *= num_micro_batches;
  // Its own part of the sums, with those that hold the same: of split weights once a step.
  const std::int64_t exchanges = training.sharding == "gradients" ? num_micro_batches : 1;
  communication.gradients += exchanges * all_reduce_bytes(gradients / shard, replicas);
  if (training.sharding == "parameters") {
    const SplitWeights& split = training.split;
    std::int64_t fetched =
        split.outside + num_micro_batches * (split.in_blocks + split.backward) + training.whole_fetches * split.total();
    if (training.layer_passes > 0)
      fetched += split.outside + split.in_tower + training.layer_passes * (split.in_blocks - split.in_tower);
    communication.parameters = gather_bytes(training.bytes_per_weight * fetched, shard);
    return communication;
  }
  communication.parameters = gather_bytes(training.bytes_per_weight * training.num_trained, shard);
  return communication;
}

}  // namespace thinkvg::dist
