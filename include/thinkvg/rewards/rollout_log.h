#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "thinkvg/core/json.h"
#include "thinkvg/rewards/reward.h"

namespace thinkvg::rewards {

// A completion with all that the rewards need to score it again, without data set, picture or tokenizer:
//   {"step", "id", "completion", "type", "question", "choices", "reference", "reference_think", "reference_regions":
//    [{"ref", "box"}], "reference_frame", "image", "image_size": [width, height], "response", "frame", "finish":
//    "stop" | "length", "num_tokens", "ids"}
// `ids` is there where the input has them. `question` is as it is put to the model, choices included.
Json rollout_to_json(const RewardInput& input);

// The same with "parsed": {"complete", "problem", "think", "answer", "regions", "think_regions"}: what a reward program
// reads.
Json rollout_to_program_json(const RewardInput& input);

// A logged completion. Owns what input() refers to.
struct LoggedRollout {
  data::Sample sample;
  std::string response;
  grounding::BoxFrame frame;
  std::optional<grounding::ImageSize> image_size;
  bool truncated = false;
  std::int64_t num_tokens = -1;
  std::vector<std::int64_t> ids;
  std::int64_t step = 0;
  std::int64_t completion = 0;
  std::optional<double> reward;  // as recorded
  Json rewards;                  // as recorded: {"<name>": {"value": number | null, "reason"}}
  bool has_reference = false;    // false: the line has no question type (older logs); `sample` holds little but the id

  // Made by prepare().
  std::unique_ptr<grounding::ParsedResponse> parsed;
  std::unique_ptr<grounding::ImageGeometry> geometry;

  // Parses the response (`require_think`: whether a missing <think> makes it incomplete).
  void prepare(const grounding::ImageGeometry& of_picture, bool require_think);
  RewardInput input() const;
};

// Reads samples/completions.jsonl of a run. A last line without its end that is not JSON (the run was killed, or still
// writes) is left out. Throws std::runtime_error naming file and line for anything else.
std::vector<LoggedRollout> read_rollouts(const std::filesystem::path& file);

}  // namespace thinkvg::rewards
