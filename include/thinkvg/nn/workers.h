#pragma once

#include <cstdint>
#include <functional>

namespace thinkvg::nn {

// How many independent pieces of work to run side by side on a CPU: the number of ATen's threads. Sharing out
// whole batches saves the barrier that threads need inside every operator.
std::int64_t num_workers();

// Calls body(worker) for worker = 0 .. count - 1 at the same time, each on a thread of its own on which ATen's
// operators use one thread; returns when all have ended. count = 1 calls body(0) here, with ATen's threads as they are.
// The first exception is thrown again. Gradient mode and profiling are those of the
// caller.
void run_on_workers(std::int64_t count, const std::function<void(std::int64_t worker)>& body);

// Calls body(i) for i = 0 .. count - 1, shared out to num_workers() threads, each on a thread on which ATen's operators
// use one thread, also where count is 1: what body(i) computes then depends on i alone, to the bit. Exceptions and
// modes as above.
void run_each_alone(std::int64_t count, const std::function<void(std::int64_t i)>& body);

}  // namespace thinkvg::nn
