#include "generation/cache_size.h"

#include <algorithm>

#include "thinkvg/core/error.h"
#include "thinkvg/nn/device.h"
#include "thinkvg/nn/kv_cache.h"

namespace thinkvg::generation {
namespace {

constexpr std::int64_t kMebibyte = std::int64_t{1} << 20;

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
    pages = std::min(pages, std::max(nn::free_memory(parameter.device()) / 4 / bytes / demand.share, demand.least));
  else if (parameter.device().is_cuda())
    pages = std::min(pages, std::max(nn::free_memory(parameter.device()) / 2 / bytes, demand.least));
  return std::max<std::int64_t>(1, pages);
}

void check_device(const models::VisionLanguageModel& model, const EngineOptions& options) {
  const at::Device device = model.output_weight().device();
  if (options.exact && !device.is_cpu())
    throw_invalid("engine.exact is for a CPU, but the model is on {}; leave it out, or give --device cpu",
                  device.str());
}

}  // namespace thinkvg::generation
