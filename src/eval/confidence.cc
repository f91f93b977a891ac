#include "eval/confidence.h"

#include <algorithm>
#include <cmath>
#include <string_view>

namespace thinkvg::eval {
namespace {

// The smallest number of tokens, at most `count`, whose text is longer than `size` bytes (or as long, `or_equal`).
std::size_t tokens_until(const PrefixText& prefix, std::size_t count, std::size_t size, bool or_equal) {
  std::size_t low = 0, high = count;
  while (low < high) {
    const std::size_t middle = (low + high) / 2;
    const std::size_t length = prefix(middle).size();
    if (length > size || (or_equal && length == size)) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

}  // namespace

std::optional<double> answer_confidence(const PrefixText& prefix, std::span<const float> logprobs) {
  constexpr std::string_view kOpen = "<answer>", kClose = "</answer>";
  const std::string text = prefix(logprobs.size());
  std::size_t begin = text.find(kOpen), end = std::string::npos;
  if (begin == std::string::npos) {
    begin = 0;
    end = text.size();
  } else {
    begin += kOpen.size();
    end = text.find(kClose, begin);
    if (end == std::string::npos) end = text.size();
  }
  if (begin >= end) return std::nullopt;
  // The token that holds the answer's first byte, and the one that holds its last.
  const std::size_t first = tokens_until(prefix, logprobs.size(), begin, false) - 1;
  const std::size_t behind = tokens_until(prefix, logprobs.size(), end, true);
  double sum = 0;
  for (std::size_t i = first; i < behind && i < logprobs.size(); ++i) sum += static_cast<double>(logprobs[i]);
  return std::min(1.0, std::exp(sum));
}

}  // namespace thinkvg::eval
