#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cctype>
#include <stdexcept>

#include "data/formats.h"
#include "data/json_fields.h"
#include "data/row_dataset.h"
#include "data/rows.h"
#include "thinkvg/core/error.h"

namespace thinkvg::data {
namespace {

// What the sets call the same thing, the first that is there.
constexpr std::initializer_list<const char*> kImageNames = {"image_name", "img_name", "image_path",
                                                            "image",      "img_id",   "image_id"};
constexpr std::initializer_list<const char*> kIdNames = {"qid", "question_id", "id"};

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

// VQA-RAD says in phrase_type which questions are its test set: test_freeform, test_para.
std::string split_of(const Json& row) {
  if (std::string split = text_field(row, "split"); !split.empty()) return split;
  const std::string phrase = text_field(row, "phrase_type");
  if (phrase.empty()) return {};
  return phrase.starts_with("test") ? "test" : "train";
}

ParsedRow parse_vqa(const Json& row, const RowPlace& place) {
  Sample sample;
  sample.id = text_field(row, kIdNames);
  if (sample.id.empty()) sample.id = std::to_string(place.row);
  sample.image = relative_image(text_field(row, kImageNames));
  sample.patient = text_field(row, {"patient", "patient_id", "subject_id"});
  if (sample.patient.empty()) sample.patient = patient_of(sample.image);
  sample.question = text_field(row, "question");
  const std::string answer = text_field(row, "answer");
  const std::string type = lower(text_field(row, "answer_type"));
  if (type == "closed") {
    sample.type = QuestionType::closed;
  } else if (type == "open") {
    sample.type = QuestionType::open;
  } else {
    sample.type = guess_type({}, answer, false);
  }
  sample.answer = tidy_answer(answer, sample.type, {});
  sample.content_type = text_field(row, {"content_type", "question_type"});
  sample.split = split_of(row);
  sample.fields = other_fields(row, {"question", "answer", "image", "image_name", "img_name"});
  return {{std::move(sample)}, {}, {}};
}

}  // namespace

bool is_vqa_rad(const Preview& file) {
  return file.is_json_rows() && file.has_all({"image_name", "question", "answer", "phrase_type"});
}

bool is_slake(const Preview& file) { return file.is_json_rows() && file.has_all({"img_name", "question", "answer"}); }

bool is_vqa(const Preview& file) {
  if (file.kind == FileKind::json_object || !file.has_all({"question", "answer"})) return false;
  return std::any_of(kImageNames.begin(), kImageNames.end(), [&](const char* name) { return file.has(name); });
}

std::unique_ptr<Dataset> open_vqa(const std::vector<Preview>& files, const std::string& frame) {
  for (const Preview& file : files) {
    if (!is_vqa(file)) {
      throw_failure("{}: expected rows with question, answer and one of {}; it has {}", file.file.string(),
                    fmt::join(kImageNames, ", "), fmt::join(file.fields, ", "));
    }
  }
  if (files.front().is_json_rows()) {
    return read_rows(files,
                     {.columns = {},
                      .parse = [](const std::vector<std::string_view>& cells,
                                  const RowPlace& place) { return parse_vqa(parse_json_row(cells[0]), place); },
                      .repeated_ids_are_bad = false},
                     frame);
  }
  // The columns of a table become the keys of an object; a picture inside the file is named by its content.
  const std::vector<std::string> columns = files.front().fields;
  const auto picture = std::find(columns.begin(), columns.end(), "image");
  const bool inside = files.front().kind == FileKind::parquet && picture != columns.end();
  return read_rows(
      files,
      {.columns = columns,
       .parse =
           [columns](const std::vector<std::string_view>& cells, const RowPlace& place) {
             Json row = Json::object();
             for (std::size_t i = 0; i < columns.size(); ++i) row[columns[i]] = std::string(cells[i]);
             return parse_vqa(row, place);
           },
       .picture_column = inside ? static_cast<std::size_t>(picture - columns.begin()) : static_cast<std::size_t>(-1),
       .repeated_ids_are_bad = false},
      frame);
}

}  // namespace thinkvg::data
