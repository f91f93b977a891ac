#include "thinkvg/rewards/judge.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <mutex>
#include <set>
#include <unordered_map>

#include "rewards/builtin.h"
#include "thinkvg/core/error.h"
#include "thinkvg/core/files.h"
#include "thinkvg/core/json.h"

namespace thinkvg::rewards {
namespace {

constexpr std::size_t kMaxFieldBytes = 8000;
const std::set<std::string>& known_fields() {
  static const std::set<std::string> kFields = {"question", "choices", "context", "answer_1", "answer_2"};
  return kFields;
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
char to_lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

// Calls text(part) and field(name) for a template's parts in order. A brace that opens no field's name is text.
template <class Text, class Field>
void walk_template(std::string_view source, const Text& text, const Field& field) {
  std::size_t begin = 0;
  for (std::size_t open = source.find('{'); open != std::string_view::npos; open = source.find('{', open + 1)) {
    std::size_t close = open + 1;
    while (close < source.size() && (is_letter(source[close]) || is_digit(source[close]) || source[close] == '_'))
      ++close;
    if (close == open + 1 || close >= source.size() || source[close] != '}') continue;
    text(source.substr(begin, open - begin));
    field(std::string(source.substr(open + 1, close - open - 1)));
    begin = close + 1;
  }
  text(source.substr(begin));
}

// A field as it goes into a prompt: cut, and unable to look like one of the prompt's own markers in brackets.
std::string field_text(std::string text) {
  if (text.size() > kMaxFieldBytes) {
    std::size_t end = kMaxFieldBytes;
    while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
    text.resize(end);
    text += " ...";
  }
  for (std::size_t open = text.find('['); open != std::string::npos; open = text.find('[', open + 1)) {
    if (open + 1 < text.size() && is_letter(text[open + 1])) text[open] = '(';
  }
  return text;
}

// Removes "/10" and "out of 10" behind scores.
std::string without_denominators(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size();) {
    bool removed = false;
    for (const std::string_view what : {"/10", "/ 10", " / 10", " out of 10"}) {
      const std::size_t end = i + what.size();
      if (text.substr(i, what.size()) != what || (end < text.size() && is_digit(text[end]))) continue;
      i = end;
      removed = true;
      break;
    }
    if (!removed) out += text[i++];
  }
  return out;
}

std::optional<ScorePair> in_range(double first, double second) {
  if (!(first >= 1 && first <= 10 && second >= 1 && second <= 10)) return std::nullopt;
  return ScorePair{first, second};
}

std::optional<double> number_at(std::string_view text, std::size_t position) {
  double value = 0;
  if (position >= text.size() || !is_digit(text[position])) return std::nullopt;
  const auto [stop, error] = std::from_chars(text.data() + position, text.data() + text.size(), value);
  if (error != std::errc() || !std::isfinite(value)) return std::nullopt;
  // "8.": a full stop, and "8th" no score.
  if (stop != text.data() + text.size() && is_letter(*stop)) return std::nullopt;
  return value;
}

std::optional<double> json_number(const Json& value) {
  if (value.is_number()) return value.get<double>();
  if (value.is_string()) {
    const std::string text = without_denominators(value.get<std::string>());
    if (const auto number = number_at(text, 0)) return number;
  }
  if (value.is_object() && value.contains("score")) return json_number(value["score"]);
  return std::nullopt;
}

std::optional<ScorePair> read_json_pair(std::string_view reply) {
  const std::size_t open = reply.find_first_of("{["), close = reply.find_last_of("}]");
  if (open == std::string_view::npos || close == std::string_view::npos || close < open) return std::nullopt;
  const Json json = Json::parse(reply.substr(open, close - open + 1), nullptr, false);
  if (!json.is_structured()) return std::nullopt;
  std::vector<double> numbers;
  for (const Json& value : json)
    if (const auto number = json_number(value)) numbers.push_back(*number);
  if (numbers.size() != 2) return std::nullopt;
  return in_range(numbers[0], numbers[1]);
}

// "Assistant 1: 8 .. Assistant 2: 7", "Answer A score = 8", "**Score 1**: 8".
std::optional<ScorePair> read_labelled_pair(std::string_view reply) {
  std::string text;
  for (const char c : reply)
    if (c != '*' && c != '_' && c != '"' && c != '`') text += to_lower(c);
  std::optional<double> first, second;
  for (const std::string_view label : {"answer", "assistant", "response", "score", "model", "rating"}) {
    for (std::size_t at = text.find(label); at != std::string::npos; at = text.find(label, at + 1)) {
      std::size_t i = at + label.size();
      while (i < text.size() && (text[i] == ' ' || text[i] == '#' || text[i] == '(')) ++i;
      if (i >= text.size() || (i + 1 < text.size() && (is_letter(text[i + 1]) || is_digit(text[i + 1])))) continue;
      const char which = text[i++];
      if (which != '1' && which != '2' && which != 'a' && which != 'b') continue;
      while (i < text.size() && (text[i] == ' ' || text[i] == ')' || text[i] == '\'' || text[i] == 's')) ++i;
      for (const std::string_view word : {"score", "rating", "gets", "is"})
        if (std::string_view(text).substr(i, word.size()) == word) i += word.size();
      bool separated = false;
      while (i < text.size() && (text[i] == ' ' || text[i] == ':' || text[i] == '=' || text[i] == '-')) {
        separated |= text[i] != ' ';
        ++i;
      }
      const auto number = number_at(text, i);
      if (!separated || !number) continue;
      (which == '1' || which == 'a' ? first : second) = number;
    }
  }
  if (!first || !second) return std::nullopt;
  return in_range(*first, *second);
}

// A line of two numbers and hardly anything else.
std::optional<ScorePair> read_line_pair(std::string_view reply) {
  static const std::set<std::string> kFillers = {"score", "scores", "rating", "ratings", "and", "final", "the", "are"};
  for (std::size_t begin = 0; begin < reply.size();) {
    const std::size_t end = std::min(reply.find('\n', begin), reply.size());
    const std::string_view line = reply.substr(begin, end - begin);
    begin = end + 1;
    std::vector<double> numbers;
    bool plain = true;
    for (std::size_t i = 0; i < line.size() && plain;) {
      if (is_digit(line[i])) {
        const auto number = number_at(line, i);
        plain = number.has_value();
        if (number) numbers.push_back(*number);
        while (i < line.size() &&
               (is_digit(line[i]) || (line[i] == '.' && i + 1 < line.size() && is_digit(line[i + 1]))))
          ++i;
      } else if (is_letter(line[i])) {
        std::string word;
        while (i < line.size() && is_letter(line[i])) word += to_lower(line[i++]);
        plain = kFillers.contains(word);
      } else {
        plain = line[i] != '-';  // no score is negative
        ++i;
      }
    }
    if (plain && numbers.size() == 2) return in_range(numbers[0], numbers[1]);
  }
  return std::nullopt;
}

// One question to the judge for all pairs that are equal: the completions of a group often are.
struct PairQuestion {
  JudgeRequest request;
  std::optional<ScorePair> scores;
  std::string problem;
};
struct PairQuestions {
  std::vector<PairQuestion> questions;
  std::vector<std::size_t> asked;  // question of pair i in order o at num_orders * i + o
};

PairQuestions pair_questions(const JudgePrompt& prompt, std::span<const JudgedPair> pairs, int num_orders) {
  PairQuestions out;
  std::unordered_map<std::string, std::size_t> known;
  for (const JudgedPair& pair : pairs) {
    for (int order = 0; order < num_orders; ++order) {
      JudgeRequest request = prompt.fill({{"question", pair.question},
                                          {"choices", pair.choices},
                                          {"context", pair.context},
                                          {"answer_1", order == 0 ? pair.reference : pair.prediction},
                                          {"answer_2", order == 0 ? pair.prediction : pair.reference}});
      const auto [entry, added] = known.emplace(request.system + '\0' + request.user, out.questions.size());
      if (added) out.questions.push_back({std::move(request), std::nullopt, ""});
      out.asked.push_back(entry->second);
    }
  }
  return out;
}

}  // namespace

bool Judge::knows(const JudgeRequest&) const { return false; }

std::optional<ScorePair> read_score_pair(std::string_view reply) {
  const std::size_t think = reply.rfind("</think>");
  if (think != std::string_view::npos) reply = reply.substr(think + 8);
  if (const auto pair = read_json_pair(reply)) return pair;
  const std::string text = without_denominators(reply);
  if (const auto pair = read_labelled_pair(text)) return pair;
  return read_line_pair(text);
}

JudgePrompt JudgePrompt::read(const std::filesystem::path& file) {
  if (!std::filesystem::exists(file))
    throw_failure("the judge's prompt {} is missing; name another with judge.prompt", file.string());
  const Json json = read_yaml_file(file);
  if (!json.is_object() || !json.contains("user") || !json["user"].is_string())
    throw_failure("{}: a judge's prompt needs a text `user`", file.string());
  JudgePrompt prompt;
  for (const auto& [key, value] : json.items()) {
    if ((key != "user" && key != "system") || !value.is_string())
      throw_failure("{}: a judge's prompt has the texts `system` and `user`, but '{}' is something else", file.string(),
                    key);
    const std::string text = value.get<std::string>();
    walk_template(
        text, [](std::string_view) {},
        [&](const std::string& field) {
          if (!known_fields().contains(field))
            throw_failure("{}: unknown field {{{}}}; known are: {}", file.string(), field,
                          fmt::join(known_fields(), ", "));
        });
    (key == "user" ? prompt.user_ : prompt.system_) = text;
  }
  return prompt;
}

JudgeRequest JudgePrompt::fill(const std::map<std::string, std::string>& fields) const {
  const auto filled = [&](const std::string& source) {
    std::string out;
    walk_template(
        source, [&](std::string_view text) { out += text; },
        [&](const std::string& field) {
          const auto value = fields.find(field);
          if (value == fields.end()) throw_invalid("the judge's prompt needs the field '{}'", field);
          out += field_text(value->second);
        });
    return out;
  };
  return {filled(system_), filled(user_), 0};
}

std::vector<PairVerdict> judge_pairs(Judge& judge, const JudgePrompt& prompt, std::span<const JudgedPair> pairs,
                                     const PairOptions& options) {
  if (options.parse_attempts < 1) throw_invalid("parse_attempts must be at least 1, but is {}", options.parse_attempts);
  const int num_orders = options.swap ? 2 : 1;
  auto [questions, asked] = pair_questions(prompt, pairs, num_orders);
  for (std::int64_t attempt = 0; attempt < options.parse_attempts; ++attempt) {
    std::vector<JudgeRequest> requests;
    std::vector<std::size_t> open;
    for (std::size_t i = 0; i < questions.size(); ++i) {
      if (questions[i].scores) continue;
      requests.push_back(questions[i].request);
      requests.back().attempt = attempt;
      open.push_back(i);
    }
    if (requests.empty()) break;
    const std::vector<JudgeReply> replies = judge.ask(requests);
    if (replies.size() != requests.size())
      throw_failure("the judge gave {} replies to {} requests", replies.size(), requests.size());
    bool any_unreadable = false;
    for (std::size_t i = 0; i < open.size(); ++i) {
      PairQuestion& question = questions[open[i]];
      question.problem = replies[i].problem;
      if (!question.problem.empty()) continue;
      question.scores = read_score_pair(replies[i].text);
      if (question.scores) continue;
      question.problem = fmt::format("no two scores from 1 to 10 in the reply '{:.80}'", replies[i].text);
      any_unreadable = true;
    }
    if (!any_unreadable) break;  // what failed, failed for good
  }
  std::vector<PairVerdict> verdicts(pairs.size());
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    for (int order = 0; order < num_orders; ++order) {
      const PairQuestion& question =
          questions[asked[static_cast<std::size_t>(num_orders) * i + static_cast<std::size_t>(order)]];
      if (!question.scores) {
        verdicts[i] = {0, 0, question.problem};
        break;
      }
      verdicts[i].reference += (order == 0 ? question.scores->first : question.scores->second) / num_orders;
      verdicts[i].prediction += (order == 0 ? question.scores->second : question.scores->first) / num_orders;
    }
  }
  return verdicts;
}

PairEstimate estimate_pairs(const Judge& judge, const JudgePrompt& prompt, std::span<const JudgedPair> pairs,
                            const PairOptions& options) {
  constexpr std::int64_t kBytesPerToken = 4;
  PairEstimate estimate;
  for (const PairQuestion& question : pair_questions(prompt, pairs, options.swap ? 2 : 1).questions) {
    if (judge.knows(question.request)) continue;
    ++estimate.num_requests;
    const auto bytes = static_cast<std::int64_t>(question.request.system.size() + question.request.user.size());
    estimate.num_prompt_tokens += (bytes + kBytesPerToken - 1) / kBytesPerToken;
  }
  return estimate;
}

ArScore ar_score(std::span<const PairVerdict> verdicts) {
  ArScore score;
  double ratios = 0, predictions = 0, references = 0;
  for (const PairVerdict& verdict : verdicts) {
    if (!verdict.problem.empty() || verdict.reference <= 0) {
      ++score.num_failed;
      continue;
    }
    ++score.num_judged;
    ratios += verdict.prediction / verdict.reference;
    predictions += verdict.prediction;
    references += verdict.reference;
  }
  if (score.num_judged == 0) return score;
  score.mean_of_ratios = 100 * ratios / static_cast<double>(score.num_judged);
  score.ratio_of_means = 100 * predictions / references;
  return score;
}

// Cache.

struct CachedJudge::State {
  State(std::shared_ptr<Judge> judge, const std::filesystem::path& path, std::string id)
      : inner(std::move(judge)), file(path), identity(std::move(id)) {}

  std::string key_of(const JudgeRequest& request) const {
    const Json parts = {identity, request.system, request.user, request.attempt};
    return sha256_text(parts.dump(-1, ' ', false, Json::error_handler_t::replace));
  }

  std::shared_ptr<Judge> inner;
  AppendFile file;
  std::string identity;
  std::mutex mutex;
  std::unordered_map<std::string, JudgeReply> replies;
  std::int64_t num_hits = 0;
};

CachedJudge::CachedJudge(std::shared_ptr<Judge> inner, const std::filesystem::path& file, std::string identity) {
  std::string content;
  if (std::filesystem::exists(file)) {
    content = read_file(file);
  } else if (file.has_parent_path()) {
    std::error_code error;
    std::filesystem::create_directories(file.parent_path(), error);
    if (error) throw_failure("cannot make the folder {}: {}", file.parent_path().string(), error.message());
  }
  state_ = std::make_unique<State>(std::move(inner), file, std::move(identity));
  for (std::size_t begin = 0; begin < content.size();) {
    const std::size_t end = std::min(content.find('\n', begin), content.size());
    const Json line = Json::parse(std::string_view(content).substr(begin, end - begin), nullptr, false);
    begin = end + 1;
    if (!line.is_object() || !line.contains("key") || !line.contains("text")) continue;  // cut by a kill
    if (!line["key"].is_string() || !line["text"].is_string()) continue;
    JudgeReply reply;
    reply.text = line["text"].get<std::string>();
    reply.prompt_tokens = line.value("prompt_tokens", std::int64_t{0});
    reply.reply_tokens = line.value("reply_tokens", std::int64_t{0});
    state_->replies[line["key"].get<std::string>()] = std::move(reply);
  }
  if (!content.empty() && content.back() != '\n') state_->file.write("\n");
}

CachedJudge::~CachedJudge() = default;

std::int64_t CachedJudge::num_hits() const { return state_->num_hits; }

void CachedJudge::keep(const JudgeRequest& request, const JudgeReply& reply) {
  if (!reply.problem.empty()) return;
  const std::string key = state_->key_of(request);
  const Json line = {{"key", key},
                     {"identity", state_->identity},
                     {"text", reply.text},
                     {"prompt_tokens", reply.prompt_tokens},
                     {"reply_tokens", reply.reply_tokens}};
  const std::lock_guard lock(state_->mutex);
  if (!state_->replies.emplace(key, reply).second) return;
  state_->file.write_line(line.dump(-1, ' ', false, Json::error_handler_t::replace));
}

bool CachedJudge::knows(const JudgeRequest& request) const {
  const std::lock_guard lock(state_->mutex);
  return state_->replies.contains(state_->key_of(request));
}

std::vector<JudgeReply> CachedJudge::ask(std::span<const JudgeRequest> requests) {
  std::vector<JudgeReply> replies(requests.size());
  std::vector<JudgeRequest> open;
  std::vector<std::size_t> places;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    const auto known = state_->replies.find(state_->key_of(requests[i]));
    if (known != state_->replies.end()) {
      replies[i] = known->second;
      ++state_->num_hits;
    } else if (!state_->inner) {
      replies[i].problem = "not in the cache, and there is no judge (judge.url)";
    } else {
      open.push_back(requests[i]);
      places.push_back(i);
    }
  }
  if (open.empty()) return replies;
  std::vector<JudgeReply> fresh = state_->inner->ask(open);
  if (fresh.size() != open.size()) throw_failure("the judge gave {} replies to {} requests", fresh.size(), open.size());
  for (std::size_t i = 0; i < open.size(); ++i) {
    keep(open[i], fresh[i]);
    replies[places[i]] = std::move(fresh[i]);
  }
  return replies;
}

void JudgeOptions::check() const {
  const auto at_least = [](const char* name, double value, double least) {
    if (!(value >= least) || !std::isfinite(value))
      throw_invalid("judge.{} must be at least {}, but is {}", name, least, value);
  };
  if (url.empty() && cache.empty())
    throw_invalid("a judge is asked for, but there is none: give judge.url (and judge.model), or judge.cache");
  if (!url.empty() && model.empty()) throw_invalid("judge.url needs judge.model, the name of a model that it serves");
  at_least("max_difference", max_difference, 0);
  at_least("parse_attempts", static_cast<double>(parse_attempts), 1);
  at_least("temperature", temperature, 0);
  at_least("max_tokens", static_cast<double>(max_tokens), 1);
  at_least("concurrency", static_cast<double>(concurrency), 1);
  at_least("timeout", timeout, 0.001);
  at_least("batch_timeout", batch_timeout, 0.001);
  at_least("max_retries", static_cast<double>(max_retries), 0);
  at_least("backoff", backoff, 0);
  at_least("max_backoff", max_backoff, 0);
  at_least("max_requests_per_minute", max_requests_per_minute, 0);
  at_least("max_tokens_per_minute", max_tokens_per_minute, 0);
  at_least("max_cost", max_cost, 0);
  at_least("price_in", price_in, 0);
  at_least("price_out", price_out, 0);
  if (max_cost > 0 && price_in == 0 && price_out == 0)
    throw_invalid("judge.max_cost needs judge.price_in and judge.price_out");
  if (!extra.empty() && !Json::parse(extra, nullptr, false).is_object())
    throw_invalid("judge.extra must be a JSON object, but is '{}'", extra);
  failure.check("judge");
}

std::shared_ptr<Judge> make_judge(const JudgeOptions& options, const LocalJudgeFactory& local) {
  options.check();
  std::shared_ptr<Judge> judge;
  std::shared_ptr<HttpJudge> server;
  if (options.url == "local") {
    if (local) judge = local(options);
    if (!judge && options.cache.empty())
      throw_invalid(
          "judge.url is local, but nothing here can load a model; 'thinkvg grpo' can, and so can 'thinkvg eval', or "
          "give "
          "judge.cache");
  } else if (!options.url.empty()) {
    judge = server = make_http_judge(options);
  }
  if (options.cache.empty()) return judge;
  // What changes a reply. The URL does not: servers move.
  const Json identity = {options.model, options.temperature, options.max_tokens, options.extra};
  const auto cached = std::make_shared<CachedJudge>(judge, options.cache, identity.dump());
  if (server) {
    // Kept as soon as it comes, so that a killed run has paid for nothing twice.
    server->set_listener(
        [cache = cached.get()](const JudgeRequest& request, const JudgeReply& reply) { cache->keep(request, reply); });
  }
  return cached;
}

}  // namespace thinkvg::rewards
