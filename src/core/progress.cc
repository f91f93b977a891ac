#include "thinkvg/core/progress.h"

#include <spdlog/fmt/fmt.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace thinkvg {

Progress::Progress(std::string title, std::int64_t total_steps, std::int64_t first_step,
                   std::chrono::seconds plain_interval)
    : title_(std::move(title)),
      total_(total_steps),
      first_step_(first_step),
      plain_interval_(plain_interval),
      start_(std::chrono::steady_clock::now()),
      last_(start_),
      terminal_(isatty(STDERR_FILENO) != 0) {}

Progress::~Progress() { finish(); }

void Progress::update(std::int64_t step, const std::string& text) {
  const auto now = std::chrono::steady_clock::now();
  const bool first = last_line_.empty();
  const double elapsed = std::chrono::duration<double>(now - start_).count();
  const std::int64_t done = step - first_step_;
  const auto steps_left = static_cast<double>(std::max<std::int64_t>(total_ - step, 0));
  const double left = done > 0 ? elapsed / static_cast<double>(done) * steps_left : 0;
  last_line_ = fmt::format("{} {}/{} {}, {} left", title_, format_count(step), format_count(total_), text,
                           format_duration(left));
  if (terminal_) {
    if (!first && step < total_ && now - last_ < std::chrono::milliseconds(100)) return;
    fmt::print(stderr, "\r\033[K{}", last_line_);
    std::fflush(stderr);
  } else {
    if (!first && step < total_ && now - last_ < plain_interval_) return;
    fmt::print(stderr, "{}\n", last_line_);
  }
  last_ = now;
  drawn_ = true;
}

void Progress::finish() {
  if (drawn_ && terminal_) fmt::print(stderr, "\r\033[K{}\n", last_line_);
  drawn_ = false;
}

std::string format_duration(double seconds) {
  constexpr double kLongest = 1e12;
  const auto whole = seconds > 0 ? static_cast<std::int64_t>(std::min(seconds, kLongest) + 0.5) : 0;
  if (whole >= 3600) return fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60);
  return fmt::format("{}:{:02}", whole / 60, whole % 60);
}

std::string format_count(std::int64_t value) {
  const auto magnitude = static_cast<std::uint64_t>(value);
  const std::string digits = std::to_string(value < 0 ? 0 - magnitude : magnitude);
  std::string text = value < 0 ? "-" : "";
  for (std::size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) text += ',';
    text += digits[i];
  }
  return text;
}

}  // namespace thinkvg
