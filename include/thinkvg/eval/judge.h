#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "thinkvg/eval/metrics.h"
#include "thinkvg/rewards/judge.h"
#include "thinkvg/rewards/options.h"

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

// What grading will send, to be told before it starts.
struct JudgeCost {
  std::int64_t num_questions = 0;      // not graded yet
  std::int64_t num_requests = 0;       // to the judge, for these; no further tries
  std::int64_t num_prompt_tokens = 0;  // estimate
  std::int64_t max_reply_tokens = 0;   // 0: not known
  double max_price = 0;                // with replies of that length; 0: no prices are known
};

// Who grades.
struct Judge {
  std::string name;  // what grades depend on besides the texts: model, prompt
  // Grades some requests, in order; nothing for one that the judge failed on. May be called several times.
  std::function<std::vector<std::optional<JudgeVerdict>>(const std::vector<JudgeRequest>&)> grade;
  // What grading them would send; may be empty: then one request each, of the texts' length.
  std::function<JudgeCost(const std::vector<JudgeRequest>&)> cost;

  explicit operator bool() const { return static_cast<bool>(grade); }
};

// The judge that the options describe. It is shown the reference's answer and the model's, each with its reasoning, and
// as context the report, where the set has one (a field "report" or "ori_report"), else the reference's reasoning. The
// options' cache keeps its replies. A request that it fails on gets no grade, or with on_failure: stop ends the grading
// with a std::runtime_error. Throws std::invalid_argument on a bad option and std::runtime_error on a bad prompt file.
// `local`: makes a judge in this process; see rl/local_judge.h.
Judge make_answer_judge(const rewards::JudgeOptions& options, const rewards::LocalJudgeFactory& local = nullptr);

// Default settings of such a judge: the prompt of the AR-score.
inline rewards::JudgeOptions answer_judge_options() {
  rewards::JudgeOptions options;
  options.prompt = "configs/judge/ar_score.yaml";
  return options;
}

using JudgeScores = std::map<std::string, JudgeScore>;  // by sample id

struct JudgeFile {
  std::string judge;  // name of the judge, as the file has it; empty where it does not say
  JudgeScores scores;
  std::map<std::string, std::string> texts;  // by sample id: hash of the texts that were graded, where the file says it

  // Whether it holds a grade of these very texts, or one that does not say of which.
  bool has(const JudgeRequest& request) const;
};

// A file of JSON lines: {"id": "12", "model": 7, "reference": 9, "judge": "name", "reason": "..", "texts": hash}. The
// last three may be missing. LLaVA's review files are read, too: {"question_id": 12, "tuple": [reference, model]}. A
// later line of the same id replaces the earlier. Throws std::runtime_error naming file and line.
JudgeFile read_judge_scores(const std::filesystem::path& file);

// Sets QuestionScore::judge where there is a grade. Returns how many have one.
std::int64_t apply_judge_scores(std::vector<QuestionScore>& questions, const JudgeScores& scores);

struct JudgeRunOptions {
  std::filesystem::path file;    // keeps the grades; empty: nothing does
  std::int64_t batch_size = 32;  // requests handed to the judge together; a kill loses at most so many grades
};

// Logs what grading will cost, then grades what the file does not have yet and appends each batch to it, so that a
// killed run goes on where it stopped. An answer that has changed since it was graded is graded again. Returns the
// grades of these requests. Throws std::runtime_error when the file holds grades of another judge, and what the judge
// throws.
JudgeFile run_judge(const std::vector<JudgeRequest>& requests, const Judge& judge, const JudgeRunOptions& options);

}  // namespace thinkvg::eval
