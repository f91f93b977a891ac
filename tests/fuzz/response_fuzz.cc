// Any text must go through the parsers of model text without an exception, a crash or a broken promise. The same
// function serves libFuzzer (clang) and, with replay_main.cc, a plain program that every compiler builds.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "thinkvg/grounding/answer.h"
#include "thinkvg/grounding/response.h"

namespace {

using namespace thinkvg::grounding;

void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "broken promise: %s\n", what);
  std::abort();
}

void check(const ParsedResponse& parsed) {
  require(parsed.complete == parsed.problem.empty(), "complete says the same as problem");
  require(parsed.bad_boxes.size() == parsed.bad_box_problems.size(), "each bad box has its reason");
  require(parsed.bad_think_boxes.size() == parsed.bad_think_box_problems.size(), "each bad box has its reason");
  for (const auto* regions : {&parsed.regions, &parsed.think_regions}) {
    for (const Region& region : *regions) require(region.box.is_valid(), "regions have valid boxes");
  }
  for (const auto* problems : {&parsed.bad_box_problems, &parsed.bad_think_box_problems}) {
    for (const std::string& problem : *problems) require(!problem.empty(), "reasons say something");
  }
  require(!parsed.complete || (parsed.has_answer && !parsed.answer.empty()), "a complete response has an answer");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  std::string_view text(reinterpret_cast<const char*>(data), size);
  const BoxFrame frame = size % 3 == 0 ? BoxFrame::unit() : BoxFrame::letterbox(336);

  const ParsedResponse strict = parse_response(text, frame, true), loose = parse_response(text, frame, false);
  check(strict);
  check(loose);
  require(!strict.complete || loose.complete, "what is complete with <think> is complete without asking for it");
  check(parse_sectioned_reply(text, frame));
  const BoxList list = parse_box_list(text, frame);
  require(list.bad.size() == list.problems.size(), "each bad box has its reason");

  // What is written is read back: the same answer, boxes on the grid of the text.
  const bool answer_is_plain = strict.answer.find('<') == std::string::npos;
  if (strict.complete && answer_is_plain) {
    const ImageGeometry geometry({336, 336});
    std::vector<Region> regions;
    for (const Region& region : strict.regions) {
      const Box box = geometry.rounded(region.box);
      if (box.is_valid() && region.name.find('<') == std::string::npos) regions.push_back({region.name, box});
    }
    const ParsedResponse again = parse_response(format_response(strict.answer, regions), frame, false);
    require(again.complete, "a written response is complete");
    require(again.answer == strict.answer, "a written answer is read back");
    require(again.regions.size() == regions.size(), "written boxes are read back");
    for (std::size_t i = 0; i < regions.size(); ++i)
      require(again.regions[i].box == regions[i].box, "a written box is read back");
  }

  // Converting twice changes nothing that converting once has not.
  const ImageGeometry geometry({300, 200});
  const std::string once = convert_inline_boxes(text, geometry, frame, BoxFrame::letterbox(336));
  require(convert_inline_boxes(once, geometry, BoxFrame::letterbox(336), BoxFrame::letterbox(336)) == once,
          "converted boxes stay");

  for (const AnswerReading reading : {AnswerReading::strict, AnswerReading::lenient}) {
    read_yes_no(text, reading);
    const auto letters = read_option_letters(text, reading, {"A: left lung", "B: right lung"});
    require(!letters || !letters->empty(), "letters are some");
  }
  const std::string plain = normalize_text(text);
  require(plain.size() <= text.size(), "normalising does not lengthen");
  const double f1 = token_f1(text, plain);
  require(f1 >= 0 && f1 <= 1 && !std::isnan(f1), "an F1 is in [0, 1]");
  normalize_region_name(text.substr(0, 200));
  return 0;
}
