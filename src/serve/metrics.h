#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "thinkvg/serve/backend.h"

namespace thinkvg::serve {

// A distribution as Prometheus keeps one: counts up to fixed bounds.
class Histogram {
 public:
  explicit Histogram(std::vector<double> bounds) : bounds_(std::move(bounds)), counts_(bounds_.size() + 1) {}
  void observe(double value);
  // "NAME_bucket{le=..} ..", sum and count.
  void write(const std::string& name, const std::string& help, std::string& out) const;

 private:
  std::vector<double> bounds_;
  std::vector<std::int64_t> counts_;
  double sum_ = 0;
};

// What a server counts, in Prometheus' text format. Thread-safe.
class Metrics {
 public:
  void count_response(const std::string& route, int status, double seconds);
  void observe_first_token(double seconds);
  void observe_next_tokens(double seconds_each);
  // "stop", "length", or why nothing came to its end: "client_gone", "timeout", "stopping", "error".
  void count_completion(const std::string& finish, std::int64_t tokens);
  void count_pictures(std::int64_t count);

  struct Gauges {
    BackendLoad load;
    std::int64_t requests = 0;
    std::int64_t connections = 0;
  };
  std::string text(const Gauges& gauges) const;

 private:
  mutable std::mutex mutex_;
  std::map<std::pair<std::string, int>, std::int64_t> responses_;
  std::map<std::string, std::int64_t> completions_;
  std::int64_t pictures_ = 0;
  Histogram response_seconds_{{0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600}};
  Histogram first_token_seconds_{{0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120}};
  Histogram next_token_seconds_{{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5}};
  Histogram completion_tokens_{{1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192}};
};

}  // namespace thinkvg::serve
