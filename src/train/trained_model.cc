#include "thinkvg/train/trained_model.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "thinkvg/core/error.h"

namespace thinkvg::train {
namespace fs = std::filesystem;
namespace {

at::ScalarType scalar_type(const std::string& dtype) {
  return dtype == "bfloat16" ? at::kBFloat16 : at::kFloat;  // TuningOptions::check() knows no other
}

}  // namespace

TrainedModel::TrainedModel(const fs::path& folder, const TuningOptions& options, std::int64_t seed, at::Device device) {
  options.check();
  const fs::path start = models::resolve_model_folder(folder);
  base_ = fs::absolute(start).lexically_normal().string();
  bundle_ = models::load_bundle(start, scalar_type(options.dtype), device);
  if (options.lora.rank > 0) {
    if (models::is_adapter_folder(start))
      throw_invalid(
          "{} is itself an adapter; merge it into its model before a new adapter is put on top (thinkvg export)",
          start.string());
    adapters_ = std::make_unique<models::Adapters>(bundle_.model, options.lora, static_cast<std::uint64_t>(seed));
  }
  choose_parameters(options);
}

TrainedModel::TrainedModel(models::ModelBundle bundle, const TuningOptions& options, std::int64_t seed)
    : bundle_(std::move(bundle)) {
  options.check();
  if (options.lora.rank > 0)
    adapters_ = std::make_unique<models::Adapters>(bundle_.model, options.lora, static_cast<std::uint64_t>(seed));
  choose_parameters(options);
}

TrainedModel::TrainedModel(const fs::path& folder, const TuningOptions& options, const fs::path& checkpoint,
                           at::Device device) {
  options.check();
  if (options.lora.rank > 0) {
    const fs::path start = models::resolve_model_folder(folder);
    base_ = fs::absolute(start).lexically_normal().string();
    bundle_ = models::load_bundle(start, scalar_type(options.dtype), device);
    adapters_ = std::make_unique<models::Adapters>(bundle_.model, checkpoint);
  } else {
    bundle_ = models::load_bundle(checkpoint, scalar_type(options.dtype), device);
  }
  choose_parameters(options);
}

void TrainedModel::choose_parameters(const TuningOptions& options) {
  const auto frozen = [&](const std::string& name) {
    switch (model().part_of(name)) {
      case models::ModelPart::vision:
        return options.freeze_vision;
      case models::ModelPart::projector:
        return options.freeze_projector;
      case models::ModelPart::language:
        return options.freeze_language;
    }
    return false;
  };
  const models::NamedTensors adapted = adapters_ ? adapters_->tensors() : models::NamedTensors();
  for (const auto& item : model().named_parameters()) {
    const bool trained = !adapters_ && !frozen(item.key());
    item.value().set_requires_grad(trained);
    if (trained) parameters_.emplace_back(item.key(), item.value());
  }
  for (const auto& [name, tensor] : adapted) {
    tensor.set_requires_grad(!frozen(name));
    if (!frozen(name)) parameters_.emplace_back(name, tensor);
  }
  if (parameters_.empty())
    throw_invalid("nothing is left to train: the adapters of lora.parts lie in parts that are frozen");
  model().set_checkpointing(options.gradient_checkpointing);
}

models::ModelPart TrainedModel::part_of_parameter(const std::string& name) const { return model().part_of(name); }

std::vector<ParameterGroup> TrainedModel::groups(const OptimizerOptions& options) const {
  std::vector<ParameterGroup> groups;
  for (const models::ModelPart part :
       {models::ModelPart::language, models::ModelPart::projector, models::ModelPart::vision}) {
    ParameterGroup group;
    const double lr = part == models::ModelPart::vision      ? options.vision_lr
                      : part == models::ModelPart::projector ? options.projector_lr
                                                             : 0;
    if (lr > 0) group.lr_scale = lr / options.lr;
    const double decay = part == models::ModelPart::vision      ? options.vision_weight_decay
                         : part == models::ModelPart::projector ? options.projector_weight_decay
                                                                : -1;
    group.weight_decay = decay >= 0 ? decay : options.weight_decay;
    for (const auto& parameter : parameters_)
      if (part_of_parameter(parameter.first) == part) group.parameters.push_back(parameter);
    if (!group.parameters.empty()) groups.push_back(std::move(group));
  }
  return groups;
}

bool TrainedModel::fixed_features() const {
  return std::none_of(parameters_.begin(), parameters_.end(), [&](const auto& parameter) {
    return part_of_parameter(parameter.first) != models::ModelPart::language;
  });
}

std::int64_t TrainedModel::num_trained() const {
  std::int64_t count = 0;
  for (const auto& [name, parameter] : parameters_) count += parameter.numel();
  return count;
}

std::int64_t TrainedModel::num_parameters() const {
  std::int64_t count = 0;
  for (const at::Tensor& parameter : model().parameters()) count += parameter.numel();
  if (adapters_)
    for (const auto& [name, parameter] : adapters_->tensors()) count += parameter.numel();
  return count;
}

models::FolderContent TrainedModel::content() const {
  models::FolderContent content = models::bundle_content(bundle_);
  if (!adapters_) return content;
  // An adapter's folder holds no weights of the model, nor the config.json that would make it look like one.
  content.tensors.clear();
  content.texts.erase("config.json");
  content.texts.erase("generation_config.json");
  models::FolderContent adapter = adapters_->content(base_);
  content.tensors.merge(adapter.tensors);
  content.texts.merge(adapter.texts);
  return content;
}

}  // namespace thinkvg::train
