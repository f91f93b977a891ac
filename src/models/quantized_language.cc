#include "thinkvg/models/quantized_language.h"

#include "thinkvg/core/error.h"

namespace thinkvg::models {

QuantizedLanguage::QuantizedLanguage(VisionLanguageModel& model, nn::Quantization kind) : model_(model) {
  const at::Tensor& head = model.output_weight();
  if (!head.is_cpu())
    throw_invalid("quantised weights are for a CPU, but the model is on {}; leave quantization at none",
                  head.device().str());
  std::vector<std::shared_ptr<nn::Linear>> layers;
  for (const auto& item : model.named_modules("", false)) {
    const auto layer = std::dynamic_pointer_cast<nn::Linear>(item.value());
    if (!layer || layer->weight.is_same(head) || model.part_of(item.key()) != ModelPart::language) continue;
    if (layer->quantized) throw_invalid("the model has quantised weights already; end what uses them first");
    layers.push_back(layer);
  }
  std::vector<std::shared_ptr<const nn::QuantizedWeight>> weights;
  for (const auto& layer : layers) weights.push_back(std::make_shared<nn::QuantizedWeight>(layer->weight, kind));
  auto quantized_head = std::make_shared<nn::QuantizedWeight>(head, kind);
  num_bytes_ = quantized_head->num_bytes();
  for (std::size_t i = 0; i < layers.size(); ++i) {
    num_bytes_ += weights[i]->num_bytes();
    layers[i]->quantized = weights[i];
  }
  model.set_quantized_head(std::move(quantized_head));
  layers_ = std::move(layers);
}

QuantizedLanguage::~QuantizedLanguage() {
  for (const auto& layer : layers_) layer->quantized = nullptr;
  model_.set_quantized_head(nullptr);
}

std::unique_ptr<const QuantizedLanguage> quantized_language(VisionLanguageModel& model, nn::Quantization kind) {
  return kind == nn::Quantization::none ? nullptr : std::make_unique<const QuantizedLanguage>(model, kind);
}

}  // namespace thinkvg::models
