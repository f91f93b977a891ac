#pragma once

// Shape letters: T tokens, N rows that carry loss, D width, V vocabulary.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "thinkvg/data/dataset.h"
#include "thinkvg/generation/question.h"
#include "thinkvg/models/safetensors.h"
#include "thinkvg/train/options.h"

namespace thinkvg::train {

// Opens the data set of a run: the share of patients, then the limit. Throws std::runtime_error when nothing is left,
// or when the set has bad rows: it lists the first of them and says how to see them all.
std::shared_ptr<const data::Dataset> open_training_data(const DataOptions& options);
// The same, less the questions whose picture is not below `images` (data::with_pictures): throws std::runtime_error
// when more are missing than options.min_hit_rate allows.
std::shared_ptr<const data::Dataset> open_training_data(const DataOptions& options, const std::string& images);

// The text that a model is taught to write: <think>..</think><response>..</response>, boxes in the frame `to`.
// Without a reference reasoning, or with `think` off, the response alone.
std::string target_text(const data::Sample& sample, const grounding::ImageGeometry& geometry,
                        const grounding::BoxFrame& to, bool think);

// Log-probabilities of given tokens: hidden [N, D] -> [N] float. Computed in chunks of rows; `banned` ids (int64, may
// be undefined) have no probability; logits are divided by `temperature`.
struct TargetLogProbs {
  at::Tensor log_probs;  // [N]
  at::Tensor entropy;    // [N] of each row's distribution, without gradient
};
struct TargetOptions {
  double temperature = 1.0;
  at::Tensor banned;
  std::int64_t chunk_rows = 2048;
};
TargetLogProbs target_log_probs(models::VisionLanguageModel& model, const at::Tensor& hidden, const at::Tensor& targets,
                                const TargetOptions& options);

// Stops the gradient at the tower's parameters (VisionLanguageModel::vision_prefixes) and returns the others by name.
models::NamedTensors trainable_parameters(models::VisionLanguageModel& model, bool freeze_vision);

// Adds the gradient of `count` independent losses to `parameters`. loss(i) builds the i-th; on a CPU several are built
// and differentiated at the same time, by nn::num_workers() workers. The sums are taken in a fixed order: the same
// number of workers gives the same bits.
void accumulate_gradients(const models::NamedTensors& parameters, std::int64_t count,
                          const std::function<at::Tensor(std::int64_t)>& loss);

// Splits items of given sizes into runs of neighbours whose sizes add up to at most `limit` (one item may exceed it).
std::vector<std::pair<std::size_t, std::size_t>> split_by_size(const std::vector<std::int64_t>& sizes,
                                                               std::int64_t limit);

// The indices of one step: a seeded permutation of the set a pass, without repeats inside a pass.
std::vector<std::int64_t> batch_indices(std::int64_t dataset_size, std::int64_t batch_size, std::int64_t step,
                                        std::uint64_t seed);

}  // namespace thinkvg::train
