#pragma once

#include <string_view>

namespace thinkvg::serve {

// page.html, which the build puts into the program.
std::string_view page_html();

}  // namespace thinkvg::serve
