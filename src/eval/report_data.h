#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "thinkvg/eval/report.h"

// How the report reads its parts.
namespace thinkvg::eval {

// A line of predictions.jsonl; errors name the place.
ReportPrediction read_prediction(const Json& line, const std::string& place);

// The picture of a prediction, small, as JPEG. Throws std::runtime_error where it is missing or of another shape.
std::string thumbnail_jpeg(const ReportPrediction& prediction, const std::filesystem::path& folder,
                           const ReportOptions& options);

// samples/watched.jsonl of a grpo run: each question at up to four steps, the first and the last among them. Nothing
// where there is no such file. Pictures are looked for in options.images, else where the run's config.yaml says; a
// question whose picture is not there has none.
struct WatchedQuestions {
  std::vector<std::string> labels;
  std::vector<ReportCase> cases;
};
WatchedQuestions read_watched(const std::filesystem::path& run, const ReportOptions& options);

// A score with its column in the summary and in the tables by question type.
struct ScoreColumn {
  const char* title;
  ReportScore ReportStage::*score;
};
// A-score and V-score, and the AR-score where a judge graded a run.
std::vector<ScoreColumn> score_columns(const ReportData& data);

}  // namespace thinkvg::eval
