#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "thinkvg/core/json.h"
#include "thinkvg/data/options.h"
#include "thinkvg/data/sample.h"
#include "thinkvg/eval/metrics.h"

// The folder that an evaluation leaves: metrics.json, predictions.jsonl, config.yaml, manifest.json. `thinkvg report`
// and `thinkvg score` read it.
namespace thinkvg::eval {

// One answered question. References must outlive the call.
struct AnsweredQuestion {
  const data::Sample& sample;
  const QuestionScore& score;
  std::string_view response;  // tagged, boxes in `frame`
  grounding::BoxFrame frame;
  const grounding::ImageGeometry& geometry;          // of the picture, or any where frames convert without it
  std::filesystem::path picture;                     // empty: unknown
  std::optional<grounding::ImageSize> picture_size;  // where known
};

// One line of predictions.jsonl; every box in it is in the reference's frame:
// {"id", "image", "image_file", "width", "height", "type", "content_type", "question", "choices",
//  "reference": {"answer", "think", "regions": [{"ref", "box"}]}, "frame", "response",
//  "parsed": {"complete", "problem", "answer", "think", "regions", "think_regions"}, "a_score", "v_score",
//  "confidence"}
Json prediction_line(const AnsweredQuestion& answered);

// What a figure depends on besides the rules, named in every report. Empty values are written as null.
struct Provenance {
  std::string subset;  // "all 3,960 questions"
  std::string prompt;  // how the question was put, in words
  std::string judge;
  std::string model_sha256;  // of the weights, or of the predictions where no model is known
  std::string data_sha256;
  std::int64_t seed = 0;
};
Json provenance_to_json(const Provenance& provenance);

// SHA-256 of a file; of a folder, that of its files' names and hashes in order of the names. An empty text where there
// is neither.
std::string sha256_path(const std::filesystem::path& path);

// Data settings of an evaluation: rows that cannot be read are left out and said, not an error.
inline data::DataOptions scored_data() {
  data::DataOptions options;
  options.skip_bad_rows = true;
  return options;
}

// "all 3,960 questions", "the first 100 of 3,960 questions; filter: type == \"closed\"": which questions the scores are
// about, with every setting of `options` that left some out. `all`: questions that the options leave.
std::string subset_text(std::int64_t used, std::int64_t all, const data::DataOptions& options);

}  // namespace thinkvg::eval
