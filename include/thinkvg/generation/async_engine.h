#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "thinkvg/generation/rollout_engine.h"
#include "thinkvg/models/bundle.h"

namespace thinkvg::generation {

// A token as it was drawn.
struct DrawnToken {
  std::int64_t id = 0;
  float logprob = 0;  // under the distribution it was drawn from
  // The likeliest ids with their log-probabilities, as many as the request asks for (num_top_logprobs), best first.
  TopLogprobs top;
  // What is now certain to belong to the answer's text: whole characters, and nothing that may yet become a stop text.
  // All of them, then the rest of Completion::text, make Completion::text.
  std::string text = {};
};

// What an engine tells of a request. Called on the engine's thread, in order; they must return soon and must not throw.
struct RequestEvents {
  std::function<void(std::int64_t completion, const DrawnToken& token)> on_token;
  // Once a completion. With FinishReason::cancelled where the request was cancelled.
  std::function<void(std::int64_t completion, const Completion& result)> on_finish;
  // Instead of all further events: the request failed (it does not fit into the cache, the device is out of memory).
  std::function<void(std::exception_ptr)> on_error;
};

struct EngineLoad {
  std::int64_t waiting_requests = 0;
  std::int64_t running_completions = 0;
  std::int64_t pages_used = 0;
  std::int64_t pages_total = 0;
  std::int64_t prompt_tokens = 0;  // computed since the start; reused ones are not counted
  std::int64_t reused_tokens = 0;  // taken from the prefix cache since the start
  std::int64_t new_tokens = 0;     // since the start
};

// An engine with a thread of its own that requests join and leave at any time (continuous batching): what the server
// and interactive programs use. All methods may be called from any thread, but not from the events.
class AsyncEngine {
 public:
  using Ticket = std::uint64_t;
  // Weights of few bits as in RolloutEngine. Throws std::invalid_argument for options that cannot be, or not with this
  // model.
  AsyncEngine(models::ModelBundle bundle, const EngineOptions& options);
  // Cancels what runs, then returns.
  ~AsyncEngine();

  // Throws std::invalid_argument where the request can never run: wrong settings, longer than the cache.
  Ticket submit(GenerationRequest request, const SamplingOptions& sampling, RequestEvents events);
  // Ends the request's completions soon; does nothing where it has ended. Its pages are free when its last on_finish
  // has been called.
  void cancel(Ticket ticket);
  // Waits until nothing runs or waits.
  void drain();
  EngineLoad load() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace thinkvg::generation
