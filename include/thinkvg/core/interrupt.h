#pragma once

namespace thinkvg {

// While one lives, SIGTERM (Slurm's and Kubernetes' way to end a job), SIGINT and SIGUSR1 (Slurm's early warning) ask
// the running command to stop at its next safe point instead of killing it; a second SIGINT kills it as usual. Only for
// programs, one at a time: signal handlers belong to the whole process.
class InterruptGuard {
 public:
  InterruptGuard();
  ~InterruptGuard();
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;
};

// Whether such a signal has come since the guard was made. Any thread.
bool interrupt_requested();

}  // namespace thinkvg
