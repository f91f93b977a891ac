#pragma once

#include "thinkvg/train/validation.h"

namespace thinkvg::tools {

// Scores answers while a model is trained, by the rules of `thinkvg eval`; predictions.jsonl and metrics.json of each
// evaluation lie in its folder, where `thinkvg report` reads them.
train::Scorer make_scorer();

}  // namespace thinkvg::tools
