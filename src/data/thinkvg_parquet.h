#pragma once

#include <filesystem>
#include <memory>

#include "thinkvg/data/dataset.h"

namespace thinkvg::data {

// The ThinkVG release: texts stay in memory as in the file, a row is parsed when it is asked for.
std::unique_ptr<Dataset> open_thinkvg_parquet(const std::filesystem::path& file);

}  // namespace thinkvg::data
