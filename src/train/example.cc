#include "thinkvg/train/example.h"

#include <torch/csrc/autograd/autograd.h>

#include <numeric>

#include "thinkvg/core/error.h"
#include "thinkvg/data/images.h"
#include "thinkvg/data/loader.h"
#include "thinkvg/grounding/response.h"
#include "thinkvg/nn/token_stats.h"
#include "thinkvg/nn/workers.h"

namespace thinkvg::train {

std::shared_ptr<const data::Dataset> open_training_data(const DataOptions& options) {
  std::shared_ptr<const data::Dataset> dataset = data::open_dataset(options.path);
  const auto& bad = dataset->bad_rows();
  if (!bad.empty()) {
    std::string shown;
    for (std::size_t i = 0; i < std::min<std::size_t>(3, bad.size()); ++i)
      shown += fmt::format("\n  row {}: {}", bad[i].row, bad[i].reason);
    throw_failure("{} has {} unusable rows of {}; mend or remove them first:{}", options.path, bad.size(),
                  dataset->size() + static_cast<std::int64_t>(bad.size()), shown);
  }
  if (options.fraction < 1.0 || options.complement)
    dataset = data::patient_fraction(dataset, options.fraction, static_cast<std::uint64_t>(options.split_seed),
                                     options.complement);
  if (options.limit > 0 && options.limit < dataset->size()) {
    std::vector<std::int64_t> first(static_cast<std::size_t>(options.limit));
    std::iota(first.begin(), first.end(), 0);
    dataset = data::select(dataset, first);
  }
  if (dataset->size() == 0) throw_failure("{}: no question is left after data.fraction and data.limit", options.path);
  return dataset;
}

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

TargetLogProbs target_log_probs(models::VisionLanguageModel& model, const at::Tensor& hidden, const at::Tensor& targets,
                                const TargetOptions& options) {
  std::vector<at::Tensor> log_probs, entropies;
  for (std::int64_t begin = 0; begin < hidden.size(0); begin += options.chunk_rows) {
    const std::int64_t rows = std::min(options.chunk_rows, hidden.size(0) - begin);
    at::Tensor logits = model.logits(hidden.narrow(0, begin, rows));
    if (options.banned.defined())
      logits = logits.index_fill(1, options.banned, -std::numeric_limits<float>::infinity());
    const nn::TokenStats stats = nn::token_stats(logits, targets.narrow(0, begin, rows), options.temperature);
    log_probs.push_back(stats.logprob);
    entropies.push_back(stats.entropy.detach());
  }
  return {at::cat(log_probs, 0), at::cat(entropies, 0)};
}

models::NamedTensors trainable_parameters(models::VisionLanguageModel& model, bool freeze_vision) {
  models::NamedTensors trained;
  const std::vector<std::string> prefixes = model.vision_prefixes();
  for (const auto& item : model.named_parameters()) {
    bool frozen = false;
    if (freeze_vision)
      for (const std::string& prefix : prefixes) frozen |= item.key().starts_with(prefix);
    item.value().set_requires_grad(!frozen);
    if (!frozen) trained.emplace_back(item.key(), item.value());
  }
  return trained;
}

void accumulate_gradients(const models::NamedTensors& parameters, std::int64_t count,
                          const std::function<at::Tensor(std::int64_t)>& loss) {
  std::vector<at::Tensor> inputs;
  for (const auto& [name, parameter] : parameters) inputs.push_back(parameter);
  const bool on_cpu = inputs.front().device().is_cpu();
  const std::int64_t workers = on_cpu ? std::min(nn::num_workers(), count) : 1;
  std::vector<std::vector<at::Tensor>> sums(static_cast<std::size_t>(workers));
  nn::run_on_workers(workers, [&](std::int64_t worker) {
    std::vector<at::Tensor>& sum = sums[static_cast<std::size_t>(worker)];
    for (std::int64_t i = worker; i < count; i += workers) {
      const std::vector<at::Tensor> grads =
          torch::autograd::grad({loss(i)}, inputs, {}, std::nullopt, false, /*allow_unused=*/true);
      if (sum.empty()) sum.resize(grads.size());
      for (std::size_t p = 0; p < grads.size(); ++p) {
        if (!grads[p].defined()) continue;
        if (sum[p].defined())
          sum[p].add_(grads[p]);
        else
          sum[p] = grads[p].clone();
      }
    }
  });
  for (const std::vector<at::Tensor>& sum : sums) {
    for (std::size_t p = 0; p < sum.size(); ++p) {
      if (!sum[p].defined()) continue;
      at::Tensor& grad = inputs[p].mutable_grad();
      if (grad.defined())
        grad.add_(sum[p]);
      else
        grad = sum[p];
    }
  }
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

std::vector<std::int64_t> batch_indices(std::int64_t dataset_size, std::int64_t batch_size, std::int64_t step,
                                        std::uint64_t seed) {
  return data::EpochOrder(dataset_size, batch_size, seed).batch(step);
}

}  // namespace thinkvg::train
