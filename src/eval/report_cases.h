#pragma once

#include <string>

#include "thinkvg/eval/report.h"

namespace thinkvg::eval {

// The section of the page with single questions, their pictures and what each run said. Needs at least one case.
std::string render_cases(const ReportData& data);

// The watched questions of a training run, which is the page's `index`-th, at several steps. Needs at least one.
std::string render_watched(const ReportTraining& training, std::size_t index);

}  // namespace thinkvg::eval
