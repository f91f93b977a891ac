#include "thinkvg/nn/workers.h"

#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>

#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace thinkvg::nn {

std::int64_t num_workers() { return at::in_parallel_region() ? 1 : at::get_num_threads(); }

void run_on_workers(std::int64_t count, const std::function<void(std::int64_t worker)>& body) {
  if (count <= 1) {
    body(0);
    return;
  }
  const int threads = at::get_num_threads();
  const bool grad_mode = c10::GradMode::is_enabled();
  std::exception_ptr failure;
  std::mutex failure_mutex;
  {
    std::vector<std::jthread> workers;
    for (std::int64_t worker = 0; worker < count; ++worker)
      workers.emplace_back([&, worker] {
        try {
          at::set_num_threads(1);
          const at::AutoGradMode mode(grad_mode);
          body(worker);
        } catch (...) {
          const std::lock_guard lock(failure_mutex);
          if (!failure) failure = std::current_exception();
        }
      });
  }
  at::set_num_threads(threads);  // what threads that start later take over
  if (failure) std::rethrow_exception(failure);
}

}  // namespace thinkvg::nn
