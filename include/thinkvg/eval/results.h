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
//  "parsed": {"complete", "problem", "answer", "think", "regions", "think_regions"}, "a_score", "v_score", "token_f1",
//  "confidence", "judge": {"model", "reference"}}
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
// The same with the version for people, below a table.
std::string provenance_text(const Provenance& provenance);

// SHA-256 of a file; of a folder, that of its files' names and hashes in order of the names. An empty text where there
// is neither.
std::string sha256_path(const std::filesystem::path& path);

// Data settings of an evaluation: rows that cannot be read are left out and said, not an error.
inline data::DataOptions scored_data() {
  data::DataOptions options;
  options.skip_bad_rows = true;
  return options;
}

struct SubsetCounts {
  std::int64_t used = 0;             // questions that the scores are about
  std::int64_t all = 0;              // questions that the data settings leave
  std::int64_t without_picture = 0;  // left out before, since they have none
  std::int64_t bad_rows = 0;         // rows of the set that could not be read
};
// "all 3,960 questions", "the first 100 of 3,960 questions; filter: type == \"closed\"": which questions the scores are
// about, with every setting of `options` and every fault that left some out.
std::string subset_text(const SubsetCounts& counts, const data::DataOptions& options);

}  // namespace thinkvg::eval
