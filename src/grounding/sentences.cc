#include "thinkvg/grounding/sentences.h"

#include <algorithm>

#include "thinkvg/grounding/response.h"

namespace thinkvg::grounding {
namespace {

constexpr std::string_view kBlanks = " \t\r\n\f\v";
constexpr std::string_view kOpen = "<think>";
constexpr std::string_view kClose = "</think>";

struct Range {
  std::size_t begin = 0, end = 0;
  bool closed = false;  // a tag ended it
};

// Where the reasoning stands; begin == end where there is none.
Range reasoning(std::string_view text) {
  const std::size_t answer = std::min({text.find("<response>"), text.find("<answer>"), text.size()});
  const std::size_t open = text.find(kOpen);
  const std::size_t close = text.find(kClose);
  Range range;
  if (open < answer)
    range.begin = open + kOpen.size();
  else if (close >= answer)
    return range;
  range.end = std::min({text.find(kClose, range.begin), text.find("<response>", range.begin),
                        text.find("<answer>", range.begin), text.size()});
  range.closed = range.end < text.size();
  return range;
}

bool is_space(char c) { return kBlanks.find(c) != std::string_view::npos; }

}  // namespace

std::vector<GroundedSentence> grounded_sentences(std::string_view text, const BoxFrame& frame, bool finished) {
  std::vector<GroundedSentence> sentences;
  const Range range = reasoning(text);
  const auto add = [&](std::size_t begin, std::size_t end, bool complete) {
    while (begin < end && is_space(text[begin])) ++begin;
    while (end > begin && is_space(text[end - 1])) --end;
    if (begin == end) return;
    GroundedSentence sentence;
    sentence.text = text.substr(begin, end - begin);
    sentence.begin = begin;
    sentence.end = end;
    sentence.complete = complete;
    sentence.regions = parse_response(std::string(kOpen) + sentence.text + std::string(kClose), frame).think_regions;
    sentences.push_back(std::move(sentence));
  };
  std::size_t begin = range.begin;
  int depth = 0;  // of brackets: "(see p. 3)" and "[0. 5]" do not end a sentence
  for (std::size_t i = range.begin; i < range.end; ++i) {
    const char c = text[i];
    if (c == '(' || c == '[') ++depth;
    if ((c == ')' || c == ']') && depth > 0) --depth;
    if (c == '\n') {
      depth = 0;
      add(begin, i, true);
      begin = i + 1;
      continue;
    }
    if ((c != '.' && c != '!' && c != '?') || depth > 0) continue;
    std::size_t next = i + 1;
    while (next < range.end && (text[next] == '"' || text[next] == '\'' || text[next] == '.')) ++next;
    const bool at_end = next == range.end;
    if (at_end ? !(range.closed || finished) : !(is_space(text[next]) || text[next] == '<')) continue;
    add(begin, next, true);
    begin = next;
    i = next - 1;
  }
  add(begin, range.end, range.closed || finished);
  return sentences;
}

}  // namespace thinkvg::grounding
