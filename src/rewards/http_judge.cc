#include <httplib.h>
#include <pthread.h>
#include <signal.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <mutex>
#include <thread>

#include "thinkvg/core/error.h"
#include "thinkvg/core/json.h"
#include "thinkvg/core/random.h"
#include "thinkvg/rewards/judge.h"

namespace thinkvg::rewards {
namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

constexpr std::uint64_t kMaxReplyBytes = 8 << 20;

Clock::time_point later(Clock::time_point from, double seconds) {
  return from + std::chrono::duration_cast<Clock::duration>(Seconds(std::min(seconds, 1e7)));
}
double seconds_until(Clock::time_point when) { return Seconds(when - Clock::now()).count(); }

// Spreads amounts evenly over time: per_minute of them in every minute, without bursts.
class Pacer {
 public:
  explicit Pacer(double per_minute) : seconds_each_(per_minute > 0 ? 60 / per_minute : 0), next_(Clock::now()) {}

  // Takes `amount` and returns when it may be used.
  Clock::time_point take(double amount) {
    const std::lock_guard lock(mutex_);
    const Clock::time_point start = std::max(next_, Clock::now());
    next_ = later(start, amount * seconds_each_);
    return start;
  }
  // What was taken turned out to be more (or less, negative).
  void correct(double amount) {
    const std::lock_guard lock(mutex_);
    next_ = later(next_, amount * seconds_each_);
  }

 private:
  std::mutex mutex_;
  double seconds_each_;
  Clock::time_point next_;
};

struct Endpoint {
  std::string origin;  // scheme://host:port
  std::string path;    // of chat/completions
};

Endpoint parse_url(const std::string& url) {
  const std::size_t scheme = url.find("://");
  if (!url.starts_with("http://") && !url.starts_with("https://"))
    throw_invalid("judge.url must begin with http:// or https://, but is '{}'", url);
  const std::size_t slash = std::min(url.find('/', scheme + 3), url.size());
  if (slash == scheme + 3) throw_invalid("judge.url names no host: '{}'", url);
  std::string path = url.substr(slash);
  while (path.ends_with('/')) path.pop_back();
  if (!path.ends_with("/chat/completions")) path += "/chat/completions";
  return {url.substr(0, slash), path};
}

// Seconds that the server asks to wait: a number or an HTTP date. Negative if it does not say.
double read_retry_after(const std::string& text) {
  double seconds = 0;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), seconds);
  if (error == std::errc() && stop == text.data() + text.size())
    return seconds >= 0 && std::isfinite(seconds) ? seconds : -1;
  std::tm date{};
  if (strptime(text.c_str(), "%a, %d %b %Y %H:%M:%S GMT", &date) == nullptr) return -1;
  return std::max(0.0, std::difftime(timegm(&date), std::time(nullptr)));
}

// How one HTTP request ended.
struct Outcome {
  JudgeReply reply;
  bool again = false;  // worth another try
  double retry_after = -1;
};

Outcome try_again(std::string problem, double retry_after = -1) {
  Outcome outcome;
  outcome.reply.problem = std::move(problem);
  outcome.again = true;
  outcome.retry_after = retry_after;
  return outcome;
}

// The server's own words for an error.
std::string error_text(const std::string& body) {
  const Json json = Json::parse(body, nullptr, false);
  if (json.is_object() && json.contains("error")) {
    const Json& error = json["error"];
    if (error.is_string()) return error.get<std::string>();
    if (error.is_object() && error.contains("message") && error["message"].is_string())
      return error["message"].get<std::string>();
  }
  return body;
}

// Never throws: whatever a server sends is a problem at worst.
Outcome read_reply(const std::string& body) {
  const Json json = Json::parse(body, nullptr, false);
  const auto pointer = [&](const char* path) -> const Json* {
    const Json::json_pointer at(path);
    return json.is_object() && json.contains(at) ? &json.at(at) : nullptr;
  };
  const Json* content = pointer("/choices/0/message/content");
  if (content == nullptr || !content->is_string())
    return try_again(fmt::format("the server's answer is no chat completion: '{:.80}'", body));
  Outcome outcome;
  outcome.reply.text = content->get<std::string>();
  const auto tokens = [&](const char* path, std::size_t characters) {
    const Json* value = pointer(path);
    if (value != nullptr && value->is_number_integer() && *value >= 0) return value->get<std::int64_t>();
    return static_cast<std::int64_t>(characters / 4 + 1);
  };
  outcome.reply.prompt_tokens = tokens("/usage/prompt_tokens", 0);
  outcome.reply.reply_tokens = tokens("/usage/completion_tokens", outcome.reply.text.size());
  return outcome;
}

class HttpJudgeImpl final : public HttpJudge {
 public:
  explicit HttpJudgeImpl(const JudgeOptions& options)
      : options_(options),
        endpoint_(parse_url(options.url)),
        request_pacer_(options.max_requests_per_minute),
        token_pacer_(options.max_tokens_per_minute) {
    options_.check();
    if (!options_.extra.empty()) extra_ = Json::parse(options_.extra);
    const char* key = options_.api_key_env.empty() ? nullptr : std::getenv(options_.api_key_env.c_str());
    if (key != nullptr) key_ = key;
    if (!httplib::Client(endpoint_.origin).is_valid()) throw_invalid("judge.url names no host: '{}'", options_.url);
  }

  std::vector<JudgeReply> ask(std::span<const JudgeRequest> requests) override {
    std::vector<JudgeReply> replies(requests.size());
    if (requests.empty()) return replies;
    const Clock::time_point deadline = later(Clock::now(), options_.batch_timeout);
    std::atomic<std::size_t> next = 0, num_replies = 0;
    std::string first_problem;
    if (down_) {
      run_threads(1, [&] { replies[0] = ask_one(requests[0], deadline, 0); });
      if (!replies[0].problem.empty()) {
        for (std::size_t i = 1; i < replies.size(); ++i)
          replies[i].problem = "the judge is still down: " + replies[0].problem;
        add_failures(replies.size());
        return replies;
      }
      next = num_replies = 1;
    }
    const auto num_threads = std::min(static_cast<std::size_t>(options_.concurrency), requests.size());
    run_threads(num_threads, [&] {
      for (std::size_t i = next++; i < requests.size(); i = next++) {
        replies[i] = ask_one(requests[i], deadline, options_.max_retries);
        if (replies[i].problem.empty()) ++num_replies;
      }
    });
    down_ = num_replies == 0;
    add_failures(replies.size() - num_replies);
    return replies;
  }

  JudgeUsage usage() const override {
    const std::lock_guard lock(mutex_);
    return usage_;
  }

  void set_listener(Listener listener) override { listener_ = std::move(listener); }

 private:
  // Threads of one's own, because a broken connection raises SIGPIPE in the thread that writes: there it is blocked.
  template <class Work>
  static void run_threads(std::size_t num_threads, const Work& work) {
    std::vector<std::thread> threads;
    std::exception_ptr failure;
    std::mutex failure_mutex;
    for (std::size_t i = 0; i < num_threads; ++i) {
      threads.emplace_back([&] {
        sigset_t pipe;
        sigemptyset(&pipe);
        sigaddset(&pipe, SIGPIPE);
        pthread_sigmask(SIG_BLOCK, &pipe, nullptr);
        try {
          work();
        } catch (...) {
          const std::lock_guard lock(failure_mutex);
          failure = std::current_exception();
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    if (failure) std::rethrow_exception(failure);  // such as a full disk under the cache
  }

  void add_failures(std::size_t count) {
    const std::lock_guard lock(mutex_);
    usage_.failures += static_cast<std::int64_t>(count);
  }

  std::string body_of(const JudgeRequest& request) const {
    Json messages = Json::array();
    if (!request.system.empty()) messages.push_back({{"role", "system"}, {"content", request.system}});
    messages.push_back({{"role", "user"}, {"content", request.user}});
    Json body = {{"model", options_.model},
                 {"messages", messages},
                 {"temperature", options_.temperature},
                 {"max_tokens", options_.max_tokens}};
    for (const auto& [key, value] : extra_.items()) {
      if (value.is_null())
        body.erase(key);
      else
        body[key] = value;
    }
    return body.dump(-1, ' ', false, Json::error_handler_t::replace);
  }

  JudgeReply ask_one(const JudgeRequest& request, Clock::time_point deadline, std::int64_t max_retries) {
    const std::string body = body_of(request);
    const double estimate = static_cast<double>(body.size()) / 4 + static_cast<double>(options_.max_tokens);
    RandomStream jitter({hash_key("judge"), hash_key(body), static_cast<std::uint64_t>(request.attempt)});
    double pause = options_.backoff;
    std::string problem;  // of the latest try
    for (std::int64_t attempt = 0;; ++attempt) {
      if (options_.max_cost > 0 && usage().cost >= options_.max_cost)
        return {"", fmt::format("the cost limit of {} (judge.max_cost) is reached", options_.max_cost), 0, 0};
      if (const std::string late = wait_for_turn(deadline, estimate); !late.empty())
        return {"", problem.empty() ? late : problem, 0, 0};
      Outcome outcome = post(body, deadline);
      count(outcome, attempt > 0, estimate);
      if (outcome.reply.problem.empty()) {
        if (listener_) {
          const std::lock_guard lock(listener_mutex_);
          listener_(request, outcome.reply);
        }
        return outcome.reply;
      }
      problem = attempt == 0 ? outcome.reply.problem : fmt::format("{} ({} tries)", outcome.reply.problem, attempt + 1);
      if (!outcome.again || attempt >= max_retries) return {"", problem, 0, 0};
      // Half of the pause is drawn, so that requests that failed together do not come back together.
      double seconds = std::min(pause, options_.max_backoff) * jitter.uniform(0.5, 1);
      pause *= 2;
      if (outcome.retry_after >= 0) {
        seconds = std::max(seconds, outcome.retry_after);
        hold_all_until(later(Clock::now(), outcome.retry_after));
      }
      const Clock::time_point resume = later(Clock::now(), seconds);
      if (resume >= deadline) return {"", problem, 0, 0};
      std::this_thread::sleep_until(resume);
    }
  }

  // A server that said when to come back means all of this process's requests.
  void hold_all_until(Clock::time_point when) {
    const std::lock_guard lock(mutex_);
    not_before_ = std::max(not_before_, when);
  }

  // Why the deadline comes first; empty when it is this request's turn.
  std::string wait_for_turn(Clock::time_point deadline, double tokens) {
    const Clock::time_point paced = std::max(request_pacer_.take(1), token_pacer_.take(tokens));
    Clock::time_point held;
    {
      const std::lock_guard lock(mutex_);
      held = not_before_;
    }
    if (Clock::now() >= deadline) return "the time for the batch (judge.batch_timeout) is over";
    if (held >= deadline) return fmt::format("the server asked for a pause of {:.0f} s more", seconds_until(held));
    if (paced >= deadline) return "the rate limit leaves no time for it within the batch (judge.batch_timeout)";
    std::this_thread::sleep_until(std::max(paced, held));
    return "";
  }

  void count(const Outcome& outcome, bool retry, double estimate) {
    const double tokens = static_cast<double>(outcome.reply.prompt_tokens + outcome.reply.reply_tokens);
    if (outcome.reply.problem.empty()) token_pacer_.correct(tokens - estimate);
    const std::lock_guard lock(mutex_);
    ++usage_.requests;
    usage_.retries += retry ? 1 : 0;
    if (!outcome.reply.problem.empty()) return;
    ++usage_.replies;
    usage_.prompt_tokens += outcome.reply.prompt_tokens;
    usage_.reply_tokens += outcome.reply.reply_tokens;
    usage_.cost = (static_cast<double>(usage_.prompt_tokens) * options_.price_in +
                   static_cast<double>(usage_.reply_tokens) * options_.price_out) /
                  1e6;
  }

  Outcome post(const std::string& body, Clock::time_point deadline) const {
    const Clock::time_point give_up = std::min(deadline, later(Clock::now(), options_.timeout));
    const auto timeout =
        std::chrono::microseconds(static_cast<std::int64_t>(std::max(1e-3, seconds_until(give_up)) * 1e6));
    httplib::Client client(endpoint_.origin);
    client.set_connection_timeout(timeout);
    client.set_read_timeout(timeout);
    client.set_write_timeout(timeout);
    if (!options_.ca_file.empty()) client.set_ca_cert_path(options_.ca_file);
    httplib::Request request;
    request.method = "POST";
    request.path = endpoint_.path;
    request.headers = {{"Content-Type", "application/json"}, {"Accept", "application/json"}};
    if (!key_.empty()) request.headers.emplace("Authorization", "Bearer " + key_);
    request.body = body;
    request.progress = [&](std::uint64_t current, std::uint64_t) {
      return current <= kMaxReplyBytes && Clock::now() < give_up;  // a server may also drip
    };
    const httplib::Result result = client.send(request);
    if (!result) {
      if (Clock::now() >= give_up) return try_again(fmt::format("no answer within {:.3g} s", options_.timeout));
      return try_again(fmt::format("no connection to {}: {}", endpoint_.origin, httplib::to_string(result.error())));
    }
    const int status = result->status;
    if (status == 200) {
      Outcome outcome = read_reply(result->body);
      if (outcome.reply.problem.empty() && outcome.reply.prompt_tokens <= 1)
        outcome.reply.prompt_tokens = static_cast<std::int64_t>(body.size() / 4);
      return outcome;
    }
    std::string problem = fmt::format("HTTP {}: {:.200}", status, error_text(result->body));
    const bool out_of_money = problem.find("insufficient_quota") != std::string::npos ||
                              result->body.find("insufficient_quota") != std::string::npos;
    const bool again =
        status == 408 || status == 409 || status == 425 || (status == 429 && !out_of_money) || status >= 500;
    if (again) return try_again(std::move(problem), read_retry_after(result->get_header_value("Retry-After")));
    Outcome outcome;
    outcome.reply.problem = std::move(problem);
    return outcome;
  }

  JudgeOptions options_;
  Endpoint endpoint_;
  Json extra_ = Json::object();
  std::string key_;  // never logged
  Pacer request_pacer_;
  Pacer token_pacer_;
  Listener listener_;
  std::mutex listener_mutex_;
  mutable std::mutex mutex_;
  JudgeUsage usage_;
  Clock::time_point not_before_{};
  bool down_ = false;
};

}  // namespace

std::unique_ptr<HttpJudge> make_http_judge(const JudgeOptions& options) {
  return std::make_unique<HttpJudgeImpl>(options);
}

}  // namespace thinkvg::rewards
