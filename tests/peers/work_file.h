#pragma once

// Prompts that tests/peers/decode_speed.py wrote: prompt_<i> [T] int64 and, where prompt i has a picture, pixels_<i>
// [P, C] and grid_<i> [3].

#include <ATen/ATen.h>

#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include "thinkvg/models/safetensors.h"
#include "thinkvg/models/vision_language_model.h"

namespace thinkvg::peers {

struct Work {
  std::vector<std::int64_t> ids;
  models::PixelPatches patches;  // undefined values: text alone
};

inline std::vector<Work> read_work(const std::string& file) {
  const auto tensors = models::read_safetensors(file);
  std::vector<Work> list;
  while (tensors.contains("prompt_" + std::to_string(list.size()))) {
    const std::string number = std::to_string(list.size());
    const at::Tensor ids = tensors.at("prompt_" + number).contiguous();
    Work work{{ids.const_data_ptr<std::int64_t>(), ids.const_data_ptr<std::int64_t>() + ids.numel()}, {}};
    if (tensors.contains("pixels_" + number)) {
      const at::Tensor grid = tensors.at("grid_" + number);
      work.patches.values = tensors.at("pixels_" + number).clone();
      work.patches.grids = {{grid[0].item<std::int64_t>(), grid[1].item<std::int64_t>(), grid[2].item<std::int64_t>()}};
    }
    list.push_back(std::move(work));
  }
  return list;
}

inline std::vector<std::int64_t> image_rows(const Work& work, std::int64_t image_token) {
  std::vector<std::int64_t> rows;
  for (std::size_t t = 0; t < work.ids.size(); ++t)
    if (work.ids[t] == image_token) rows.push_back(static_cast<std::int64_t>(t));
  return rows;
}

inline double seconds_of(const std::function<void()>& action) {
  const auto start = std::chrono::steady_clock::now();
  action();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

inline at::ScalarType dtype_of(const std::string& name) { return name == "bfloat16" ? at::kBFloat16 : at::kFloat; }

}  // namespace thinkvg::peers
