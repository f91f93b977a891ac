#include <spdlog/fmt/fmt.h>

#include <stdexcept>

#include "data/formats.h"
#include "data/row_dataset.h"
#include "data/rows.h"
#include "thinkvg/grounding/response.h"

namespace thinkvg::data {
namespace {

enum Column : std::size_t { kImage, kQuestion, kType, kResponse, kThink, kSplit };

ParsedRow parse_row(const std::vector<std::string_view>& cells, const RowPlace& place) {
  ParsedRow row;
  Sample sample;
  sample.id = std::to_string(place.row);
  sample.frame = grounding::BoxFrame::letterbox(336);
  sample.image = relative_image(cells[kImage]);
  sample.patient = patient_of(sample.image);
  sample.split = cells[kSplit];
  sample.type = parse_question_type(cells[kType]);
  set_question(sample, cells[kQuestion]);
  sample.think = trimmed(cells[kThink]);
  grounding::ParsedResponse parsed = grounding::parse_response(cells[kResponse], sample.frame, /*expect_think=*/false);
  sample.answer = tidy_answer(parsed.answer, sample.type, sample.choices);
  sample.regions = std::move(parsed.regions);
  take_bad_boxes(parsed, sample, row);
  if (!parsed.complete) {
    row.problem = "the response cannot be parsed: " + parsed.problem;
    if (!parsed.has_answer) throw std::invalid_argument(row.problem);
  }
  row.samples.push_back(std::move(sample));
  return row;
}

}  // namespace

bool is_thinkvg(const Preview& file) {
  return file.kind == FileKind::parquet && file.has_all({"image_path", "question", "question_type", "response"});
}

std::unique_ptr<Dataset> open_thinkvg(const std::vector<Preview>& files, const std::string& frame) {
  for (const Preview& file : files) {
    require_fields(file, FileKind::parquet, {"image_path", "question", "question_type", "response"});
  }
  return read_rows(
      files,
      {.columns = {"image_path", "question", "question_type", "response", "thinkVG", "split"}, .parse = parse_row},
      frame);
}

}  // namespace thinkvg::data
