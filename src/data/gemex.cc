#include "data/gemex.h"

#include <spdlog/fmt/fmt.h>

#include <array>
#include <optional>
#include <set>
#include <stdexcept>

#include "data/rows.h"
#include "thinkvg/core/error.h"
#include "thinkvg/core/files.h"
#include "thinkvg/core/json.h"
#include "thinkvg/grounding/answer.h"

namespace thinkvg::data {
namespace {

namespace fs = std::filesystem;

constexpr std::array<const char*, 4> kFiles = {"open_ended_question.jsonl", "closed_ended_question.jsonl",
                                               "single_choice_question.jsonl", "multi_choice_question.jsonl"};

[[noreturn]] void bad(const std::string& reason) { throw std::invalid_argument(reason); }

std::string text_of(const Json& row, const char* key) {
  const auto value = row.find(key);
  if (value == row.end() || value->is_null()) return {};
  if (value->is_string()) return trimmed(value->get_ref<const std::string&>());
  if (value->is_number_integer()) return std::to_string(value->get<std::int64_t>());
  bad(fmt::format("'{}' should be text, but is {}", key, value->dump()));
}

std::vector<std::string> texts_of(const Json& row, const char* key) {
  std::vector<std::string> texts;
  const auto value = row.find(key);
  if (value == row.end() || value->is_null()) return texts;
  if (value->is_string()) return {value->get<std::string>()};
  if (!value->is_array()) bad(fmt::format("'{}' should be a list of texts, but is {}", key, value->dump()));
  for (const Json& item : *value) {
    if (!item.is_string()) bad(fmt::format("'{}' should be a list of texts, but holds {}", key, item.dump()));
    texts.push_back(trimmed(item.get_ref<const std::string&>()));
  }
  return texts;
}

grounding::Box box_of(const Json& value, const grounding::BoxFrame& frame) {
  bool good = value.is_array() && value.size() == 4;
  for (std::size_t i = 0; good && i < 4; ++i) good = value[i].is_number();
  if (!good) bad("a box is a list of four numbers, not " + value.dump());
  return {value[0].get<double>(), value[1].get<double>(), value[2].get<double>(), value[3].get<double>(), frame};
}

std::vector<grounding::Box> boxes_of(const Json& value, const grounding::BoxFrame& frame) {
  if (value.is_null()) return {};
  if (!value.is_array()) bad("boxes are a list, not " + value.dump());
  if (!value.empty() && value[0].is_number()) return {box_of(value, frame)};
  std::vector<grounding::Box> boxes;
  for (const Json& item : value) {
    if (item.is_array() && !item.empty() && item[0].is_array()) {
      for (const Json& inner : item) boxes.push_back(box_of(inner, frame));
    } else {
      boxes.push_back(box_of(item, frame));
    }
  }
  return boxes;
}

QuestionType guess_type(const Json& row, const std::vector<std::string>& choices) {
  const auto answer = row.find("answer");
  if (!choices.empty()) {
    return answer != row.end() && answer->is_array() ? QuestionType::multi_choice : QuestionType::single_choice;
  }
  if (answer != row.end() && answer->is_string() &&
      grounding::read_yes_no(answer->get_ref<const std::string&>(), grounding::AnswerReading::strict)) {
    return QuestionType::closed;
  }
  return QuestionType::open;
}

// A row of the test files.
Sample parse_test_row(const Json& row, std::optional<QuestionType> type, std::int64_t number) {
  Sample sample;
  sample.frame = grounding::BoxFrame::letterbox(224);
  sample.image = relative_image(text_of(row, "image_path"));
  sample.patient = patient_of(sample.image);
  sample.question = text_of(row, "question");
  sample.choices = texts_of(row, "choices");
  sample.content_type = text_of(row, "type");
  sample.type = type ? *type : guess_type(row, sample.choices);
  sample.think = text_of(row, "reason");
  const std::string number_text = text_of(row, "q_id");
  sample.id = question_type_name(sample.type) + "/" + (number_text.empty() ? std::to_string(number) : number_text);
  std::string answer;
  for (const std::string& part : texts_of(row, "answer")) answer += (answer.empty() ? "" : ", ") + part;
  sample.answer = tidy_answer(answer, sample.type, sample.choices);
  const std::vector<std::string> names = texts_of(row, "visual_regions");
  const auto locations = row.find("visual_locations");
  const std::vector<grounding::Box> boxes =
      locations == row.end() ? std::vector<grounding::Box>{} : boxes_of(*locations, sample.frame);
  for (std::size_t i = 0; i < boxes.size(); ++i) {
    // One name for several boxes is usual ("bilateral lung").
    const std::string name = i < names.size() ? names[i] : names.empty() ? "" : names.back();
    sample.regions.push_back({name, boxes[i]});
  }
  return sample;
}

// What stands behind `tag` in the text, up to the next of the three tags.
std::string section_of(const std::string& text, const std::string& tag) {
  const std::size_t at = text.find(tag);
  if (at == std::string::npos) return {};
  const std::size_t begin = at + tag.size();
  std::size_t end = text.size();
  for (const char* other : {"<answer>", "<reason>", "<location>"}) end = std::min(end, text.find(other, begin));
  std::string section = trimmed(std::string_view(text).substr(begin, end - begin));
  if (section.starts_with(':')) section = trimmed(std::string_view(section).substr(1));
  return section;
}

// A row of the LLaVA-style training list.
Sample parse_training_row(const Json& row, std::int64_t number) {
  Sample sample;
  sample.frame = grounding::BoxFrame::letterbox(224);
  sample.image = relative_image(text_of(row, "image"));
  sample.patient = patient_of(sample.image);
  sample.type = parse_question_type(text_of(row, "q_type"));
  const Json& turns = row.at("conversations");
  if (!turns.is_array() || turns.size() < 2) bad("'conversations' should list a human and a gpt turn");
  std::string question = text_of(turns[0], "value");
  if (const std::size_t image = question.find("<image>"); image != std::string::npos) question.erase(image, 7);
  if (sample.type == QuestionType::single_choice || sample.type == QuestionType::multi_choice) {
    SplitQuestion split = split_choices(question);
    sample.question = std::move(split.question);
    sample.choices = std::move(split.choices);
  } else {
    sample.question = trimmed(question);
  }
  const std::string reply = text_of(turns[1], "value");
  sample.answer = tidy_answer(section_of(reply, "<answer>"), sample.type, sample.choices);
  sample.think = section_of(reply, "<reason>");
  const std::string location = section_of(reply, "<location>");
  if (!location.empty()) {
    const Json boxes = Json::parse(location, nullptr, /*allow_exceptions=*/false);
    if (boxes.is_discarded()) bad("the <location> is no list of boxes: " + location);
    for (const grounding::Box& box : boxes_of(boxes, sample.frame)) sample.regions.push_back({"", box});
  }
  const std::string id = text_of(row, "row_id");
  sample.id = id.empty() ? std::to_string(number) : id;
  return sample;
}

class Gemex final : public Dataset {
 public:
  explicit Gemex(const fs::path& path) {
    if (fs::is_directory(path)) {
      for (const char* name : kFiles) {
        if (fs::exists(path / name)) read_lines(path / name);
      }
    } else if (path.extension() == ".json") {
      read_list(path);
    } else {
      read_lines(path);
    }
  }

  std::int64_t size() const override { return static_cast<std::int64_t>(rows_.size()); }

  Sample get(std::int64_t index) const override {
    if (index < 0 || index >= size()) {
      throw std::out_of_range(fmt::format("sample {} of {}: an index is 0 to size - 1", index, size()));
    }
    return parse(rows_[static_cast<std::size_t>(index)]);
  }

  const std::vector<BadRow>& bad_rows() const override { return bad_; }

 private:
  struct Row {
    std::string text;
    std::optional<QuestionType> type;  // by the file's name
    std::int64_t number = 0;           // within its file
  };

  static Sample parse(const Row& row) {
    const Json json = Json::parse(row.text);
    if (!json.is_object()) bad("the row is no JSON object");
    return json.contains("conversations") ? parse_training_row(json, row.number)
                                          : parse_test_row(json, row.type, row.number);
  }

  void add(Row row) {
    const std::int64_t number = num_rows_++;
    std::string problem;
    try {
      const Sample sample = parse(row);
      problem = problem_of(sample);
      if (problem.empty() && !ids_.insert(sample.id).second) problem = "the id " + sample.id + " came before";
    } catch (const Json::exception& error) {
      problem = std::string("not the JSON that was expected: ") + error.what();
    } catch (const std::invalid_argument& error) {
      problem = error.what();
    }
    if (problem.empty()) {
      rows_.push_back(std::move(row));
    } else {
      bad_.push_back({number, std::move(problem)});
    }
  }

  void read_lines(const fs::path& file) {
    std::optional<QuestionType> type;
    try {
      type = parse_question_type(file.stem().string());
    } catch (const std::invalid_argument&) {
      // The name says nothing; the rows do.
    }
    const std::string content = read_file(file);
    std::int64_t number = 0;
    for (std::size_t begin = 0; begin < content.size();) {
      const std::size_t end = std::min(content.find('\n', begin), content.size());
      if (std::string line = trimmed(std::string_view(content).substr(begin, end - begin)); !line.empty()) {
        add({std::move(line), type, number++});
      }
      begin = end + 1;
    }
  }

  void read_list(const fs::path& file) {
    const Json list = read_json_file(file);
    if (!list.is_array()) throw_failure("{}: expected a JSON list of questions", file.string());
    std::int64_t number = 0;
    for (const Json& row : list) add({row.dump(), std::nullopt, number++});
  }

  std::vector<Row> rows_;
  std::vector<BadRow> bad_;
  std::set<std::string> ids_;
  std::int64_t num_rows_ = 0;
};

}  // namespace

std::unique_ptr<Dataset> open_gemex(const fs::path& path) {
  if (fs::is_directory(path)) {
    bool any = false;
    for (const char* name : kFiles) any = any || fs::exists(path / name);
    if (!any) {
      throw_failure("{}: a GEMeX folder holds {}; it has none of them. To open one file, give its own path",
                    path.string(), fmt::join(kFiles, ", "));
    }
  }
  return std::make_unique<Gemex>(path);
}

}  // namespace thinkvg::data
