#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace thinkvg::models {

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

// Reads a safetensors file through a memory map that the tensors keep alive: no copy is made; do not write to them.
// Throws std::runtime_error naming file and fault (truncated, bad header, unknown dtype, offsets outside the file).
std::map<std::string, at::Tensor> read_safetensors(const std::filesystem::path& file);

// A tensor in another dtype; the same one where it has it already. The memory that reading a tensor of
// read_safetensors() took is given back, so that converting a file's tensors one by one takes the room of the results
// and of one tensor; nobody may have written to it before.
at::Tensor converted(const at::Tensor& tensor, at::ScalarType dtype);

// Writes contiguous CPU copies of the tensors, atomically, with {"format": "pt"} as metadata (transformers asks for
// it). With `dtype` floating-point tensors are converted to it, one at a time; throws std::runtime_error naming a
// tensor that holds a number too large for it.
void write_safetensors(const NamedTensors& tensors, const std::filesystem::path& file,
                       std::optional<at::ScalarType> dtype = {});

// What a folder is to hold, by path inside it.
struct FolderContent {
  std::map<std::string, NamedTensors> tensors;  // safetensors files
  std::map<std::string, std::string> texts;
  std::optional<at::ScalarType> dtype = {};     // what floating-point tensors are converted to while they are written
  std::int64_t max_file_bytes = 5'000'000'000;  // larger weights are written in several files; transformers' limit
};
// Writes it into an existing folder, each file atomically; model.safetensors by split_weights. Files of a model's
// weights that lie there from before and are not written again are removed. A folder that must be the old or the new
// one at every moment is written through write_folder_atomically() (core/files.h).
void write_content(const FolderContent& content, const std::filesystem::path& folder);
// Splits model.safetensors, in the order of its tensors, into model-00001-of-0000N.safetensors, .. with at most
// `max_file_bytes` of data each (a larger tensor has a file of its own) and model.safetensors.index.json, as
// transformers does. What fits into one file stays as it is. Throws std::invalid_argument unless the limit is positive.
FolderContent split_weights(FolderContent content);
// The same content with copies of the tensors on the CPU: what is written later, while the tensors change.
FolderContent copy_content(const FolderContent& content);

}  // namespace thinkvg::models
