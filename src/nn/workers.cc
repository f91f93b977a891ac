#include "thinkvg/nn/workers.h"

#include <ATen/Parallel.h>
#include <ATen/ThreadLocalState.h>

#include <algorithm>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace thinkvg::nn {

std::int64_t num_workers() { return at::in_parallel_region() ? 1 : at::get_num_threads(); }

namespace {

void run_on_threads(std::int64_t count, const std::function<void(std::int64_t worker)>& body) {
  const int threads = at::get_num_threads();
  const at::ThreadLocalState state;
  std::exception_ptr failure;
  std::mutex failure_mutex;
  {
    std::vector<std::jthread> workers;
    for (std::int64_t worker = 0; worker < count; ++worker)
      workers.emplace_back([&, worker] {
        try {
          at::set_num_threads(1);
          const at::ThreadLocalStateGuard guard(state);
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

}  // namespace

void run_on_workers(std::int64_t count, const std::function<void(std::int64_t worker)>& body) {
  if (count <= 1)
    body(0);
  else
    run_on_threads(count, body);
}

void run_each_alone(std::int64_t count, const std::function<void(std::int64_t i)>& body) {
  const std::int64_t workers = std::min(num_workers(), count);
  run_on_threads(workers, [&](std::int64_t worker) {
    for (std::int64_t i = worker; i < count; i += workers) body(i);
  });
}

}  // namespace thinkvg::nn
