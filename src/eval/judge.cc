#include "thinkvg/eval/judge.h"

#include <algorithm>

#include "eval/json_lines.h"
#include "thinkvg/core/error.h"
#include "thinkvg/core/files.h"

namespace thinkvg::eval {
namespace {

double grade(const Json& value, const std::string& place) {
  if (!value.is_number()) throw_failure("{}: a judge's grade must be a number, but is {}", place, value.dump());
  const double number = value.get<double>();
  if (number < 0) throw_failure("{}: a judge's grade must be 0 or more, but is {}", place, number);
  return number;
}

}  // namespace

JudgeFile read_judge_scores(const std::filesystem::path& file) {
  JudgeFile out;
  for_each_json_line(file, [&](const Json& line, const std::string& place) {
    const char* id_key = line.contains("id") ? "id" : "question_id";
    if (!line.contains(id_key)) throw_failure("{}: neither 'id' nor 'question_id'", place);
    JudgeScore score;
    if (line.contains("tuple") && line["tuple"].is_array() && line["tuple"].size() == 2) {
      score = {grade(line["tuple"][1], place), grade(line["tuple"][0], place)};
    } else if (line.contains("model") && line.contains("reference")) {
      score = {grade(line["model"], place), grade(line["reference"], place)};
    } else {
      throw_failure("{}: expected \"model\" and \"reference\", or \"tuple\": [reference, model]", place);
    }
    if (line.contains("judge") && line["judge"].is_string()) {
      const auto name = line["judge"].get<std::string>();
      if (!out.judge.empty() && name != out.judge) {
        throw_failure("{}: graded by '{}', but lines before by '{}'; one file holds one judge", place, name, out.judge);
      }
      out.judge = name;
    }
    out.scores[json_id(line[id_key], place)] = score;
  });
  return out;
}

std::int64_t apply_judge_scores(std::vector<QuestionScore>& questions, const JudgeScores& scores) {
  std::int64_t count = 0;
  for (QuestionScore& question : questions) {
    const auto found = scores.find(question.sample_id);
    if (found == scores.end()) continue;
    question.judge = found->second;
    ++count;
  }
  return count;
}

JudgeCost judge_cost(const std::vector<JudgeRequest>& requests, const JudgeScores& done) {
  JudgeCost cost;
  for (const JudgeRequest& request : requests) {
    if (done.contains(request.sample.id)) continue;
    ++cost.num_requests;
    cost.num_characters +=
        static_cast<std::int64_t>(request.sample.prompt().size() + request.sample.answer.size() +
                                  request.sample.think.size() + request.answer.size() + request.reasoning.size());
  }
  return cost;
}

JudgeScores run_judge(const std::vector<JudgeRequest>& requests, const Judge& judge, const std::filesystem::path& file,
                      const JudgeRunOptions& options) {
  if (options.batch_size < 1) throw_invalid("a judge's batch_size must be at least 1, but is {}", options.batch_size);
  JudgeFile known;
  if (std::filesystem::exists(file)) {
    drop_cut_line(file);
    known = read_judge_scores(file);
  }
  if (!known.judge.empty() && known.judge != options.judge) {
    throw_failure("{} holds grades of '{}', but the judge is '{}'; name another file", file.string(), known.judge,
                  options.judge);
  }
  std::vector<JudgeRequest> open;
  for (const JudgeRequest& request : requests) {
    if (!known.scores.contains(request.sample.id)) open.push_back(request);
  }
  AppendFile out(file);
  const auto batch = static_cast<std::size_t>(options.batch_size);
  for (std::size_t begin = 0; begin < open.size(); begin += batch) {
    const std::size_t end = std::min(open.size(), begin + batch);
    std::vector<JudgeRequest> part;
    for (std::size_t i = begin; i < end; ++i) part.push_back(open[i]);
    const auto verdicts = judge(part);
    if (verdicts.size() != part.size()) {
      throw_failure("the judge '{}' gave {} verdicts on {} requests", options.judge, verdicts.size(), part.size());
    }
    std::string lines;
    for (std::size_t i = 0; i < part.size(); ++i) {
      if (!verdicts[i]) continue;
      const JudgeVerdict& verdict = *verdicts[i];
      known.scores[part[i].sample.id] = verdict.score;
      Json line = {{"id", part[i].sample.id}, {"model", verdict.score.model}, {"reference", verdict.score.reference}};
      line["judge"] = options.judge;
      if (!verdict.reason.empty()) line["reason"] = verdict.reason;
      lines += line.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
    }
    if (!lines.empty()) out.write(lines);
  }
  return known.scores;
}

}  // namespace thinkvg::eval
