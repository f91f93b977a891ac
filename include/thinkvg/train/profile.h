#pragma once

#include <cstdint>
#include <filesystem>

namespace thinkvg::train {

// Traces some steps of a run, operator by operator, into a file that Perfetto and chrome://tracing open. The first two
// steps of the run are left out: they warm up. One at a time in a process.
class StepProfile {
 public:
  // num_steps = 0: nothing is traced.
  StepProfile(std::int64_t num_steps, std::filesystem::path file);
  ~StepProfile();
  StepProfile(const StepProfile&) = delete;
  StepProfile& operator=(const StepProfile&) = delete;

  void begin_step();
  void end_step();

 private:
  void stop();

  std::int64_t num_steps_;
  std::filesystem::path file_;
  std::int64_t step_ = 0;
  bool running_ = false;
};

}  // namespace thinkvg::train
