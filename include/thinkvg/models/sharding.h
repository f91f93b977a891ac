#pragma once

#include <cstdint>

#include "thinkvg/models/safetensors.h"

namespace thinkvg::models {

// As transformers: files of up to 5 GB.
constexpr std::int64_t kLargestShard = 5'000'000'000;

// A model's content with its model.safetensors in several files where it is larger than `max_bytes`:
// model-00001-of-0000N.safetensors in the order of the tensors, each with as many as fit (at least one), and
// model.safetensors.index.json, as transformers writes and reads them. Throws std::invalid_argument unless max_bytes is
// positive.
FolderContent in_shards(FolderContent content, std::int64_t max_bytes);

}  // namespace thinkvg::models
