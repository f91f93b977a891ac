#pragma once

// Shape letters: T tokens, P image patches before merging, I image tokens after it, D width, N rows, V vocabulary.

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "thinkvg/core/json.h"
#include "thinkvg/models/safetensors.h"
#include "thinkvg/nn/attention.h"
#include "thinkvg/nn/quantized_weight.h"

namespace thinkvg::models {

// A picture's patches: frames x rows x columns, before merging.
struct ImageGrid {
  std::int64_t t = 1;
  std::int64_t h = 0;
  std::int64_t w = 0;
  bool operator==(const ImageGrid&) const = default;
};

// What a vision tower takes: the patches of several pictures, end to end.
struct PixelPatches {
  at::Tensor values;             // [P, channels * frames * patch * patch] float32
  std::vector<ImageGrid> grids;  // one a picture; the sum of t*h*w is P
};

// Ids with a meaning of their own; -1 where a family has none.
struct SpecialTokens {
  std::int64_t image = -1;  // stands for one image feature
  std::int64_t vision_start = -1;
  std::int64_t vision_end = -1;
  std::int64_t pad = -1;
  std::vector<std::int64_t> end;  // any of them ends a completion
};

struct TokenPositions {
  at::Tensor positions;   // [3, T] int64: temporal, height, width axis
  std::int64_t next = 0;  // position (on all axes) of the token that would follow
};

// The parts that are trained, frozen and adapted apart. The projector takes image features to the decoder's width.
enum class ModelPart { vision, projector, language };

// A decoder that reads text and pictures. One device, parameter names equal to the published checkpoint's.
// Forward passes of one instance may run concurrently only under inference (no parameter is being written).
class VisionLanguageModel : public torch::nn::Module {
 public:
  // config.json of the checkpoint.
  virtual const Json& config() const = 0;
  virtual const SpecialTokens& special_tokens() const = 0;
  virtual std::int64_t num_layers() const = 0;
  virtual std::int64_t num_kv_heads() const = 0;
  virtual std::int64_t head_dim() const = 0;
  virtual std::int64_t hidden_size() const = 0;
  virtual std::int64_t vocab_size() const = 0;

  // Number of image tokens a picture of this grid becomes.
  virtual std::int64_t num_image_tokens(const ImageGrid& grid) const = 0;

  // Patches -> image features [I, D].
  virtual at::Tensor encode_images(const PixelPatches& patches) = 0;

  // ids [T] int64 -> [T, D]. Rows `image_rows` [I] int64 are replaced by `image_features` [I, D] (both undefined: text
  // only).
  virtual at::Tensor embed(const at::Tensor& ids, const at::Tensor& image_rows, const at::Tensor& image_features) = 0;

  // embeddings [T, D], positions [3, T] -> hidden states behind the last norm [T, D].
  virtual at::Tensor decode(const at::Tensor& embeddings, const at::Tensor& positions,
                            nn::AttentionContext& attention) = 0;

  // The output head [V, D]; logits are hidden times its transpose. Tied models: the embedding table.
  virtual const at::Tensor& output_weight() const = 0;
  // hidden [N, D] -> logits [N, V], in hidden's dtype.
  at::Tensor logits(const at::Tensor& hidden) const;
  // What logits() takes for the head without gradient: QuantizedLanguage sets it. Null: the head itself.
  void set_quantized_head(std::shared_ptr<const nn::QuantizedWeight> head) { quantized_head_ = std::move(head); }

  // Positions of one sequence: ids with image tokens in place, and the grids of its pictures in order.
  virtual TokenPositions token_positions(const std::vector<std::int64_t>& ids,
                                         const std::vector<ImageGrid>& grids) const = 0;

  // The part that a parameter or module of this name (as registered here) belongs to.
  virtual ModelPart part_of(const std::string& name) const = 0;
  // The name under which this model registers what a checkpoint or adapter calls `name`, and what transformers 5 calls
  // a module or parameter that is registered here as `name`.
  virtual std::string registered_name(const std::string& name) const = 0;
  virtual std::string transformers_name(const std::string& name) const = 0;

  // With it on, forward passes with gradient keep the input of each layer alone and run the layer again in the backward
  // pass (nn/checkpoint.h). Off at first.
  void set_checkpointing(bool on) { checkpointing_ = on; }
  bool checkpointing() const { return checkpointing_; }

 private:
  bool checkpointing_ = false;
  std::shared_ptr<const nn::QuantizedWeight> quantized_head_;
};

// A setting that names a dtype: float32, bfloat16, float16, or `own` for that of the folder. Throws
// std::invalid_argument.
std::optional<at::ScalarType> dtype_setting(const std::string& name, const std::string& own = "");
std::string dtype_name(at::ScalarType type);  // as config.json says it
inline constexpr const char* kDtypeHelp = "Of the weights: float32, bfloat16 or float16; empty: that of the folder.";

// Reads config.json and all weights of a model folder (model.safetensors, or the shards of
// model.safetensors.index.json); tokenizer and processor are read by their own classes. Strict: one
// std::runtime_error lists every missing, unexpected and mis-shaped tensor. An unknown model_type is an error that
// lists the known ones. Parameters keep the file's dtype or are converted to `dtype` one by one, in the room of the
// converted weights and of one tensor. On the CPU those that are not converted are a private view of the files: memory
// is taken when they are read, and pages of their own when they are written; the files must not be changed in place
// meanwhile (what this library writes takes a file's place whole). On another `device` they are copied there one by
// one, and converted there. End and padding ids of generation_config.json, where there is one, go before those of
// config.json.
std::shared_ptr<VisionLanguageModel> load(const std::filesystem::path& folder, std::optional<at::ScalarType> dtype = {},
                                          at::Device device = at::kCPU);

// Builds a model from config.json's content with random weights: matrices normal with standard deviation
// 1 / sqrt(fan_in), embeddings too by the model's width, norms 1, biases 0; deterministic by seed.
std::shared_ptr<VisionLanguageModel> create(const Json& config, std::uint64_t seed);

// config.json, generation_config.json (end and padding ids) and model.safetensors; tied weights once. transformers 5
// opens such a folder as the model's own class.
FolderContent model_content(const VisionLanguageModel& model);
void save(const VisionLanguageModel& model, const std::filesystem::path& folder);

}  // namespace thinkvg::models
