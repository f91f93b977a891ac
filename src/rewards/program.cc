#include <cmath>
#include <optional>

#include "rewards/builtin.h"
#include "rewards/line_process.h"
#include "thinkvg/core/error.h"
#include "thinkvg/core/json.h"
#include "thinkvg/core/log.h"
#include "thinkvg/rewards/rollout_log.h"

namespace thinkvg::rewards {
namespace {

// A short name out of a command: the last part of the path of the first word that looks like a script, else of the
// first word, without its ending. "python3 rewards/length.py --fast" -> "length".
std::string name_of_command(const std::string& command) {
  std::string first, script;
  for (std::size_t begin = command.find_first_not_of(' '); begin < command.size();
       begin = command.find_first_not_of(' ', begin)) {
    const std::size_t end = std::min(command.find(' ', begin), command.size());
    const std::string word = command.substr(begin, end - begin);
    if (first.empty()) first = word;
    const std::size_t dot = word.rfind('.');
    if (script.empty() && word.front() != '-' && dot != std::string::npos && dot + 1 < word.size() &&
        word.find('/', dot) == std::string::npos)
      script = word;
    begin = end;
  }
  std::string name = script.empty() ? first : script;
  name = name.substr(name.rfind('/') + 1);
  const std::size_t dot = name.rfind('.');
  return dot == std::string::npos || dot == 0 ? name : name.substr(0, dot);
}

struct Reply {
  RewardScore score;
  std::string problem;  // why the line is no score; else empty
};

Reply read_reply(const std::string& line) {
  const auto bad = [&] {
    return Reply{{}, fmt::format("a reply must be a number, null or {{\"value\": ..}}, but is '{:.120}'", line)};
  };
  const Json json = Json::parse(line, nullptr, false);
  std::string reason = "as the program says";
  Json value = json;
  if (json.is_object()) {
    if (json.contains("error") && json["error"].is_string())
      return {{}, fmt::format("the program reports: {:.200}", json["error"].get<std::string>())};
    if (!json.contains("value")) return bad();
    value = json["value"];
    if (json.contains("reason") && json["reason"].is_string() && !json["reason"].get<std::string>().empty())
      reason = json["reason"].get<std::string>();
  }
  if (value.is_null()) return {not_applicable(std::move(reason)), ""};
  if (!value.is_number() || !std::isfinite(value.get<double>())) return bad();
  return {scored(value.get<double>(), std::move(reason)), ""};
}

class ProgramReward final : public Reward {
 public:
  ProgramReward(std::string command, const ProgramOptions& options)
      : command_(std::move(command)), name_(name_of_command(command_)), options_(options) {
    if (name_.empty()) throw_invalid("rewards: 'program:' needs a command, such as program:./my_reward.py");
    if (!(options.timeout > 0) || !std::isfinite(options.timeout))
      throw_invalid("program.timeout must be above 0, but is {}", options.timeout);
    if (options.max_restarts < 0)
      throw_invalid("program.max_restarts must not be negative, but is {}", options.max_restarts);
    options.failure.check("program");
  }

  std::string name() const override { return name_; }
  RewardScore score(const RewardInput& input) override { return score_batch({&input, 1}).front(); }

  std::vector<RewardScore> score_batch(std::span<const RewardInput> inputs) override {
    std::vector<RewardScore> scores;
    std::int64_t failures_here = 0;  // of the first completion that has no score yet
    std::size_t num_failed = 0;
    bool answered = false;
    std::string last_problem;
    while (scores.size() < inputs.size()) {
      if (!process_) process_ = std::make_unique<LineProcess>(command_);
      const auto exchange = process_->exchange(lines_from(inputs, scores.size()), options_.timeout);
      std::string problem = exchange.problem;
      for (const std::string& line : exchange.lines) {
        Reply reply = read_reply(line);
        if (!reply.problem.empty()) {
          problem = reply.problem;
          break;
        }
        scores.push_back(std::move(reply.score));
        answered = true;
        failures_here = 0;
      }
      if (problem.empty()) continue;
      process_.reset();  // lines and completions may be out of step
      if (scores.size() == inputs.size()) {
        spdlog::warn("reward {}: {}", name_, problem);
        break;
      }
      if (failures_here++ < options_.max_restarts) {
        spdlog::warn("reward {}: {}; it is started again", name_, problem);
        continue;
      }
      // This completion is beyond it. One that never answered any is given up for the whole batch.
      const std::string full = fmt::format("the program '{}' failed {} times: {}", command_, failures_here, problem);
      const std::size_t until = answered ? scores.size() + 1 : inputs.size();
      while (scores.size() < until) {
        scores.push_back(failed_score(options_.failure, name_, full));
        ++num_failed;
      }
      last_problem = full;
      failures_here = 0;
    }
    if (num_failed > 0)
      spdlog::warn("reward {}: {} of {} completions have no score ({}): {}", name_, num_failed, inputs.size(),
                   options_.failure.on_failure, last_problem);
    return scores;
  }

 private:
  static std::vector<std::string> lines_from(std::span<const RewardInput> inputs, std::size_t first) {
    std::vector<std::string> lines;
    for (std::size_t i = first; i < inputs.size(); ++i) {
      Json line = rollout_to_program_json(inputs[i]);
      line["index"] = i - first;
      line["batch_size"] = inputs.size() - first;
      lines.push_back(line.dump(-1, ' ', false, Json::error_handler_t::replace));
    }
    return lines;
  }

  std::string command_;
  std::string name_;
  ProgramOptions options_;
  std::unique_ptr<LineProcess> process_;  // started when first needed
};

}  // namespace

std::unique_ptr<Reward> make_program_reward(const std::string& command, const RewardOptions& options) {
  return std::make_unique<ProgramReward>(command, options.program);
}

}  // namespace thinkvg::rewards
