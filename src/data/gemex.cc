#include <spdlog/fmt/fmt.h>

#include <optional>
#include <stdexcept>

#include "data/formats.h"
#include "data/json_fields.h"
#include "data/row_dataset.h"
#include "data/rows.h"
#include "thinkvg/grounding/response.h"

namespace thinkvg::data {
namespace {

// "multi_choice_question.jsonl.gz" -> multi_choice; nothing where the name says nothing.
std::optional<QuestionType> type_of_file(const std::filesystem::path& file) {
  std::string name = file.filename().string();
  name = name.substr(0, name.find('.'));
  try {
    return parse_question_type(name);
  } catch (const std::invalid_argument&) {
    return std::nullopt;
  }
}

ParsedRow parse_test_row(std::string_view text, std::optional<QuestionType> type, std::int64_t number) {
  const Json row = parse_json_row(text);
  Sample sample;
  sample.frame = grounding::BoxFrame::letterbox(224);
  sample.image = relative_image(text_field(row, "image_path"));
  sample.patient = patient_of(sample.image);
  sample.question = text_field(row, "question");
  sample.choices = texts_field(row, "choices");
  sample.content_type = text_field(row, "type");
  const auto given = row.find("answer");
  const bool is_list = given != row.end() && given->is_array();
  std::string answer;
  for (const std::string& part : texts_field(row, "answer")) answer += (answer.empty() ? "" : ", ") + part;
  sample.type = type ? *type : guess_type(sample.choices, answer, is_list);
  sample.answer = tidy_answer(answer, sample.type, sample.choices);
  sample.think = text_field(row, "reason");
  const std::string number_text = text_field(row, "q_id");
  sample.id = question_type_name(sample.type) + "/" + (number_text.empty() ? std::to_string(number) : number_text);
  sample.fields = other_fields(row, {"image_path", "question", "type", "answer", "reason", "q_id"});
  const std::vector<std::string> names = texts_field(row, "visual_regions");
  const auto locations = row.find("visual_locations");
  if (locations != row.end()) {
    for (const auto& numbers : box_numbers(*locations)) {
      // One name for several boxes is usual ("bilateral lung").
      const std::size_t i = sample.regions.size();
      const std::string name = i < names.size() ? names[i] : names.empty() ? "" : names.back();
      sample.regions.push_back({name, grounding::make_box(numbers, grounding::BoxOrder::xyxy, sample.frame)});
    }
  }
  return {{std::move(sample)}, {}, {}};
}

ParsedRow parse_training_row(std::string_view text, std::int64_t number) {
  const Json row = parse_json_row(text);
  ParsedRow parsed;
  Sample sample;
  sample.frame = grounding::BoxFrame::letterbox(224);
  sample.image = relative_image(text_field(row, "image"));
  sample.patient = patient_of(sample.image);
  sample.type = parse_question_type(text_field(row, "q_type"));
  const auto turns = row.find("conversations");
  if (turns == row.end() || !turns->is_array() || turns->size() < 2 || !(*turns)[0].is_object() ||
      !(*turns)[1].is_object()) {
    throw std::invalid_argument("'conversations' should list a human and a gpt turn");
  }
  std::string question = text_field((*turns)[0], "value");
  if (const std::size_t image = question.find("<image>"); image != std::string::npos) question.erase(image, 7);
  set_question(sample, question);
  grounding::ParsedResponse reply = grounding::parse_sectioned_reply(text_field((*turns)[1], "value"), sample.frame);
  sample.answer = tidy_answer(reply.answer, sample.type, sample.choices);
  sample.think = reply.think;
  sample.regions = std::move(reply.regions);
  take_bad_boxes(reply, sample, parsed);
  if (!reply.complete) {
    parsed.problem = "the reply cannot be parsed: " + reply.problem;
    if (!reply.has_answer) throw std::invalid_argument(parsed.problem);
  }
  const std::string id = text_field(row, "row_id");
  sample.id = id.empty() ? std::to_string(number) : id;
  parsed.samples.push_back(std::move(sample));
  return parsed;
}

}  // namespace

bool is_gemex_test(const Preview& file) {
  return file.is_json_rows() && file.has_all({"question", "answer", "image_path"});
}

std::unique_ptr<Dataset> open_gemex_test(const std::vector<Preview>& files, const std::string& frame) {
  std::vector<std::optional<QuestionType>> types;
  for (const Preview& file : files) {
    require_fields(file, FileKind::json_list, {"question", "answer", "image_path"});
    types.push_back(type_of_file(file.file));
  }
  return read_rows(files,
                   {.columns = {},
                    .parse =
                        [types](const std::vector<std::string_view>& cells, const RowPlace& place) {
                          return parse_test_row(cells[0], types[place.file], place.row_in_file);
                        }},
                   frame);
}

bool is_gemex_train(const Preview& file) { return file.is_json_rows() && file.has_all({"conversations", "q_type"}); }

std::unique_ptr<Dataset> open_gemex_train(const std::vector<Preview>& files, const std::string& frame) {
  for (const Preview& file : files) require_fields(file, FileKind::json_list, {"conversations", "q_type", "image"});
  return read_rows(files,
                   {.columns = {},
                    .parse = [](const std::vector<std::string_view>& cells,
                                const RowPlace& place) { return parse_training_row(cells[0], place.row); }},
                   frame);
}

}  // namespace thinkvg::data
