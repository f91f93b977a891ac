#pragma once

#include <cstdint>
#include <string>

#include "thinkvg/core/settings.h"

namespace thinkvg::dist {

// How several processes work together. Times are in seconds.
struct DistOptions {
  std::string sharding = "none";
  std::int64_t shard_size = 0;
  std::string rollout_weights = "auto";
  std::string backend = "auto";
  std::int64_t bucket_mb = 64;
  double start_timeout = 300;
  double heartbeat_timeout = 60;
  double timeout = 600;
  bool check_collectives = true;

  void visit(SettingsVisitor& v) {
    v.setting("sharding", sharding,
              "What of training each process keeps a share of only: none, optimizer (ZeRO 1: states and masters), "
              "gradients (ZeRO 2: their sums over micro-batches, too) or parameters (ZeRO 3: the weights, too; each "
              "layer's are fetched while it computes).");
    v.setting(
        "shard_size", shard_size,
        "Neighbouring processes that split among themselves what `sharding` says; other such groups hold the same "
        "and exchange sums of gradients alone (hybrid sharding: the processes of a node). 0: all processes.");
    v.setting(
        "rollout_weights", rollout_weights,
        "Where the weights are split: what generates and evaluates has them whole (the fastest), or by_layer, each "
        "layer fetched for every token of all processes and dropped again (for models that no device has room "
        "for); auto: whole where each process has room for twice as much.");
    v.setting(
        "backend", backend,
        "What carries tensors of a device: nccl, gloo (by way of the CPU: slower, but processes may share a GPU) or "
        "auto, NCCL for GPUs. Tensors of the CPU go by Gloo.");
    v.setting("bucket_mb", bucket_mb, "Megabytes of gradients that are sent together.");
    v.setting("start_timeout", start_timeout, "Seconds for all processes to join.");
    v.setting("heartbeat_timeout", heartbeat_timeout,
              "Seconds after which a process that gives no sign of life (killed, stopped, host lost) ends the job.");
    v.setting("timeout", timeout,
              "Seconds that others wait for a process that lives but is late, before it ends the job; raise it where "
              "one may well take longer, such as for a large checkpoint or an evaluation.");
    v.setting("check_collectives", check_collectives,
              "Compare name, shape and type of each exchange over all processes first, so that processes that took "
              "different ways are told apart in place of a hang or a wrong sum.");
  }
  // Throws std::invalid_argument naming the setting.
  void check() const;
  // Of so many processes, those that split something among themselves. Throws where shard_size does not divide them.
  std::int64_t processes_a_shard(std::int64_t world_size) const;
};

}  // namespace thinkvg::dist
