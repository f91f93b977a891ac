#pragma once

#include <filesystem>
#include <string>

#include "thinkvg/data/dataset.h"

namespace thinkvg::data {

// thinkvg's own layout, one JSON object a line (also as the elements of a JSON list):
//
//   {"id": "q1",                                  unique; default: the row's number
//    "images": ["p10/p10000032/s1/a.jpg", ..],    relative to the image root; "image": one
//    "question": "Which side?",
//    "type": "single_choice",                     open, closed, single_choice, multi_choice; default: out of the others
//    "choices": ["A: left", "B: right"],
//    "think": "the left lung (region [1, 2, 3, 4]) shows ..",
//    "answer": "A",                               "yes"/"no"; letters; a list of letters for multi choice
//    "boxes": [{"name": "left lung", "box": [1, 2, 3, 4], "image": 0}, ..],   image: which of them; default 0
//    "frame": "letterbox-336",                    of all boxes; needed where there are any
//    "order": "xyxy",                             of the boxes' numbers: xyxy (default), yxyx, xywh, cxcywh; boxes
//                                                 inside "think" are always xyxy
//    "size": [3056, 2544],                        of the first picture as shown; optional
//    "patient": "p10000032", "split": "train", "content_type": "location",    optional
//    "fields": {"modality": "X-Ray"}}             anything else, texts
//
// Only images, question and answer are needed. Keys that are none of these are a problem of the row: a misspelt "boxs"
// would otherwise be lost without a word.
std::string to_json_line(const Sample& sample);

// All samples, one a line, in order; gzip when the name ends in ".gz". Written atomically.
void write_jsonl(const Dataset& dataset, const std::filesystem::path& file);

// The ThinkVG release's columns. Boxes must be in a letterbox frame (they are scaled to 336 pixels); pictures beyond
// the first have no place there. Throws std::invalid_argument naming the sample otherwise.
void write_thinkvg_parquet(const Dataset& dataset, const std::filesystem::path& file);

}  // namespace thinkvg::data
