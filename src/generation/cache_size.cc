#include "generation/cache_size.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

#include "thinkvg/core/error.h"
#include "thinkvg/nn/device.h"
#include "thinkvg/nn/kv_cache.h"

namespace thinkvg::generation {
namespace {

constexpr std::int64_t kMebibyte = std::int64_t{1} << 20;

// Memory that programs can have without others being pushed out; nothing is known where there is no /proc.
std::int64_t free_memory() {
  std::ifstream file("/proc/meminfo");
  std::string name, unit;
  std::int64_t kibibytes = 0;
  while (file >> name >> kibibytes) {
    if (name == "MemAvailable:") return kibibytes * 1024;
    std::getline(file, unit);
  }
  return std::numeric_limits<std::int64_t>::max();
}

}  // namespace

std::int64_t cache_pages(const models::VisionLanguageModel& model, const EngineOptions& options,
                         const CacheDemand& demand) {
  const at::Tensor parameter = model.parameters().front();
  const std::int64_t bytes =
      nn::PagedKvCache::page_bytes({model.num_layers(), 1, model.num_kv_heads(), model.head_dim()},
                                   static_cast<std::int64_t>(parameter.element_size()));
  std::int64_t pages = demand.wanted;
  if (options.cache_mb > 0)
    pages = std::min(pages, options.cache_mb * kMebibyte / bytes / demand.share);
  else if (parameter.device().is_cpu())
    pages = std::min(pages, std::max(free_memory() / 4 / bytes / demand.share, demand.least));
  else if (parameter.device().is_cuda())
    pages = std::min(pages, std::max(nn::device_memory(parameter.device()).free / 2 / bytes, demand.least));
  return std::max<std::int64_t>(1, pages);
}

void check_device(const models::VisionLanguageModel& model, const EngineOptions& options) {
  const at::Device device = model.output_weight().device();
  if (options.exact && !device.is_cpu())
    throw_invalid("engine.exact is for a CPU, but the model is on {}; leave it out, or give --device cpu",
                  device.str());
}

}  // namespace thinkvg::generation
