#pragma once

#include <vector>

#include "thinkvg/data/sample.h"

namespace thinkvg::eval {

// The same questions, those about one picture together: pictures in the order in which they come first, and the
// questions about each in theirs. So asked, prompts that begin alike stand side by side, and the engine computes their
// common beginning once.
std::vector<data::Sample> by_picture(const std::vector<data::Sample>& questions);

}  // namespace thinkvg::eval
