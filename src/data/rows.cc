#include "data/rows.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cctype>

#include "thinkvg/core/error.h"
#include "thinkvg/grounding/answer.h"
#include "thinkvg/grounding/geometry.h"

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

void set_question(Sample& sample, std::string_view text) {
  if (sample.type == QuestionType::single_choice || sample.type == QuestionType::multi_choice) {
    SplitQuestion split = split_choices(text);
    sample.question = std::move(split.question);
    sample.choices = std::move(split.choices);
  } else {
    sample.question = trimmed(text);
  }
}

QuestionType guess_type(const std::vector<std::string>& choices, std::string_view answer, bool answer_is_list) {
  if (!choices.empty()) return answer_is_list ? QuestionType::multi_choice : QuestionType::single_choice;
  return grounding::read_yes_no(answer, grounding::AnswerReading::strict) ? QuestionType::closed : QuestionType::open;
}

void take_bad_boxes(const grounding::ParsedResponse& parsed, Sample& sample, ParsedRow& row) {
  for (std::size_t i = 0; i < parsed.bad_boxes.size(); ++i) {
    if (const auto numbers = grounding::read_four_numbers(parsed.bad_boxes[i])) {
      sample.regions.push_back({"", grounding::make_box(*numbers, grounding::BoxOrder::xyxy, sample.frame)});
      continue;
    }
    row.lost.push_back(fmt::format("box {}: {}", parsed.bad_boxes[i], parsed.bad_box_problems[i]));
    if (row.problem.empty()) row.problem = "the response has a box that is none: " + row.lost.back();
  }
}

namespace {

std::string box_problem(const grounding::Region& region, const grounding::BoxFrame& frame, grounding::ImageSize size) {
  const grounding::Box& box = region.box;
  if (const std::string problem = box.problem(); !problem.empty()) {
    return fmt::format("box {} of '{}': {}", grounding::format_box(box), region.name, problem);
  }
  const bool original = frame.kind() == grounding::BoxFrame::Kind::original;
  const auto width = static_cast<double>(original ? size.width : frame.width());
  const auto height = static_cast<double>(original ? size.height : frame.height());
  const bool outside = width > 0 ? box.x1 < 0 || box.y1 < 0 || box.x2 > width || box.y2 > height
                                 : original && (box.x1 < 0 || box.y1 < 0);
  if (!outside) return {};
  return fmt::format("box {} of '{}' reaches outside the frame {}{}", grounding::format_box(box), region.name,
                     frame.name(), width > 0 ? fmt::format(" of {} x {}", width, height) : "");
}

}  // namespace

std::string problem_of(const Sample& sample) {
  if (sample.image.empty()) return "the image path is empty";
  if (sample.question.empty()) return "the question is empty";
  if (sample.answer.empty()) return "the answer is empty";
  for (const grounding::Region& region : sample.regions) {
    if (std::string problem = box_problem(region, sample.frame, sample.size); !problem.empty()) return problem;
  }
  for (const auto& regions : sample.more_regions) {
    for (const grounding::Region& region : regions) {
      if (std::string problem = box_problem(region, sample.frame, {}); !problem.empty()) return problem;
    }
  }
  return {};
}

void require_fields(const Preview& file, FileKind kind, std::initializer_list<std::string_view> fields) {
  const bool right_kind = file.kind == kind || (kind == FileKind::json_list && file.is_json_rows());
  std::vector<std::string_view> missing;
  for (const std::string_view field : fields) {
    if (!file.has(field)) missing.push_back(field);
  }
  if (right_kind && missing.empty()) return;
  const char* name = kind == FileKind::parquet ? "parquet" : kind == FileKind::csv ? "CSV" : "JSON rows";
  throw_failure("{}: expected {} with {}; it {}lacks {} and has {}", file.file.string(), name, fmt::join(fields, ", "),
                right_kind ? "" : "is of another kind, ",
                missing.empty() ? "none" : fmt::format("{}", fmt::join(missing, ", ")),
                file.fields.empty() ? "no fields" : fmt::format("{}", fmt::join(file.fields, ", ")));
}

}  // namespace thinkvg::data
