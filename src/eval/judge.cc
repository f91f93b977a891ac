#include "thinkvg/eval/judge.h"

#include <algorithm>

#include "eval/json_lines.h"
#include "thinkvg/core/error.h"
#include "thinkvg/core/files.h"
#include "thinkvg/core/log.h"
#include "thinkvg/core/progress.h"

namespace thinkvg::eval {
namespace {

double grade(const Json& value, const std::string& place) {
  if (!value.is_number()) throw_failure("{}: a judge's grade must be a number, but is {}", place, value.dump());
  const double number = value.get<double>();
  if (number < 0) throw_failure("{}: a judge's grade must be 0 or more, but is {}", place, number);
  return number;
}

std::string hash_of_texts(const JudgeRequest& request) {
  const data::Sample& sample = request.sample;
  const Json texts = {sample.prompt(), sample.answer, sample.think, request.answer, request.reasoning};
  return sha256_text(texts.dump(-1, ' ', false, Json::error_handler_t::replace)).substr(0, 16);
}

// An answer as the judge is shown it.
std::string with_reason(const std::string& answer, const std::string& reasoning) {
  return reasoning.empty() ? answer : answer + "\nReason: " + reasoning;
}

// The report, where the set has one (GEMeX: "ori_report"), else the reference's reasoning.
std::string context_of(const data::Sample& sample) {
  for (const char* name : {"report", "ori_report"})
    if (const auto field = sample.fields.find(name); field != sample.fields.end() && !field->second.empty())
      return field->second;
  return sample.think;
}

std::vector<rewards::JudgedPair> judged_pairs(const std::vector<JudgeRequest>& requests) {
  std::vector<rewards::JudgedPair> pairs;
  for (const JudgeRequest& request : requests) {
    const data::Sample& sample = request.sample;
    pairs.push_back({sample.question, fmt::format("{}", fmt::join(sample.choices, "\n")), context_of(sample),
                     with_reason(sample.answer, sample.think), with_reason(request.answer, request.reasoning)});
  }
  return pairs;
}

void log_cost(const Judge& judge, const std::vector<JudgeRequest>& open, std::int64_t num_all) {
  JudgeCost cost;
  if (judge.cost) {
    cost = judge.cost(open);
  } else {
    cost.num_questions = cost.num_requests = static_cast<std::int64_t>(open.size());
    std::size_t bytes = 0;
    for (const rewards::JudgedPair& pair : judged_pairs(open))
      bytes += pair.question.size() + pair.choices.size() + pair.context.size() + pair.reference.size() +
               pair.prediction.size();
    cost.num_prompt_tokens = static_cast<std::int64_t>(bytes / 4);
  }
  std::string text = fmt::format("judge {}: {} of {} answers to grade, {} requests of about {} tokens in all",
                                 judge.name, format_count(cost.num_questions), format_count(num_all),
                                 format_count(cost.num_requests), format_count(cost.num_prompt_tokens));
  if (cost.max_reply_tokens > 0)
    text += fmt::format(", replies of at most {} tokens", format_count(cost.max_reply_tokens));
  if (cost.max_price > 0) text += fmt::format(", price at most {:.2f}", cost.max_price);
  spdlog::info("{}", text);
}

}  // namespace

bool JudgeFile::has(const JudgeRequest& request) const {
  if (!scores.contains(request.sample.id)) return false;
  const auto hash = texts.find(request.sample.id);
  return hash == texts.end() || hash->second == hash_of_texts(request);
}

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
    const std::string id = json_id(line[id_key], place);
    out.scores[id] = score;
    out.texts.erase(id);
    if (line.contains("texts") && line["texts"].is_string()) out.texts[id] = line["texts"].get<std::string>();
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

JudgeFile run_judge(const std::vector<JudgeRequest>& requests, const Judge& judge, const JudgeRunOptions& options) {
  if (options.batch_size < 1) throw_invalid("a judge's batch_size must be at least 1, but is {}", options.batch_size);
  JudgeFile known;
  const bool keeps = !options.file.empty();
  if (keeps && std::filesystem::exists(options.file)) {
    drop_cut_line(options.file);
    known = read_judge_scores(options.file);
  }
  if (!known.judge.empty() && known.judge != judge.name) {
    throw_failure(
        "{} holds grades of '{}', but the judge is '{}' now; move the file away, or take those grades as judge_scores",
        options.file.string(), known.judge, judge.name);
  }
  JudgeFile graded{judge.name, {}, {}};
  std::vector<JudgeRequest> open;
  for (const JudgeRequest& request : requests) {
    if (known.has(request))
      graded.scores[request.sample.id] = known.scores.at(request.sample.id);
    else
      open.push_back(request);
  }
  log_cost(judge, open, static_cast<std::int64_t>(requests.size()));
  std::optional<AppendFile> out;
  if (keeps) out.emplace(options.file);
  Progress progress("judge", static_cast<std::int64_t>(open.size()));
  const auto batch = static_cast<std::size_t>(options.batch_size);
  for (std::size_t begin = 0; begin < open.size(); begin += batch) {
    const std::size_t end = std::min(open.size(), begin + batch);
    std::vector<JudgeRequest> part;
    for (std::size_t i = begin; i < end; ++i) part.push_back(open[i]);
    const auto verdicts = judge.grade(part);
    if (verdicts.size() != part.size()) {
      throw_failure("the judge '{}' gave {} verdicts on {} requests", judge.name, verdicts.size(), part.size());
    }
    std::string lines;
    for (std::size_t i = 0; i < part.size(); ++i) {
      if (!verdicts[i]) continue;
      const JudgeVerdict& verdict = *verdicts[i];
      graded.scores[part[i].sample.id] = verdict.score;
      Json line = {{"id", part[i].sample.id}, {"model", verdict.score.model}, {"reference", verdict.score.reference}};
      line["judge"] = judge.name;
      line["texts"] = hash_of_texts(part[i]);
      if (!verdict.reason.empty()) line["reason"] = verdict.reason;
      lines += line.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
    }
    if (out && !lines.empty()) out->write(lines);
    progress.update(static_cast<std::int64_t>(end), "");
  }
  progress.finish();
  const std::size_t num_failed = requests.size() - graded.scores.size();
  if (num_failed > 0)
    spdlog::warn("judge {}: {} of {} answers have no grade and are left out of the AR-score", judge.name,
                 format_count(static_cast<std::int64_t>(num_failed)),
                 format_count(static_cast<std::int64_t>(requests.size())));
  return graded;
}

Judge make_answer_judge(const rewards::JudgeOptions& options, const rewards::LocalJudgeFactory& local) {
  if (options.failure.on_failure == "fallback")
    throw_invalid("judge.on_failure: fallback is for rewards; the AR-score takes skip or stop");
  const std::shared_ptr<rewards::Judge> asked = rewards::make_judge(options, local);
  const rewards::JudgePrompt prompt = rewards::JudgePrompt::read(options.prompt);
  const rewards::PairOptions pairs{options.swap, options.parse_attempts};
  Judge judge;
  judge.name = fmt::format("{}, prompt {} (SHA-256 {}){}", options.model.empty() ? "unnamed" : options.model,
                           std::filesystem::path(options.prompt).filename().string(),
                           sha256_file(options.prompt).substr(0, 12), options.swap ? ", both orders" : "");
  judge.grade = [=](const std::vector<JudgeRequest>& requests) {
    const std::vector<rewards::PairVerdict> verdicts =
        rewards::judge_pairs(*asked, prompt, judged_pairs(requests), pairs);
    std::vector<std::optional<JudgeVerdict>> out;
    std::size_t num_failed = 0;
    std::string problem;
    for (const rewards::PairVerdict& verdict : verdicts) {
      if (verdict.problem.empty()) {
        out.push_back(JudgeVerdict{{verdict.prediction, verdict.reference}, ""});
        continue;
      }
      out.push_back(std::nullopt);
      ++num_failed;
      problem = verdict.problem;
    }
    if (num_failed > 0 && options.failure.on_failure == "stop")
      throw_failure("the judge gave no scores for {} of {} answers: {}", num_failed, verdicts.size(), problem);
    if (num_failed > 0)
      spdlog::warn("the judge gave no scores for {} of {} answers, such as: {}", num_failed, verdicts.size(), problem);
    return out;
  };
  judge.cost = [=](const std::vector<JudgeRequest>& requests) {
    const rewards::PairEstimate estimate = rewards::estimate_pairs(*asked, prompt, judged_pairs(requests), pairs);
    JudgeCost cost;
    cost.num_questions = static_cast<std::int64_t>(requests.size());
    cost.num_requests = estimate.num_requests;
    cost.num_prompt_tokens = estimate.num_prompt_tokens;
    cost.max_reply_tokens = estimate.num_requests * options.max_tokens;
    cost.max_price = (static_cast<double>(cost.num_prompt_tokens) * options.price_in +
                      static_cast<double>(cost.max_reply_tokens) * options.price_out) /
                     1e6;
    return cost;
  };
  return judge;
}

}  // namespace thinkvg::eval
