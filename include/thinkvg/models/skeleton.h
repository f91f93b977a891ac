#pragma once

#include <filesystem>

#include "thinkvg/models/bundle.h"

namespace thinkvg::models {

// A model folder without its weights: parameters have names and shapes but no content, so that nothing of their size is
// read or held (nn::WithoutParameterMemory). For looking at a run before it starts: tokenizer,
// processor and every method that computes no tensor out of weights work as of load_bundle, which the errors are of,
// too. An adapter's folder gives the model that it names.
ModelBundle load_skeleton(const std::filesystem::path& folder);

// The model alone.
std::shared_ptr<VisionLanguageModel> make_empty(const std::filesystem::path& folder);

}  // namespace thinkvg::models
