#include "serve/metrics.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <iterator>

namespace thinkvg::serve {
namespace {

void write_head(const std::string& name, const char* type, const std::string& help, std::string& out) {
  fmt::format_to(std::back_inserter(out), "# HELP {} {}\n# TYPE {} {}\n", name, help, name, type);
}

void write_value(const char* name, const char* type, const char* help, std::int64_t value, std::string& out) {
  write_head(name, type, help, out);
  fmt::format_to(std::back_inserter(out), "{} {}\n", name, value);
}

}  // namespace

void Histogram::observe(double value) {
  const auto bound = std::lower_bound(bounds_.begin(), bounds_.end(), value);
  ++counts_[static_cast<std::size_t>(bound - bounds_.begin())];
  sum_ += value;
}

void Histogram::write(const std::string& name, const std::string& help, std::string& out) const {
  write_head(name, "histogram", help, out);
  std::int64_t count = 0;
  for (std::size_t i = 0; i < bounds_.size(); ++i) {
    count += counts_[i];
    fmt::format_to(std::back_inserter(out), "{}_bucket{{le=\"{}\"}} {}\n", name, bounds_[i], count);
  }
  count += counts_.back();
  fmt::format_to(std::back_inserter(out), "{0}_bucket{{le=\"+Inf\"}} {1}\n{0}_sum {2}\n{0}_count {1}\n", name, count,
                 sum_);
}

void Metrics::count_response(const std::string& route, int status, double seconds) {
  const std::lock_guard lock(mutex_);
  ++responses_[{route, status}];
  response_seconds_.observe(seconds);
}

void Metrics::observe_first_token(double seconds) {
  const std::lock_guard lock(mutex_);
  first_token_seconds_.observe(seconds);
}

void Metrics::observe_next_tokens(double seconds_each) {
  const std::lock_guard lock(mutex_);
  next_token_seconds_.observe(seconds_each);
}

void Metrics::count_completion(const std::string& finish, std::int64_t tokens) {
  const std::lock_guard lock(mutex_);
  ++completions_[finish];
  completion_tokens_.observe(static_cast<double>(tokens));
}

void Metrics::count_pictures(std::int64_t count) {
  const std::lock_guard lock(mutex_);
  pictures_ += count;
}

std::string Metrics::text(const Gauges& gauges) const {
  std::string out;
  const BackendLoad& load = gauges.load;
  write_value("thinkvg_requests_in_progress", "gauge", "Requests for answers that run or wait.", gauges.requests, out);
  write_value("thinkvg_requests_waiting", "gauge", "Requests that the engine has not begun.", load.waiting_requests,
              out);
  write_value("thinkvg_completions_running", "gauge", "Completions that the engine writes.", load.running_completions,
              out);
  write_value("thinkvg_connections", "gauge", "Open connections.", gauges.connections, out);
  write_value("thinkvg_cache_pages_used", "gauge", "Pages of the key-value cache in use.", load.pages_used, out);
  write_value("thinkvg_cache_pages", "gauge", "Pages of the key-value cache.", load.pages_total, out);
  write_value("thinkvg_prompt_tokens_total", "counter", "Prompt tokens that were computed.", load.prompt_tokens, out);
  write_value("thinkvg_reused_prompt_tokens_total", "counter", "Prompt tokens that came from the prefix cache.",
              load.reused_tokens, out);
  write_value("thinkvg_generated_tokens_total", "counter", "Tokens that were drawn.", load.new_tokens, out);

  const std::lock_guard lock(mutex_);
  write_value("thinkvg_pictures_total", "counter", "Pictures of requests that were read.", pictures_, out);
  write_head("thinkvg_http_responses_total", "counter", "Responses by route and status.", out);
  for (const auto& [key, count] : responses_)
    fmt::format_to(std::back_inserter(out), "thinkvg_http_responses_total{{route=\"{}\",status=\"{}\"}} {}\n",
                   key.first, key.second, count);
  write_head("thinkvg_completions_total", "counter", "Completions by how they ended.", out);
  for (const auto& [finish, count] : completions_)
    fmt::format_to(std::back_inserter(out), "thinkvg_completions_total{{finish=\"{}\"}} {}\n", finish, count);
  response_seconds_.write("thinkvg_http_response_seconds", "From a request's head to the end of its response.", out);
  first_token_seconds_.write("thinkvg_first_token_seconds", "From a request's body to its first token.", out);
  next_token_seconds_.write("thinkvg_next_token_seconds", "Mean time between a completion's tokens.", out);
  completion_tokens_.write("thinkvg_completion_tokens", "Tokens of a completion.", out);
  return out;
}

}  // namespace thinkvg::serve
