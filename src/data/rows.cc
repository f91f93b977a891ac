#include "data/rows.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cctype>

#include "thinkvg/grounding/answer.h"
#include "thinkvg/grounding/response.h"

namespace thinkvg::data {
namespace {

bool is_alnum(char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0; }
bool is_digit(char c) { return std::isdigit(static_cast<unsigned char>(c)) != 0; }

// Where "<letter>:", "<letter>." or "<letter>)" starts at or behind `from` as a word of its own; npos if nowhere.
std::size_t find_marker(std::string_view text, char letter, char mark, std::size_t from) {
  for (std::size_t at = text.find(letter, from); at != std::string_view::npos; at = text.find(letter, at + 1)) {
    const bool starts_word = at == 0 || !is_alnum(text[at - 1]);
    if (starts_word && at + 1 < text.size() && text[at + 1] == mark) return at;
  }
  return std::string_view::npos;
}

std::string_view strip(std::string_view text, std::string_view characters) {
  const std::size_t first = text.find_first_not_of(characters);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(characters) + 1 - first);
}

std::string choice_text(char letter, std::string_view text) {
  return fmt::format("{}: {}", letter, strip(text, " \t\r\n,;\"'"));
}

}  // namespace

std::string trimmed(std::string_view text) { return std::string(strip(text, " \t\r\n")); }

std::string patient_of(std::string_view image) {
  while (!image.empty()) {
    const std::size_t slash = image.find('/');
    const std::string_view part = image.substr(0, slash);
    if (part.size() == 9 && part[0] == 'p' && std::all_of(part.begin() + 1, part.end(), is_digit)) {
      return std::string(part);
    }
    if (slash == std::string_view::npos) break;
    image.remove_prefix(slash + 1);
  }
  return {};
}

std::string relative_image(std::string_view path) {
  path = strip(path, " \t\r\n");
  while (true) {
    if (path.starts_with('/')) {
      path.remove_prefix(1);
    } else if (path.starts_with("./")) {
      path.remove_prefix(2);
    } else if (path.starts_with("files/")) {
      path.remove_prefix(6);
    } else {
      return std::string(path);
    }
  }
}

SplitQuestion split_choices(std::string_view text) {
  for (const char mark : {':', '.', ')'}) {
    const std::size_t first = find_marker(text, 'A', mark, 0);
    if (first == std::string_view::npos) continue;
    std::vector<std::size_t> starts = {first};
    for (char letter = 'B'; letter <= 'Z'; ++letter) {
      const std::size_t next = find_marker(text, letter, mark, starts.back() + 2);
      if (next == std::string_view::npos) break;
      starts.push_back(next);
    }
    const std::size_t later = find_marker(text, 'A', mark, first + 1);
    // A second A before B: one of them belongs to the question or to a choice, and who knows which.
    if (starts.size() < 2 || later < starts[1]) continue;
    SplitQuestion split;
    std::string_view question = strip(text.substr(0, first), " \t\r\n");
    // "<choices>: [A: .., B: ..]" and "Options: (A) .." leave their lead behind.
    question = strip(question, " \t\r\n[(\"'");
    for (const std::string_view lead : {"<choices>:", "<choices>", "Choices:", "choices:", "Options:", "options:"}) {
      if (question.ends_with(lead)) question = strip(question.substr(0, question.size() - lead.size()), " \t\r\n");
    }
    split.question = std::string(question);
    bool good = !split.question.empty();
    for (std::size_t i = 0; i < starts.size(); ++i) {
      const std::size_t begin = starts[i] + 2;
      const std::size_t end = i + 1 < starts.size() ? starts[i + 1] : text.size();
      std::string_view option = strip(text.substr(begin, end - begin), " \t\r\n");
      // What opens the next letter, or closes the list.
      while (!option.empty() && (option.back() == '[' || (option.back() == '(' && i + 1 < starts.size()))) {
        option = strip(option.substr(0, option.size() - 1), " \t\r\n");
      }
      if (option.ends_with(']') && option.find('[') == std::string_view::npos) option.remove_suffix(1);
      const std::string choice = choice_text(static_cast<char>('A' + i), option);
      if (choice.size() <= 3) good = false;
      split.choices.push_back(choice);
    }
    if (good) return split;
  }
  return {trimmed(text), {}};
}

std::string tidy_answer(std::string_view answer, QuestionType type, const std::vector<std::string>& choices) {
  switch (type) {
    case QuestionType::closed:
      if (const auto yes = grounding::read_yes_no(answer, grounding::AnswerReading::strict)) return *yes ? "yes" : "no";
      break;
    case QuestionType::single_choice:
    case QuestionType::multi_choice:
      if (const auto letters = grounding::read_option_letters(answer, grounding::AnswerReading::lenient, choices)) {
        std::string text;
        for (const char letter : *letters) {
          if (!text.empty()) text += ", ";
          text += letter;
        }
        return text;
      }
      break;
    case QuestionType::open:
      break;
  }
  return trimmed(answer);
}

std::string problem_of(const Sample& sample) {
  if (sample.image.empty()) return "the image path is empty";
  if (sample.question.empty()) return "the question is empty";
  if (sample.answer.empty()) return "the answer is empty";
  for (const grounding::Region& region : sample.regions) {
    const grounding::Box& box = region.box;
    if (!box.is_valid()) {
      return fmt::format("box {} of '{}' is reversed or empty (expected x1 < x2 and y1 < y2)",
                         grounding::format_box(box), region.name);
    }
    const auto width = static_cast<double>(sample.frame.width());
    const auto height = static_cast<double>(sample.frame.height());
    if (width > 0 && (box.x1 < 0 || box.y1 < 0 || box.x2 > width || box.y2 > height)) {
      return fmt::format("box {} of '{}' reaches outside the frame {}", grounding::format_box(box), region.name,
                         sample.frame.name());
    }
  }
  return {};
}

}  // namespace thinkvg::data
