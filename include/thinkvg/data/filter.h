#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "thinkvg/data/sample.h"

namespace thinkvg::data {

// A condition on the fields of a sample:
//
//   type == "single" and num_boxes > 1 and question ~ "nodule"
//   split != "test" and (fields.q_lang == "en" or not has_think)
//   type in ("open", "closed") and think_words < 200
//
// condition:  condition or condition, condition and condition, not condition, (condition), comparison, true/false
// field;
//             "not" binds closest, then "and", then "or"
// comparison: value == value, !=, <, <=, >, >= (numbers with numbers, texts with texts, texts only == and !=);
//             text ~ text: the left holds the right, case aside; text !~ text; value in (value, ..)
// value:      a field; "text" or 'text' (\" \' \\ \n \t inside); a number; true, false
// fields:     id, image, patient, type, content_type, question, think, answer, split, frame (texts; `type` also takes
//             the short names open, closed, single, multi), regions (the names of the boxes' regions, with ", "
//             between); num_boxes, num_choices, num_images, num_regions (of different name), question_words,
//             think_words, answer_words (numbers); has_think (true or false); fields.NAME, what else the set says of a
//             row, a text that is empty where the set says nothing
//
// Immutable; matches() may be called from several threads and takes time linear in the texts.
class Filter {
 public:
  // Throws std::invalid_argument that shows the place in the expression, what was expected and what is there.
  explicit Filter(std::string_view expression);
  ~Filter();
  Filter(Filter&&) noexcept;

  bool matches(const Sample& sample) const;

  struct Node;

 private:
  std::unique_ptr<const Node> root_;
};

}  // namespace thinkvg::data
