#pragma once

#include <string>

#include "thinkvg/eval/report.h"

namespace thinkvg::eval {

// The section of the page with single questions, their pictures and what each run said. Needs at least one case.
std::string render_cases(const ReportData& data);

}  // namespace thinkvg::eval
