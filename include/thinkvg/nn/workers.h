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

// Calls body(begin, end) for pieces of about `grain` or more that make up [0, count), on this thread and on the threads
// of a pool that are free; returns when all is done. For the short, frequent pieces of work of a decoding step: a
// thread that does not come, because another program has its core, is not waited for; idle threads look for work for
// some ten microseconds and then sleep. Uses as many threads as ATen does; on a thread on which ATen uses one, and
// inside of itself, the body runs here alone. body must not throw.
void share_out(std::int64_t count, std::int64_t grain,
               const std::function<void(std::int64_t begin, std::int64_t end)>& body);

}  // namespace thinkvg::nn
