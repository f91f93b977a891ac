#pragma once

#include <cstddef>
#include <string_view>
#include <vector>

#include "thinkvg/core/json.h"
#include "thinkvg/grounding/sentences.h"
#include "thinkvg/serve/backend.h"

namespace thinkvg::serve {

// The `thinkvg` object of a finished answer:
//   pictures   [{width, height, frame}]: original pixels, and the frame that the model writes boxes in
//   think, answer (null where there is none), complete, problem: as grounding::parse_response reads them
//   boxes      [{ref, box, model_box, picture}]: box in pixels of the original picture, cut to it; model_box as written
//   sentences  [{text, start, end, regions: [as boxes]}]: start and end count the characters of the answer's text
//   bad_boxes  [{text, problem}]
// Boxes refer to the first picture. Without pictures there are no boxes.
Json grounded_reply(std::string_view text, const std::vector<SeenPicture>& pictures);

// `pictures` alone, as the first chunk of a stream tells it.
Json pictures_reply(const std::vector<SeenPicture>& pictures);

// The sentences from number `first` on that are complete in a text which is still being written.
Json sentences_so_far(std::string_view text, std::size_t first, const std::vector<SeenPicture>& pictures,
                      bool finished);

}  // namespace thinkvg::serve
