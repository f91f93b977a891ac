#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "thinkvg/grounding/geometry.h"

namespace thinkvg::grounding {

// What a model's (or a data row's) text says:
//   <think>reasoning (region [x1, y1, x2, y2])</think><response><answer>..</answer><location><ref>..</ref>
//   <box>[x1, y1, x2, y2]</box>..</location></response>
struct ParsedResponse {
  bool complete = false;  // every tag present, closed, in order, at least an answer; nothing after </response>
  std::string problem;    // why not complete, in words; empty when complete
  bool has_think = false;
  std::string think;  // text inside <think>, trimmed
  bool has_answer = false;
  std::string answer;                  // text inside <answer>, trimmed
  std::vector<Region> regions;         // ref/box pairs of <location>, in order; only well-formed numbers, in `frame`
  std::vector<Region> think_regions;   // boxes inside <think>; name = the words before "(region"
  std::vector<std::string> bad_boxes;  // box texts of <location> that gave no valid box (reversed, not a number, wrong
                                       // count), shortened, the first 256; they do not make a
                                       // response incomplete
  std::vector<std::string> bad_box_problems;  // for each of bad_boxes, why it is none
  std::vector<std::string> bad_think_boxes;   // the same for <think>; brackets around other text are no boxes
  std::vector<std::string> bad_think_box_problems;
};

// Never throws on text. Takes one or many boxes ([..], [[..], [..]], several ref/box pairs), floats, newlines, missing
// ref, missing location, truncated text. Linear in the length of the text. The numbers are taken to be in `frame`.
// `expect_think`: whether a missing <think> makes it incomplete.
// A box without <ref> takes the last name before it. An unclosed <think> is kept up to <response> or the end; an
// unclosed <answer> is no answer.
ParsedResponse parse_response(std::string_view text, const BoxFrame& frame, bool expect_think = true);

// The replies in GEMeX's training data: "<answer> B <reason> it is dense <location> [[x1, y1, x2, y2], ..]", the tags
// not closed, <reason> and <location> optional, each tag at most once. The reason is the result's `think`; regions have
// no names. Otherwise as parse_response.
ParsedResponse parse_sectioned_reply(std::string_view text, const BoxFrame& frame);

// The boxes of a text such as "[1, 2, 3, 4]", "[[..], [..]]" or "[..], [..]", and the parts of it that are none, each
// with its reason (the first 256 of them). Linear; never throws.
struct BoxList {
  std::vector<Box> boxes;
  std::vector<std::string> bad;       // shortened
  std::vector<std::string> problems;  // one for each of `bad`
};
BoxList parse_box_list(std::string_view text, const BoxFrame& frame);

// The four finite numbers of "a, b, c, d" or "[a, b, c, d]", whatever box they make; nothing for any other text.
std::optional<std::array<double, 4>> read_four_numbers(std::string_view text);

// The text form of an answer with its regions, as the release writes it:
// <response><answer>A</answer><location><ref>left lung</ref><box>[1, 2, 3, 4]</box></location></response>
// Boxes are written as whole numbers in the frame they carry. No regions: no <location>.
std::string format_response(std::string_view answer, const std::vector<Region>& regions);

// "[x1, y1, x2, y2]" with whole numbers (four decimals in the unit frame).
std::string format_box(const Box& box);

// Rewrites every well-formed inline box "[a, b, c, d]" of `text` from one frame to another, rounded to whole numbers
// and clipped to the frame; other text stays as it is.
std::string convert_inline_boxes(std::string_view text, const ImageGeometry& geometry, const BoxFrame& from,
                                 const BoxFrame& to);

}  // namespace thinkvg::grounding
