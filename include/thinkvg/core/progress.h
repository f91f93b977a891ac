#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace thinkvg {

// The progress line on stderr: on a terminal one line that is redrawn, elsewhere a plain line about every
// `plain_interval`. Not thread-safe.
class Progress {
 public:
  // `first_step`: steps that were done before, in a run that is resumed.
  Progress(std::string title, std::int64_t total_steps, std::int64_t first_step = 0,
           std::chrono::seconds plain_interval = std::chrono::seconds(10));
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // `text`: what to show behind step and time left, such as "loss 0.52, 12,300 tokens/s".
  void update(std::int64_t step, const std::string& text);
  // Ends the line. Called by the destructor, too.
  void finish();

 private:
  std::string title_;
  std::int64_t total_;
  std::int64_t first_step_;
  std::chrono::seconds plain_interval_;
  std::chrono::steady_clock::time_point start_;
  std::chrono::steady_clock::time_point last_;
  bool terminal_;
  bool drawn_ = false;
  std::string last_line_;
};

// "1:02:03" or "2:03"; negative numbers and NaN count as 0.
std::string format_duration(double seconds);
// "12,345".
std::string format_count(std::int64_t value);

}  // namespace thinkvg
