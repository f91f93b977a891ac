#include "thinkvg/data/sample.h"

#include <algorithm>
#include <cctype>

#include "thinkvg/core/error.h"

namespace thinkvg::data {

std::string question_type_name(QuestionType type) {
  switch (type) {
    case QuestionType::open:
      return "open";
    case QuestionType::closed:
      return "closed";
    case QuestionType::single_choice:
      return "single_choice";
    case QuestionType::multi_choice:
      break;
  }
  return "multi_choice";
}

QuestionType parse_question_type(std::string_view name) {
  std::string key(name);
  std::transform(key.begin(), key.end(), key.begin(),
                 [](unsigned char c) { return c == '-' || c == ' ' ? '_' : static_cast<char>(std::tolower(c)); });
  for (const std::string_view suffix : {"_questions", "_question"}) {
    if (key.ends_with(suffix)) key.resize(key.size() - suffix.size());
  }
  if (key == "open" || key == "open_ended") return QuestionType::open;
  if (key == "closed" || key == "closed_ended") return QuestionType::closed;
  if (key == "single_choice" || key == "single") return QuestionType::single_choice;
  if (key == "multi_choice" || key == "multiple_choice" || key == "multi") return QuestionType::multi_choice;
  throw_invalid(
      "'{}' is no question type; known: open, closed, single_choice (single), multi_choice (multi), also as "
      "open_ended_questions, "
      "closed_ended_questions, single_choice_questions, multi_choice_questions",
      name);
}

std::string Sample::prompt() const {
  std::string text = question;
  for (const std::string& choice : choices) text += "\n" + choice;
  return text;
}

}  // namespace thinkvg::data
