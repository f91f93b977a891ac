#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <thread>
#include <vector>

#include "thinkvg/nn/workers.h"

namespace thinkvg::nn {
namespace {

// Pieces a thread, so that one that was interrupted leaves its share to the others.
constexpr std::int64_t kPiecesAThread = 4;
constexpr int kLooksForWork = 4000;
constexpr int kLooksForTheEnd = 2000;

inline void pause() {
#ifdef __x86_64__
  __builtin_ia32_pause();
#endif
}

thread_local bool is_sharing = false;

struct Job {
  const std::function<void(std::int64_t, std::int64_t)>* body;
  std::int64_t count;
  std::int64_t piece;
  std::atomic<std::int64_t> next{0};

  void work() {
    for (std::int64_t begin = next.fetch_add(piece); begin < count; begin = next.fetch_add(piece))
      (*body)(begin, std::min(count, begin + piece));
  }
};

class Pool {
 public:
  // False where another thread uses the pool.
  bool run(Job& job, std::int64_t num_threads) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock.owns_lock()) return false;
    while (std::ssize(threads_) < num_threads - 1) threads_.emplace_back([this] { serve(); });
    job_.store(&job);
    ++round_;
    if (num_asleep_.load() > 0) round_.notify_all();
    job.work();
    // Nobody comes in any more; who is in may still be at work.
    job_.store(nullptr);
    for (int looks = 0; num_inside_.load() > 0; ++looks) {
      if (looks < kLooksForTheEnd)
        pause();
      else
        std::this_thread::yield();
    }
    return true;
  }

 private:
  void serve() {
    is_sharing = true;
    std::uint32_t seen = 0;
    while (true) {
      std::uint32_t round = round_.load();
      for (int looks = 0; round == seen && looks < kLooksForWork; ++looks) {
        pause();
        round = round_.load();
      }
      if (round == seen) {
        ++num_asleep_;
        round_.wait(seen);
        --num_asleep_;
        continue;
      }
      seen = round;
      ++num_inside_;
      if (Job* job = job_.load()) job->work();
      --num_inside_;
    }
  }

  std::mutex mutex_;
  std::vector<std::thread> threads_;
  std::atomic<Job*> job_{nullptr};
  std::atomic<std::uint32_t> round_{0};
  std::atomic<int> num_inside_{0};
  std::atomic<int> num_asleep_{0};
};

// Lives to the end of the process: its threads sleep then.
Pool& pool() {
  static Pool* const kPool = new Pool;
  return *kPool;
}

}  // namespace

void share_out(std::int64_t count, std::int64_t grain,
               const std::function<void(std::int64_t begin, std::int64_t end)>& body) {
  if (count <= 0) return;
  if (count > grain && !is_sharing && !at::in_parallel_region()) {
    const std::int64_t num_threads = std::min<std::int64_t>(at::get_num_threads(), (count + grain - 1) / grain);
    if (num_threads > 1) {
      const std::int64_t share = (count + num_threads * kPiecesAThread - 1) / (num_threads * kPiecesAThread);
      Job job{.body = &body, .count = count, .piece = std::max(grain, share)};
      is_sharing = true;
      const bool done = pool().run(job, num_threads);
      is_sharing = false;
      if (done) return;
    }
  }
  body(0, count);
}

}  // namespace thinkvg::nn
