#include "thinkvg/models/sharding.h"

#include <ATen/ATen.h>

#include "thinkvg/core/error.h"
#include "thinkvg/core/json.h"

namespace thinkvg::models {

FolderContent in_shards(FolderContent content, std::int64_t max_bytes) {
  if (max_bytes < 1) throw_invalid("shards of {} bytes; expected a positive number", max_bytes);
  const auto whole = content.tensors.find("model.safetensors");
  if (whole == content.tensors.end()) return content;
  std::int64_t total = 0, filled = 0;
  std::vector<NamedTensors> shards;
  for (const auto& item : whole->second) {
    const auto bytes = static_cast<std::int64_t>(item.second.nbytes());
    if (shards.empty() || filled + bytes > max_bytes) {
      shards.emplace_back();
      filled = 0;
    }
    shards.back().push_back(item);
    filled += bytes;
    total += bytes;
  }
  if (shards.size() < 2) return content;
  content.tensors.erase(whole);
  Json files = Json::object();
  for (std::size_t i = 0; i < shards.size(); ++i) {
    const std::string file = fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
    for (const auto& [name, tensor] : shards[i]) files[name] = file;
    content.tensors[file] = std::move(shards[i]);
  }
  const Json index = {{"metadata", {{"total_size", total}}}, {"weight_map", files}};
  content.texts["model.safetensors.index.json"] = index.dump(2) + "\n";
  return content;
}

}  // namespace thinkvg::models
