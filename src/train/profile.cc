#include "thinkvg/train/profile.h"

#include <torch/csrc/autograd/profiler_kineto.h>

#include <set>

#include "thinkvg/core/log.h"

namespace thinkvg::train {
namespace {

namespace profiler = torch::autograd::profiler;
constexpr std::int64_t kWarmUpSteps = 2;

}  // namespace

StepProfile::StepProfile(std::int64_t num_steps, std::filesystem::path file)
    : num_steps_(num_steps), file_(std::move(file)) {}

StepProfile::~StepProfile() {
  if (running_) stop();
}

void StepProfile::begin_step() {
  if (num_steps_ <= 0 || step_ != kWarmUpSteps) return;
  const torch::profiler::impl::ProfilerConfig config(torch::profiler::impl::ProfilerState::KINETO,
                                                     /*report_input_shapes=*/true, /*profile_memory=*/true);
  const std::set<torch::profiler::impl::ActivityType> activities = {torch::profiler::impl::ActivityType::CPU,
                                                                    torch::profiler::impl::ActivityType::CUDA};
  profiler::prepareProfiler(config, activities);
  profiler::enableProfiler(
      config, activities, {at::RecordScope::FUNCTION, at::RecordScope::BACKWARD_FUNCTION, at::RecordScope::USER_SCOPE});
  running_ = true;
}

void StepProfile::end_step() {
  ++step_;
  if (running_ && step_ == kWarmUpSteps + num_steps_) stop();
}

void StepProfile::stop() {
  running_ = false;
  profiler::disableProfiler()->save(file_.string());
  spdlog::info("trace of {} steps written to {}", step_ - kWarmUpSteps, file_.string());
}

}  // namespace thinkvg::train
