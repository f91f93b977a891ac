#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "thinkvg/models/vision_language_model.h"
#include "thinkvg/nn/layers.h"
#include "thinkvg/nn/quantized_weight.h"

namespace thinkvg::models {

// While it lives, passes of the model without gradient take weights of 8 or 4 bits in the decoder's linear layers and
// in the output head; embeddings, norms, the tower and the projector stay as they are. Made of the model's present
// weights: later changes of these are not seen. The weights themselves are not touched, and stay where they are (those
// of models::load in the file). The model must outlive this object and must not run while it is made or goes.
class QuantizedLanguage {
 public:
  // Throws std::invalid_argument for Quantization::none, a model that is not on a CPU in fp32 or bf16, or one that has
  // quantised weights already.
  QuantizedLanguage(VisionLanguageModel& model, nn::Quantization kind);
  ~QuantizedLanguage();
  QuantizedLanguage(const QuantizedLanguage&) = delete;
  QuantizedLanguage& operator=(const QuantizedLanguage&) = delete;

  // Of all quantised weights together, which a decoding step reads once.
  std::int64_t num_bytes() const { return num_bytes_; }

 private:
  VisionLanguageModel& model_;
  std::vector<std::shared_ptr<nn::Linear>> layers_;
  std::int64_t num_bytes_ = 0;
};

// Null for Quantization::none.
std::unique_ptr<const QuantizedLanguage> quantized_language(VisionLanguageModel& model, nn::Quantization kind);

}  // namespace thinkvg::models
