#include "data/thinkvg_parquet.h"

#include <spdlog/fmt/fmt.h>

#include <stdexcept>

#include "data/parquet_table.h"
#include "data/rows.h"
#include "thinkvg/core/error.h"
#include "thinkvg/grounding/response.h"

namespace thinkvg::data {
namespace {

enum Column : std::size_t { kImage, kQuestion, kType, kResponse, kThink };

// The row as a sample, or why it is none.
struct Row {
  Sample sample;
  std::string problem;
};

class ThinkvgParquet final : public Dataset {
 public:
  explicit ThinkvgParquet(const std::filesystem::path& file)
      : columns_(read_text_columns(
            file, {.required = {"image_path", "question", "question_type", "response"}, .optional = {"thinkVG"}})) {
    for (std::int64_t row = 0; row < columns_[kImage].size(); ++row) {
      if (std::string problem = parse(row).problem; problem.empty()) {
        good_.push_back(row);
      } else {
        bad_.push_back({row, std::move(problem)});
      }
    }
  }

  std::int64_t size() const override { return static_cast<std::int64_t>(good_.size()); }

  Sample get(std::int64_t index) const override {
    if (index < 0 || index >= size()) {
      throw std::out_of_range(fmt::format("sample {} of {}: an index is 0 to size - 1", index, size()));
    }
    return parse(good_[static_cast<std::size_t>(index)]).sample;
  }

  const std::vector<BadRow>& bad_rows() const override { return bad_; }

 private:
  Row parse(std::int64_t row) const {
    Row result;
    Sample& sample = result.sample;
    sample.id = std::to_string(row);
    sample.frame = grounding::BoxFrame::letterbox(336);
    sample.image = relative_image(columns_[kImage].at(row));
    sample.patient = patient_of(sample.image);
    try {
      sample.type = parse_question_type(columns_[kType].at(row));
    } catch (const std::invalid_argument& error) {
      result.problem = error.what();
      return result;
    }
    if (sample.type == QuestionType::single_choice || sample.type == QuestionType::multi_choice) {
      SplitQuestion split = split_choices(columns_[kQuestion].at(row));
      sample.question = std::move(split.question);
      sample.choices = std::move(split.choices);
    } else {
      sample.question = trimmed(columns_[kQuestion].at(row));
    }
    sample.think = trimmed(columns_[kThink].at(row));
    const grounding::ParsedResponse parsed =
        grounding::parse_response(columns_[kResponse].at(row), sample.frame, /*expect_think=*/false);
    sample.answer = tidy_answer(parsed.answer, sample.type, sample.choices);
    sample.regions = parsed.regions;
    if (!parsed.bad_boxes.empty()) {
      result.problem = fmt::format("the response has a box that is none (expected x1 < x2 and y1 < y2): {}",
                                   parsed.bad_boxes.front());
    } else if (!parsed.complete) {
      result.problem = "the response cannot be parsed: " + parsed.problem;
    } else {
      result.problem = problem_of(sample);
    }
    return result;
  }

  std::vector<TextColumn> columns_;
  std::vector<std::int64_t> good_;
  std::vector<BadRow> bad_;
};

}  // namespace

std::unique_ptr<Dataset> open_thinkvg_parquet(const std::filesystem::path& file) {
  return std::make_unique<ThinkvgParquet>(file);
}

}  // namespace thinkvg::data
