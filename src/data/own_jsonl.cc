#include <arrow/buffer.h>
#include <arrow/io/compressed.h>
#include <arrow/io/memory.h>
#include <arrow/util/compression.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <stdexcept>

#include "data/formats.h"
#include "data/json_fields.h"
#include "data/parquet_table.h"
#include "data/row_dataset.h"
#include "data/rows.h"
#include "thinkvg/core/error.h"
#include "thinkvg/core/files.h"
#include "thinkvg/data/jsonl.h"
#include "thinkvg/grounding/geometry.h"
#include "thinkvg/grounding/response.h"

namespace thinkvg::data {
namespace {

const std::vector<std::string>& known_keys() {
  static const std::vector<std::string> kKeys = {"id",      "images", "image",        "question", "type",  "choices",
                                                 "think",   "answer", "boxes",        "frame",    "order", "size",
                                                 "patient", "split",  "content_type", "fields"};
  return kKeys;
}

void check_keys(const Json& row) {
  for (const auto& item : row.items()) {
    if (std::find(known_keys().begin(), known_keys().end(), item.key()) != known_keys().end()) continue;
    const std::string near = nearest_name(item.key(), known_keys());
    throw std::invalid_argument(fmt::format("unknown key '{}'{}; put what is your own into \"fields\"", item.key(),
                                            near.empty() ? "" : fmt::format(", did you mean '{}'?", near)));
  }
}

void add_boxes(const Json& row, Sample& sample) {
  const auto boxes = row.find("boxes");
  if (boxes == row.end() || boxes->is_null()) return;
  if (!boxes->is_array()) throw std::invalid_argument("'boxes' should be a list");
  const std::string order_name = text_field(row, "order");
  const grounding::BoxOrder order =
      order_name.empty() ? grounding::BoxOrder::xyxy : grounding::parse_box_order(order_name);
  sample.more_regions.resize(sample.more_images.size());
  bool any_more = false;
  for (const Json& item : *boxes) {
    if (!item.is_object() || !item.contains("box")) {
      throw std::invalid_argument("an element of 'boxes' is {\"name\": .., \"box\": [..]}, not " + item.dump());
    }
    grounding::Region region{text_field(item, "name"),
                             grounding::make_box(four_numbers(item["box"]), order, sample.frame)};
    const auto image = item.find("image");
    if (image != item.end() && !image->is_number_unsigned()) {
      throw std::invalid_argument("'image' of a box is the number of a picture, from 0, not " + image->dump());
    }
    const std::size_t place = image == item.end() ? 0 : image->get<std::size_t>();
    if (place > sample.more_images.size()) {
      throw std::invalid_argument(
          fmt::format("a box is on picture {}, but the row has {}", place, sample.more_images.size() + 1));
    }
    any_more |= place > 0;
    (place == 0 ? sample.regions : sample.more_regions[place - 1]).push_back(std::move(region));
  }
  if (!any_more) sample.more_regions.clear();
}

ParsedRow parse_row(std::string_view text, const RowPlace& place, bool frame_is_given) {
  const Json row = parse_json_row(text);
  check_keys(row);
  Sample sample;
  sample.id = text_field(row, "id");
  if (sample.id.empty()) sample.id = std::to_string(place.row);
  std::vector<std::string> images = texts_field(row, row.contains("images") ? "images" : "image");
  for (std::string& image : images) image = relative_image(image);
  if (images.empty()) throw std::invalid_argument("the row names no picture ('images')");
  sample.image = images.front();
  sample.more_images.assign(images.begin() + 1, images.end());
  if (std::find(images.begin(), images.end(), "") != images.end()) throw std::invalid_argument("a picture has no name");
  sample.patient = text_field(row, "patient");
  if (sample.patient.empty()) sample.patient = patient_of(sample.image);
  sample.question = text_field(row, "question");
  sample.choices = texts_field(row, "choices");
  sample.think = text_field(row, "think");
  sample.split = text_field(row, "split");
  sample.content_type = text_field(row, "content_type");
  const auto given = row.find("answer");
  const bool is_list = given != row.end() && given->is_array();
  std::string answer;
  if (is_list) {
    for (const std::string& part : texts_field(row, "answer")) answer += (answer.empty() ? "" : ", ") + part;
  } else {
    answer = text_field(row, "answer");
  }
  const std::string type = text_field(row, "type");
  sample.type = type.empty() ? guess_type(sample.choices, answer, is_list) : parse_question_type(type);
  sample.answer = tidy_answer(answer, sample.type, sample.choices);
  const std::string frame = text_field(row, "frame");
  if (!frame.empty()) sample.frame = grounding::BoxFrame::parse(frame);
  if (const auto size = row.find("size"); size != row.end() && !size->is_null()) {
    if (!size->is_array() || size->size() != 2 || !(*size)[0].is_number_unsigned() || !(*size)[1].is_number_unsigned())
      throw std::invalid_argument("'size' is [width, height] in pixels, not " + size->dump());
    sample.size = {(*size)[0].get<std::int64_t>(), (*size)[1].get<std::int64_t>()};
  }
  if (const auto fields = row.find("fields"); fields != row.end() && !fields->is_null()) {
    if (!fields->is_object()) throw std::invalid_argument("'fields' should be an object of texts");
    for (const auto& [key, value] : fields->items()) sample.fields[key] = text_field(*fields, key.c_str());
  }
  add_boxes(row, sample);
  if (frame.empty() && !frame_is_given) {
    const bool in_think = !grounding::parse_response("<think>" + sample.think, {}).think_regions.empty();
    if (!sample.regions.empty() || !sample.more_regions.empty() || in_think)
      throw std::invalid_argument("the row has boxes, but no 'frame'");
  }
  return {{std::move(sample)}, {}, {}};
}

Json numbers_json(const grounding::Box& box) { return {box.x1, box.y1, box.x2, box.y2}; }

std::string gzip(const std::string& content) {
  auto codec = arrow::util::Codec::Create(arrow::Compression::GZIP);
  auto sink = arrow::io::BufferOutputStream::Create();
  if (!codec.ok() || !sink.ok()) throw_failure("cannot compress with gzip");
  auto stream = arrow::io::CompressedOutputStream::Make(codec->get(), *sink);
  if (!stream.ok() || !(*stream)->Write(content.data(), static_cast<std::int64_t>(content.size())).ok() ||
      !(*stream)->Close().ok())
    throw_failure("cannot compress with gzip");
  auto buffer = (*sink)->Finish();
  if (!buffer.ok()) throw_failure("cannot compress with gzip: {}", buffer.status().message());
  return (*buffer)->ToString();
}

}  // namespace

bool is_own_jsonl(const Preview& file) {
  if (!file.is_json_rows() || !file.has_all({"question", "answer"})) return false;
  const bool pictures = file.has("images") || (file.has("image") && (file.has("frame") || file.has("boxes")));
  return pictures && !file.has("conversations") && !file.has("messages");
}

std::unique_ptr<Dataset> open_own_jsonl(const std::vector<Preview>& files, const std::string& frame) {
  for (const Preview& file : files) require_fields(file, FileKind::json_list, {"question", "answer"});
  const bool frame_is_given = !frame.empty();
  return read_rows(
      files,
      {.columns = {},
       .parse = [frame_is_given](const std::vector<std::string_view>& cells,
                                 const RowPlace& place) { return parse_row(cells[0], place, frame_is_given); }},
      frame);
}

std::string to_json_line(const Sample& sample) {
  Json row = {{"id", sample.id}};
  row["images"] = Json::array({sample.image});
  for (const std::string& image : sample.more_images) row["images"].push_back(image);
  row["question"] = sample.question;
  row["type"] = question_type_name(sample.type);
  if (!sample.choices.empty()) row["choices"] = sample.choices;
  if (!sample.think.empty()) row["think"] = sample.think;
  row["answer"] = sample.answer;
  Json boxes = Json::array();
  for (const grounding::Region& region : sample.regions)
    boxes.push_back({{"name", region.name}, {"box", numbers_json(region.box)}});
  for (std::size_t i = 0; i < sample.more_regions.size(); ++i) {
    for (const grounding::Region& region : sample.more_regions[i])
      boxes.push_back({{"name", region.name}, {"box", numbers_json(region.box)}, {"image", i + 1}});
  }
  if (!boxes.empty()) row["boxes"] = std::move(boxes);
  row["frame"] = sample.frame.name();
  if (sample.size.width > 0) row["size"] = {sample.size.width, sample.size.height};
  if (!sample.patient.empty()) row["patient"] = sample.patient;
  if (!sample.split.empty()) row["split"] = sample.split;
  if (!sample.content_type.empty()) row["content_type"] = sample.content_type;
  if (!sample.fields.empty()) row["fields"] = sample.fields;
  return row.dump(-1, ' ', false, Json::error_handler_t::replace);
}

void write_jsonl(const Dataset& dataset, const std::filesystem::path& file) {
  std::string content;
  for (std::int64_t i = 0; i < dataset.size(); ++i) content += to_json_line(dataset.get(i)) + "\n";
  write_file_atomically(file, file.extension() == ".gz" ? gzip(content) : content);
}

void write_thinkvg_parquet(const Dataset& dataset, const std::filesystem::path& file) {
  std::vector<std::pair<std::string, TextColumn>> columns;
  for (const char* name : {"image_path", "question", "question_type", "thinkVG", "response", "split"})
    columns.emplace_back(name, TextColumn());
  const grounding::BoxFrame frame = grounding::BoxFrame::letterbox(336);
  const grounding::ImageGeometry geometry({336, 336});  // between letterbox frames any picture gives the same
  for (std::int64_t i = 0; i < dataset.size(); ++i) {
    const Sample sample = dataset.get(i);
    if (!sample.more_images.empty() || grounding::conversion_needs_picture(sample.frame, frame)) {
      throw_invalid("sample {}: ThinkVG parquet holds one picture a question and boxes of a letterbox frame, not {} {}",
                    sample.id, sample.more_images.size() + 1, sample.frame.name());
    }
    std::vector<grounding::Region> regions;
    for (const grounding::Region& region : sample.regions)
      regions.push_back({region.name, geometry.convert(region.box, frame)});
    std::string type = question_type_name(sample.type);
    if (sample.type == QuestionType::open || sample.type == QuestionType::closed) type += "_ended";
    columns[0].second.append("/" + sample.image);
    columns[1].second.append(sample.prompt());
    columns[2].second.append(type + "_questions");
    columns[3].second.append(sample.frame == frame
                                 ? sample.think
                                 : grounding::convert_inline_boxes(sample.think, geometry, sample.frame, frame));
    columns[4].second.append(grounding::format_response(sample.answer, regions));
    columns[5].second.append(sample.split.empty() ? "train" : sample.split);
  }
  const std::filesystem::path temporary = file.string() + ".partial";
  write_text_columns(temporary, columns);
  std::filesystem::rename(temporary, file);
}

}  // namespace thinkvg::data
