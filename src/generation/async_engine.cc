#include "thinkvg/generation/async_engine.h"

#include <condition_variable>
#include <deque>
#include <limits>
#include <mutex>
#include <optional>
#include <thread>

#include "generation/cache_size.h"
#include "generation/scheduler.h"
#include "thinkvg/nn/exact.h"

namespace thinkvg::generation {
namespace {

// Where cache_mb does not say: what a row may need on average.
constexpr std::int64_t kTokensARow = 4096;

Scheduler::Settings settings_of(const models::VisionLanguageModel& model, const EngineOptions& options) {
  options.check();
  check_device(model, options);
  const std::int64_t pages_a_row = nn::PagedKvCache::pages_for(kTokensARow);
  std::int64_t wanted = options.max_rows * pages_a_row;
  if (options.cache_mb > 0) wanted = std::numeric_limits<std::int64_t>::max();
  return {.max_rows = options.max_rows,
          .num_pages = cache_pages(model, options, {.wanted = wanted, .least = pages_a_row, .share = 1}),
          .prefix_cache = options.prefix_cache,
          .remember_answers = options.prefix_cache};
}

}  // namespace

// The scheduler belongs to the thread; others leave what they want in the inbox.
class AsyncEngine::Impl {
 public:
  Impl(models::ModelBundle bundle, const EngineOptions& options)
      : bundle_(std::move(bundle)),
        quantized_(models::quantized_language(*bundle_.model, options.weights())),
        scheduler_(*bundle_.model, bundle_.tokenizer.get(), settings_of(*bundle_.model, options)) {
    if (options.exact) exact_.emplace();
    load_ = scheduler_.load();
    thread_ = std::thread([this] { run(); });
  }

  ~Impl() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  Ticket submit(GenerationRequest request, const SamplingOptions& sampling, RequestEvents events) {
    scheduler_.check(request, sampling);
    Ticket ticket = 0;
    {
      const std::lock_guard lock(mutex_);
      ticket = ++last_ticket_;
      arrived_.push_back({ticket, std::move(request), sampling, std::move(events)});
      busy_ = true;
    }
    changed_.notify_all();
    return ticket;
  }

  void cancel(Ticket ticket) {
    {
      const std::lock_guard lock(mutex_);
      cancelled_.push_back(ticket);
      busy_ = true;
    }
    changed_.notify_all();
  }

  void drain() {
    std::unique_lock lock(mutex_);
    idle_.wait(lock, [this] { return !busy_; });
  }

  EngineLoad load() const {
    const std::lock_guard lock(mutex_);
    EngineLoad load = load_;
    load.waiting_requests += std::ssize(arrived_);
    return load;
  }

 private:
  struct Arrival {
    Ticket ticket;
    GenerationRequest request;
    SamplingOptions sampling;
    RequestEvents events;
  };

  void run() {
    bool more = false, stop = false;
    while (!stop) {
      std::deque<Arrival> arrived;
      std::vector<Ticket> cancelled;
      {
        std::unique_lock lock(mutex_);
        load_ = scheduler_.load();
        if (!more && arrived_.empty() && cancelled_.empty()) {
          busy_ = false;
          idle_.notify_all();
        }
        changed_.wait(lock, [&] { return more || stopping_ || !arrived_.empty() || !cancelled_.empty(); });
        arrived.swap(arrived_);
        cancelled.swap(cancelled_);
        stop = stopping_;
      }
      // What the events capture is let go here, on this thread.
      for (Arrival& arrival : arrived) {
        try {
          scheduler_.add(arrival.ticket, std::move(arrival.request), arrival.sampling, arrival.events);
        } catch (...) {
          if (arrival.events.on_error) arrival.events.on_error(std::current_exception());
        }
      }
      for (const Ticket ticket : cancelled) scheduler_.cancel(ticket);
      if (stop) scheduler_.cancel_all();
      more = !stop && scheduler_.step();
    }
  }

  models::ModelBundle bundle_;
  std::unique_ptr<const models::QuantizedLanguage> quantized_;  // null: the model's own weights
  std::optional<nn::ExactForward> exact_;
  Scheduler scheduler_;
  std::thread thread_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::condition_variable idle_;
  std::deque<Arrival> arrived_;
  std::vector<Ticket> cancelled_;
  Ticket last_ticket_ = 0;
  EngineLoad load_;
  bool busy_ = false;
  bool stopping_ = false;
};

AsyncEngine::AsyncEngine(models::ModelBundle bundle, const EngineOptions& options)
    : impl_(std::make_unique<Impl>(std::move(bundle), options)) {}

AsyncEngine::~AsyncEngine() = default;

AsyncEngine::Ticket AsyncEngine::submit(GenerationRequest request, const SamplingOptions& sampling,
                                        RequestEvents events) {
  return impl_->submit(std::move(request), sampling, std::move(events));
}

void AsyncEngine::cancel(Ticket ticket) { impl_->cancel(ticket); }
void AsyncEngine::drain() { impl_->drain(); }
EngineLoad AsyncEngine::load() const { return impl_->load(); }

}  // namespace thinkvg::generation
