#include "thinkvg/core/interrupt.h"

#include <array>
#include <atomic>
#include <csignal>

namespace thinkvg {
namespace {

constexpr std::array kSignals = {SIGTERM, SIGINT, SIGUSR1};

std::atomic<bool> requested{false};
std::array<struct sigaction, kSignals.size()> before;

void note(int signal) {
  if (signal == SIGINT && requested.load()) {
    std::signal(SIGINT, SIG_DFL);
    std::raise(SIGINT);
  }
  requested.store(true);
}

}  // namespace

InterruptGuard::InterruptGuard() {
  requested.store(false);
  struct sigaction action = {};
  action.sa_handler = note;
  action.sa_flags = SA_RESTART;
  for (std::size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &action, &before[i]);
}

InterruptGuard::~InterruptGuard() {
  for (std::size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &before[i], nullptr);
  requested.store(false);
}

bool interrupt_requested() { return requested.load(); }

}  // namespace thinkvg
