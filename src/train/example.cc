#include "thinkvg/train/example.h"

#include <ATen/Parallel.h>
#include <spdlog/fmt/fmt.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <numeric>

#include "thinkvg/core/error.h"
#include "thinkvg/data/images.h"
#include "thinkvg/data/loader.h"
#include "thinkvg/grounding/response.h"
#include "thinkvg/nn/device.h"
#include "thinkvg/nn/workers.h"

namespace thinkvg::train {

std::shared_ptr<const data::Dataset> open_training_data(const DataOptions& options) { return data::open_data(options); }

std::shared_ptr<const data::Dataset> open_training_data(const DataOptions& options, const std::string& images) {
  const auto dataset =
      data::with_pictures(open_training_data(options), data::ImageFinder(images), options.min_hit_rate);
  if (dataset->size() == 0) throw_failure("{}: none of its questions has a picture below {}", options.path, images);
  return dataset;
}

std::string target_text(const data::Sample& sample, const grounding::ImageGeometry& geometry,
                        const grounding::BoxFrame& to, bool think) {
  std::string text;
  if (think && !sample.think.empty())
    text = "<think>" + grounding::convert_inline_boxes(sample.think, geometry, sample.frame, to) + "</think>";
  std::vector<grounding::Region> regions;
  for (const grounding::Region& region : sample.regions)
    regions.push_back({region.name, geometry.rounded(geometry.convert(region.box, to))});
  return text + grounding::format_response(sample.answer, regions);
}

std::vector<at::Tensor> accumulate_gradients(const models::NamedTensors& parameters, std::int64_t count,
                                             const std::function<at::Tensor(std::int64_t)>& loss) {
  std::vector<at::Tensor> inputs;
  for (const auto& [name, parameter] : parameters) inputs.push_back(parameter);
  const std::int64_t workers = std::min(pass_workers(inputs.front().device()), count);
  std::vector<std::vector<at::Tensor>> sums(static_cast<std::size_t>(workers),
                                            std::vector<at::Tensor>(parameters.size()));
  nn::run_on_workers(workers, [&](std::int64_t worker) {
    std::vector<at::Tensor>& sum = sums[static_cast<std::size_t>(worker)];
    for (std::int64_t i = worker; i < count; i += workers) {
      std::vector<at::Tensor> grads =
          torch::autograd::grad({loss(i)}, inputs, {}, std::nullopt, false, /*allow_unused=*/true);
      for (std::size_t p = 0; p < grads.size(); ++p) {
        if (!grads[p].defined()) continue;
        if (sum[p].defined()) {
          sum[p].add_(grads[p]);
        } else {
          // A gradient may share its memory with another one, or be an expanded number.
          const bool alone = grads[p].scalar_type() == at::kFloat && grads[p].is_contiguous() &&
                             grads[p].use_count() == 1 && grads[p].storage().use_count() == 1;
          sum[p] = alone ? grads[p] : grads[p].to(at::kFloat, false, /*copy=*/true).contiguous();
        }
        grads[p] = at::Tensor();
      }
    }
  });
  std::vector<at::Tensor> total = std::move(sums.front());
  for (std::size_t worker = 1; worker < sums.size(); ++worker) {
    for (std::size_t p = 0; p < total.size(); ++p) {
      const at::Tensor& part = sums[worker][p];
      if (!part.defined()) continue;
      if (total[p].defined())
        total[p].add_(part);
      else
        total[p] = part;
    }
  }
  return total;
}

std::vector<std::pair<std::size_t, std::size_t>> split_by_size(const std::vector<std::int64_t>& sizes,
                                                               std::int64_t limit) {
  std::vector<std::pair<std::size_t, std::size_t>> runs;
  std::size_t begin = 0;
  std::int64_t total = 0;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    if (i > begin && total + sizes[i] > limit) {
      runs.emplace_back(begin, i);
      begin = i;
      total = 0;
    }
    total += sizes[i];
  }
  if (begin < sizes.size()) runs.emplace_back(begin, sizes.size());
  return runs;
}

std::int64_t pass_workers(at::Device device) { return device.is_cpu() ? nn::num_workers() : 1; }

std::string device_text(at::Device device) {
  return device.is_cpu() ? fmt::format("{} threads", at::get_num_threads()) : device.str();
}

Json device_metrics(at::Device device) {
  if (!device.is_cuda()) return Json::object();
  return {{"peak_device_memory", nn::device_memory(device).peak}};
}

std::vector<std::pair<std::size_t, std::size_t>> split_evenly(const std::vector<std::int64_t>& sizes,
                                                              const EvenSplit& split) {
  if (sizes.empty()) return {};
  const auto multiple = [&](std::size_t count) {
    const auto workers = static_cast<std::size_t>(split.workers);
    return std::min(sizes.size(), (count + workers - 1) / workers * workers);
  };
  const std::size_t most = multiple(split_by_size(sizes, split.limit).size());
  // The smallest limit that does not need more runs.
  std::int64_t low = 0, high = split.limit;
  while (low < high) {
    const std::int64_t middle = low + (high - low) / 2;
    if (split_by_size(sizes, middle).size() <= most)
      high = middle;
    else
      low = middle + 1;
  }
  return split_by_size(sizes, low);
}

std::vector<std::int64_t> batch_indices(std::int64_t dataset_size, std::int64_t batch_size, std::int64_t step,
                                        std::uint64_t seed) {
  return data::EpochOrder(dataset_size, batch_size, seed).batch(step);
}

std::vector<std::int64_t> ordered_indices(std::int64_t dataset_size, std::int64_t begin, std::int64_t count,
                                          std::uint64_t seed) {
  data::EpochOrder order(dataset_size, 1, seed);
  std::vector<std::int64_t> indices;
  for (std::int64_t i = begin; i < begin + count; ++i) indices.push_back(order.batch(i).front());
  return indices;
}

}  // namespace thinkvg::train
