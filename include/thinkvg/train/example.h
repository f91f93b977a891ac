#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "thinkvg/core/json.h"
#include "thinkvg/data/dataset.h"
#include "thinkvg/grounding/geometry.h"
#include "thinkvg/models/safetensors.h"
#include "thinkvg/train/options.h"

namespace thinkvg::train {

// Opens the data set of a run, as data::open_data.
std::shared_ptr<const data::Dataset> open_training_data(const DataOptions& options);
// The same, less the questions whose picture is not below `images` (data::with_pictures): throws std::runtime_error
// when more are missing than options.min_hit_rate allows.
std::shared_ptr<const data::Dataset> open_training_data(const DataOptions& options, const std::string& images);

// The text that a model is taught to write: <think>..</think><response>..</response>, boxes in the frame `to`.
// Without a reference reasoning, or with `think` off, the response alone.
std::string target_text(const data::Sample& sample, const grounding::ImageGeometry& geometry,
                        const grounding::BoxFrame& to, bool think);

// The sum of the gradients of `count` independent losses, one tensor a parameter (undefined where no loss reaches it),
// summed in fp32. loss(i) builds the i-th; on a CPU several are built and differentiated at the same time, by
// nn::num_workers() workers. The sums are taken in a fixed order: the same number of workers gives the same bits.
std::vector<at::Tensor> accumulate_gradients(const models::NamedTensors& parameters, std::int64_t count,
                                             const std::function<at::Tensor(std::int64_t)>& loss);

// Splits items of given sizes into runs of neighbours whose sizes add up to at most `limit` (one item may exceed it).
std::vector<std::pair<std::size_t, std::size_t>> split_by_size(const std::vector<std::int64_t>& sizes,
                                                               std::int64_t limit);

// How a step's work is cut into passes: each of at most `limit` tokens, their number a multiple of `workers` where
// there are items enough, so that none waits for the others.
struct EvenSplit {
  std::int64_t limit = 0;
  std::int64_t workers = 1;
};
// What computes passes side by side on a device: nn::num_workers() on a CPU, one elsewhere.
std::int64_t pass_workers(at::Device device);

// For a line of a run's log: "2 threads", "cuda:0".
std::string device_text(at::Device device);
// What a step's metrics say of a GPU: peak_device_memory, bytes of this process. Empty for other devices.
Json device_metrics(at::Device device);
// Runs of neighbours, as split_by_size makes them, with the largest as small as their number allows.
std::vector<std::pair<std::size_t, std::size_t>> split_evenly(const std::vector<std::int64_t>& sizes,
                                                              const EvenSplit& split);

// `count` indices from place `begin` of an endless order: a seeded permutation of the set a pass, without repeats
// inside a pass.
std::vector<std::int64_t> ordered_indices(std::int64_t dataset_size, std::int64_t begin, std::int64_t count,
                                          std::uint64_t seed);
// The indices of one step of batch_size.
std::vector<std::int64_t> batch_indices(std::int64_t dataset_size, std::int64_t batch_size, std::int64_t step,
                                        std::uint64_t seed);

}  // namespace thinkvg::train
