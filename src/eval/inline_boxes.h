#pragma once

#include <array>
#include <string_view>
#include <vector>

namespace thinkvg::eval {

// Four numbers in brackets, "[1, 2, 3, 4]", at [begin, end) of a text.
struct InlineBox {
  std::size_t begin = 0, end = 0;
  std::array<double, 4> numbers{};
};

// All of a text, in order; of "[[1, 2, 3, 4]]" the inner one. Linear in the text's length.
std::vector<InlineBox> find_inline_boxes(std::string_view text);

}  // namespace thinkvg::eval
