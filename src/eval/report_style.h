#pragma once

#include <string>

// The fixed parts of the report's page.
namespace thinkvg::eval {

// Style sheet, with series colours s0 .. s<num_series - 1> from pale (first) to strong (last).
std::string report_style(int num_series);
// The filter row, and the link between regions in the text and boxes on the picture.
const char* report_script();

}  // namespace thinkvg::eval
