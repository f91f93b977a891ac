#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "thinkvg/data/sample.h"

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

// The answer in the form that Sample promises: "yes"/"no", a letter, "A, C"; text that says none of these stays.
std::string tidy_answer(std::string_view answer, QuestionType type, const std::vector<std::string>& choices);

// Why the sample is not usable, in words; empty when it is. Boxes must lie in their frame.
std::string problem_of(const Sample& sample);

}  // namespace thinkvg::data
