#include "thinkvg/dist/options.h"

#include <utility>

#include "thinkvg/core/error.h"

namespace thinkvg::dist {

void DistOptions::check() const {
  if (sharding != "none" && sharding != "optimizer" && sharding != "gradients" && sharding != "parameters")
    throw_invalid("dist.sharding must be none, optimizer, gradients or parameters, but is '{}'", sharding);
  if (rollout_weights != "auto" && rollout_weights != "whole" && rollout_weights != "by_layer")
    throw_invalid("dist.rollout_weights must be auto, whole or by_layer, but is '{}'", rollout_weights);
  if (backend != "auto" && backend != "nccl" && backend != "gloo")
    throw_invalid("dist.backend must be auto, nccl or gloo, but is '{}'", backend);
  if (shard_size < 0) throw_invalid("dist.shard_size must be 0 or more, but is {}", shard_size);
  if (shard_size > 0 && sharding == "none")
    throw_invalid(
        "dist.shard_size is {}, but dist.sharding none splits nothing; give optimizer, gradients or parameters",
        shard_size);
  if (bucket_mb < 1) throw_invalid("dist.bucket_mb must be at least 1, but is {}", bucket_mb);
  for (const auto& [name, value] : {std::pair<const char*, double>{"start_timeout", start_timeout},
                                    {"heartbeat_timeout", heartbeat_timeout},
                                    {"timeout", timeout}})
    if (!(value > 0)) throw_invalid("dist.{} must be above 0 seconds, but is {}", name, value);
}

std::int64_t DistOptions::processes_a_shard(std::int64_t world_size) const {
  if (shard_size == 0 || sharding == "none" || world_size == 1) return world_size;
  if (shard_size > world_size || world_size % shard_size != 0)
    throw_invalid("dist.shard_size {} must divide the number of processes, {}", shard_size, world_size);
  return shard_size;
}

}  // namespace thinkvg::dist
