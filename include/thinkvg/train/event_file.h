#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "thinkvg/core/files.h"

namespace thinkvg::train {

// Scalars for TensorBoard: a TFRecord file of Event messages (tensorflow/core/util/event.proto). Not thread-safe.
class EventFile {
 public:
  // Makes events.out.tfevents.<time>.<host>.<process> in `folder`. Points of `first_step` and later that earlier files
  // of the folder hold are outdated by it.
  EventFile(const std::filesystem::path& folder, std::int64_t first_step);
  void write(std::int64_t step, const std::vector<std::pair<std::string, double>>& scalars);

 private:
  std::unique_ptr<AppendFile> file_;
};

}  // namespace thinkvg::train
