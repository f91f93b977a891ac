#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "thinkvg/rewards/options.h"

namespace thinkvg::rewards {

// One question to a judge model.
struct JudgeRequest {
  std::string system;
  std::string user;
  std::int64_t attempt = 0;  // asked for the (n + 1)-th time, because the replies before could not be read
};

struct JudgeReply {
  std::string text;
  std::string problem;  // why there is no reply, in words; empty where there is one
  std::int64_t prompt_tokens = 0;
  std::int64_t reply_tokens = 0;
};

// A model that grades answers: a server (make_http_judge), a cache before it (CachedJudge), or any model of one's own.
class Judge {
 public:
  virtual ~Judge() = default;
  // One reply a request, in their order. A request that cannot be answered gets a reply with its problem; nothing is
  // thrown for it. Called by one thread at a time.
  virtual std::vector<JudgeReply> ask(std::span<const JudgeRequest> requests) = 0;
  // Whether the reply is at hand already and costs nothing, as in a cache.
  virtual bool knows(const JudgeRequest& request) const;
};

// What was asked of a server since it was made.
struct JudgeUsage {
  std::int64_t requests = 0;  // HTTP requests, further tries included
  std::int64_t retries = 0;
  std::int64_t replies = 0;
  std::int64_t failures = 0;  // requests that got no reply in the end
  std::int64_t prompt_tokens = 0;
  std::int64_t reply_tokens = 0;
  double cost = 0;
};

// POST <url>/chat/completions of an OpenAI-compatible server, `concurrency` at once. Time-outs, broken connections,
// 408, 409, 425, 429, 5xx and replies that are no chat completion are tried again after a pause that doubles each time,
// with jitter, or that the server names (Retry-After, seconds or a date); other answers are final. After a batch
// without any reply the next one starts with a single probe, so that a server that is down costs one request a batch.
class HttpJudge : public Judge {
 public:
  virtual JudgeUsage usage() const = 0;
  // Is called with every reply as it comes, from the threads of ask(), one at a time.
  using Listener = std::function<void(const JudgeRequest&, const JudgeReply&)>;
  virtual void set_listener(Listener listener) = 0;
};
// Throws std::invalid_argument on a bad URL or option. Does not connect yet.
std::unique_ptr<HttpJudge> make_http_judge(const JudgeOptions& options);

// Keeps every reply of `inner` in a file of JSON lines and answers from it when the same is asked again: same identity
// (model and sampling settings), same texts, same attempt. Lines are appended one at a time, so that a killed process
// loses nothing but a line it was writing, which the next one skips; several processes may share the file.
class CachedJudge final : public Judge {
 public:
  // `inner` may be null: then what is not in the file is a problem. Throws std::runtime_error when the file cannot be
  // read or opened.
  CachedJudge(std::shared_ptr<Judge> inner, const std::filesystem::path& file, std::string identity);
  ~CachedJudge() override;
  std::vector<JudgeReply> ask(std::span<const JudgeRequest> requests) override;
  bool knows(const JudgeRequest& request) const override;
  // Adds a reply to the file, unless it is there or has a problem. May be called from several threads.
  void keep(const JudgeRequest& request, const JudgeReply& reply);
  // How many requests were answered from the file so far.
  std::int64_t num_hits() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Makes a judge out of the model folder that judge.model names.
using LocalJudgeFactory = std::function<std::shared_ptr<Judge>(const JudgeOptions& options)>;

// The judge that the options describe: a server, or with url "local" a model in this process, behind a cache where one
// is given. Without url, or where nothing can make a local one (`local` is empty), the cache answers alone. Throws
// std::invalid_argument when there is no cache either.
std::shared_ptr<Judge> make_judge(const JudgeOptions& options, const LocalJudgeFactory& local = nullptr);

// A prompt file: YAML with `user` and, if wanted, `system`; {question}, {choices}, {context}, {answer_1}, {answer_2}
// stand for the fields of a comparison.
class JudgePrompt {
 public:
  // Throws std::runtime_error naming the file when it is missing or not such a file, or has unknown {fields}.
  static JudgePrompt read(const std::filesystem::path& file);
  // Field text goes in as it is, braces and all, but cannot imitate the prompt's own [..] markers, and is cut after
  // 8,000 bytes. Throws std::invalid_argument when a field that the prompt uses is missing.
  JudgeRequest fill(const std::map<std::string, std::string>& fields) const;

 private:
  std::string system_, user_;
};

// Two answers to one question.
struct JudgedPair {
  std::string question;
  std::string choices;  // one a line; may be empty
  std::string context;  // what the judge may rely on: report or reference reasoning; may be empty
  std::string reference;
  std::string prediction;
};

// The judge's scores of the two, from 1 to 10.
struct PairVerdict {
  double reference = 0;
  double prediction = 0;
  std::string problem;  // why there are none, in words; else empty
};

// Puts every pair to the judge; with `swap` in both orders, so that a liking for the first answer cancels out. A reply
// without two scores is asked for again, `parse_attempts` times in all.
struct PairOptions {
  bool swap = true;
  std::int64_t parse_attempts = 2;
};
std::vector<PairVerdict> judge_pairs(Judge& judge, const JudgePrompt& prompt, std::span<const JudgedPair> pairs,
                                     const PairOptions& options);

// What judge_pairs would send: equal questions once, those that the judge knows not at all, and no question for the
// second time.
struct PairEstimate {
  std::int64_t num_requests = 0;
  std::int64_t num_prompt_tokens = 0;  // four bytes a token, which is about right for English
};
PairEstimate estimate_pairs(const Judge& judge, const JudgePrompt& prompt, std::span<const JudgedPair> pairs,
                            const PairOptions& options);

// The two scores in a judge's reply: "8 7", "8, 7", "Assistant 1: 8/10 .. Assistant 2: 7/10", {"answer_1": 8, ..}, with
// prose or reasoning (<think>) around. Nothing when they cannot be told, or lie outside of 1 to 10.
struct ScorePair {
  double first = 0, second = 0;
};
std::optional<ScorePair> read_score_pair(std::string_view reply);

// The AR-score of GEMeX: the judged scores of answers with their reasons, relative to the reference's, in percent.
struct ArScore {
  double mean_of_ratios = 0;  // 100 * mean(prediction / reference)
  double ratio_of_means = 0;  // 100 * sum(prediction) / sum(reference)
  std::int64_t num_judged = 0;
  std::int64_t num_failed = 0;  // verdicts with a problem; left out of the two
};
ArScore ar_score(std::span<const PairVerdict> verdicts);

}  // namespace thinkvg::rewards
