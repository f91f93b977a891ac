#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "thinkvg/grounding/box.h"

namespace thinkvg::grounding {

// A sentence of a model's reasoning, with the regions that it points at.
struct GroundedSentence {
  std::string text;                // as written, boxes inline, without the spaces around it
  std::size_t begin = 0, end = 0;  // its bytes in the whole text
  std::vector<Region> regions;     // in the frame of the text's boxes
  bool complete = false;           // its end was seen
};

// The sentences of the reasoning in a response, in order: of what stands in <think>, up to </think>, <response>,
// <answer> or the end. No sentences where there is no <think> (or a </think> without one). A sentence ends at '.', '!'
// or '?' before a space or a tag, and at a line break. For a text that is still being written (`finished` false) the
// last sentence may be incomplete; complete ones do not change any more as the text grows. Never throws; linear.
std::vector<GroundedSentence> grounded_sentences(std::string_view text, const BoxFrame& frame, bool finished = true);

}  // namespace thinkvg::grounding
