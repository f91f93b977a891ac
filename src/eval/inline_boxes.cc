#include "eval/inline_boxes.h"

#include <charconv>

namespace thinkvg::eval {

std::vector<InlineBox> find_inline_boxes(std::string_view text) {
  std::vector<InlineBox> found;
  const auto skip_spaces = [&](std::size_t at) {
    while (at < text.size() && (text[at] == ' ' || text[at] == '\n' || text[at] == '\t')) ++at;
    return at;
  };
  for (std::size_t open = text.find('['); open != std::string_view::npos; open = text.find('[', open + 1)) {
    InlineBox box{open, open + 1, {}};
    std::size_t at = open + 1;
    std::size_t count = 0;
    for (; count < box.numbers.size(); ++count) {
      at = skip_spaces(at);
      const auto [stop, error] = std::from_chars(text.data() + at, text.data() + text.size(), box.numbers[count]);
      if (error != std::errc()) break;
      at = skip_spaces(static_cast<std::size_t>(stop - text.data()));
      if (at >= text.size() || text[at] != (count + 1 < box.numbers.size() ? ',' : ']')) break;
      ++at;
    }
    if (count < box.numbers.size()) continue;
    box.end = at;
    found.push_back(box);
  }
  return found;
}

}  // namespace thinkvg::eval
