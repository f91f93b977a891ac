#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace thinkvg::models {

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

// Reads a safetensors file through a memory map that the tensors keep alive: no copy is made; do not write to them.
// Throws std::runtime_error naming file and fault (truncated, bad header, unknown dtype, offsets outside the file).
std::map<std::string, at::Tensor> read_safetensors(const std::filesystem::path& file);

// Writes contiguous CPU copies of the tensors, atomically, with {"format": "pt"} as metadata (transformers asks for
// it).
void write_safetensors(const NamedTensors& tensors, const std::filesystem::path& file);

// What a folder is to hold, by path inside it.
struct FolderContent {
  std::map<std::string, NamedTensors> tensors;  // safetensors files
  std::map<std::string, std::string> texts;
};
// Writes it into an existing folder, each file atomically.
void write_content(const FolderContent& content, const std::filesystem::path& folder);
// The same with copies of the tensors on the CPU: what is written later, while the tensors change.
FolderContent copy_content(const FolderContent& content);

}  // namespace thinkvg::models
