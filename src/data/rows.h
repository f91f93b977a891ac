#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "data/row_dataset.h"
#include "thinkvg/data/sample.h"
#include "thinkvg/grounding/response.h"

// What the readers of the different releases share.
namespace thinkvg::data {

std::string trimmed(std::string_view text);

// "p10000032" out of "p10/p10000032/s50414267/x.jpg"; empty when no folder or file name is a patient's.
std::string patient_of(std::string_view image);

// Path relative to the root of the pictures: no leading slashes, "./" or "files/".
std::string relative_image(std::string_view path);

// Splits "Which side? A: left, B: right" into the question and its choices. Letters must run from A on, at least two of
// them; otherwise the choices are empty and the question is the whole text.
struct SplitQuestion {
  std::string question;
  std::vector<std::string> choices;
};
SplitQuestion split_choices(std::string_view text);
// Sets the question, and for choice questions the choices that stand in its text, by the sample's type.
void set_question(Sample& sample, std::string_view text);

// The answer in the form that Sample promises: "yes"/"no", a letter, "A, C"; text that says none of these stays.
std::string tidy_answer(std::string_view answer, QuestionType type, const std::vector<std::string>& choices);
// The type of a question that its set does not name: by its choices, then by a yes or no for an answer.
QuestionType guess_type(const std::vector<std::string>& choices, std::string_view answer, bool answer_is_list);

// Texts that give no box make the row unusable; those that hold four numbers are kept as boxes of the sample, so that
// problem_of names them and they can be mended.
void take_bad_boxes(const grounding::ParsedResponse& parsed, Sample& sample, ParsedRow& row);

// Why the sample is not usable, in words; empty when it is. Boxes must lie in their frame.
std::string problem_of(const Sample& sample);

// Throws std::runtime_error that says what was expected and what the file has, unless it is of the kind (or also JSON
// lines for a JSON list and the reverse) and has all the fields.
void require_fields(const Preview& file, FileKind kind, std::initializer_list<std::string_view> fields);

}  // namespace thinkvg::data
