#include "thinkvg/dist/options.h"

#include <utility>

#include "thinkvg/core/error.h"

namespace thinkvg::dist {

void DistOptions::check() const {
  if (sharding != "none" && sharding != "optimizer" && sharding != "gradients" && sharding != "parameters")
    throw_invalid("dist.sharding must be none, optimizer, gradients or parameters, but is '{}'", sharding);
  if (backend != "auto" && backend != "nccl" && backend != "gloo")
    throw_invalid("dist.backend must be auto, nccl or gloo, but is '{}'", backend);
  if (bucket_mb < 1) throw_invalid("dist.bucket_mb must be at least 1, but is {}", bucket_mb);
  for (const auto& [name, value] : {std::pair<const char*, double>{"start_timeout", start_timeout},
                                    {"heartbeat_timeout", heartbeat_timeout},
                                    {"timeout", timeout}})
    if (!(value > 0)) throw_invalid("dist.{} must be above 0 seconds, but is {}", name, value);
}

}  // namespace thinkvg::dist
