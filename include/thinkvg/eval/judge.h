#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "thinkvg/eval/metrics.h"

// The AR-score: answer and reasoning graded by a judge, a language model that scores the reference and the model's
// answer. Any program may do the grading; this file keeps its grades, resumes it, and turns them into scores.
namespace thinkvg::eval {

// What a judge is asked about one question. References must outlive the call.
struct JudgeRequest {
  const data::Sample& sample;
  std::string answer;     // of the model; its whole text where it could not be parsed
  std::string reasoning;  // of the model; may be empty
};

struct JudgeVerdict {
  JudgeScore score;
  std::string reason;  // the judge's words; may be empty
};

// Grades some requests, in order; nothing for one that the judge failed on. May be called several times.
using Judge = std::function<std::vector<std::optional<JudgeVerdict>>(const std::vector<JudgeRequest>&)>;

using JudgeScores = std::map<std::string, JudgeScore>;  // by sample id

struct JudgeFile {
  std::string judge;  // name of the judge, as the file has it; empty where it does not say
  JudgeScores scores;
};

// A file of JSON lines: {"id": "12", "model": 7, "reference": 9, "judge": "name", "reason": ".."}. "judge" and "reason"
// may be missing. LLaVA's review files are read, too: {"question_id": 12, "tuple": [reference, model]}. A later line
// of the same id replaces the earlier. Throws std::runtime_error naming file and line.
JudgeFile read_judge_scores(const std::filesystem::path& file);

// Sets QuestionScore::judge where there is a grade. Returns how many have one.
std::int64_t apply_judge_scores(std::vector<QuestionScore>& questions, const JudgeScores& scores);

// What grading will send, to be told before it starts.
struct JudgeCost {
  std::int64_t num_requests = 0;    // not graded yet
  std::int64_t num_characters = 0;  // of question, choices, both answers and both reasonings
};
JudgeCost judge_cost(const std::vector<JudgeRequest>& requests, const JudgeScores& done);

struct JudgeRunOptions {
  std::string judge;             // name that is written into the file
  std::int64_t batch_size = 32;  // requests handed to the judge together; a kill loses at most so many grades
};

// Grades what `file` does not have yet and appends each batch to it, so that a killed run goes on where it stopped.
// Throws std::runtime_error when the file holds grades of another judge, and what the judge throws.
JudgeScores run_judge(const std::vector<JudgeRequest>& requests, const Judge& judge, const std::filesystem::path& file,
                      const JudgeRunOptions& options);

}  // namespace thinkvg::eval
