#pragma once

// Shape letters: V vocabulary, D width, G completions of one prompt.

#include <cstdint>
#include <deque>
#include <list>
#include <memory>
#include <string>
#include <vector>

#include "generation/page_pool.h"
#include "generation/sampler.h"
#include "thinkvg/generation/async_engine.h"
#include "thinkvg/nn/kv_cache.h"

namespace thinkvg::generation {

// The engine under RolloutEngine and AsyncEngine: a paged cache of a fixed size, and completions that join and leave
// between two passes of the model. A prompt is computed once; its completions share its pages and copy the last,
// partly filled one when they write to it. Admission is by free pages, first come first served: nothing is reserved for
// tokens that may never be drawn; where pages run out, the youngest completion gives back its own (preemption) and its
// tokens are computed again, in one pass, when there is room. The oldest one always goes on, so that all come to an
// end. Pages whose content is known by the chain of ids and pictures up to them are found again by later prompts.
// Not thread-safe.
class Scheduler {
 public:
  struct Settings {
    std::int64_t max_rows = 1;
    std::int64_t num_pages = 1;
    bool prefix_cache = true;
    bool remember_answers = false;  // the next turn of a conversation begins with them
    bool wait_for_rows = false;  // passes over prompts wait until an eighth of the rows is free: more of them at once
  };
  using Ticket = AsyncEngine::Ticket;

  // Both must outlive this object; the tokenizer may be null.
  Scheduler(models::VisionLanguageModel& model, const text::Tokenizer* tokenizer, const Settings& settings);
  ~Scheduler();

  // Throws std::invalid_argument where a request can never run.
  void check(const GenerationRequest& request, const SamplingOptions& sampling) const;
  // Pages that one completion of this request needs at its longest.
  static std::int64_t pages_needed(const GenerationRequest& request, const SamplingOptions& sampling);
  // Expects a checked request.
  void add(Ticket ticket, GenerationRequest request, const SamplingOptions& sampling, RequestEvents events);
  // Ends the completions of a request that have not ended.
  void cancel(Ticket ticket);
  void cancel_all();
  // One round: starts what has room, then draws one token for each running completion. False when nothing is left.
  // An error of a pass over prompts fails the requests in it; of a decoding pass, all that run.
  bool step();

  EngineLoad load() const;
  std::int64_t num_preemptions() const { return num_preemptions_; }
  // Pages that somebody holds: 0 when nothing runs or waits.
  std::int64_t num_held_pages() const { return pool_.num_held(); }

 private:
  struct Request;
  struct Sequence;
  struct Part;
  struct Draw;

  void cancel(Request& request);
  void prefill();
  void start_completions();
  void decode();
  void draw(std::vector<Draw>& rows);
  void run_parts(std::vector<Part>& parts);
  bool plan_part(Part& part);
  bool grow(Sequence& sequence);
  bool make_room(const Sequence& sequence);
  void preempt(Sequence& sequence);
  void take_token(Sequence& sequence, const std::optional<SampledToken>& token);
  void finish(Sequence& sequence, FinishReason reason);
  void fail(Request& request, const std::exception_ptr& error);
  void drop_prompt(Request& request);
  void release(std::vector<std::int64_t>& pages);
  void remember(const Request& request, const Sequence* sequence, const std::vector<std::int64_t>& pages,
                std::int64_t length);
  void forget_finished();
  std::int64_t rows_in_use() const;
  std::string key_of_picture(const models::ImageGrid& grid, const at::Tensor& features);

  models::VisionLanguageModel& model_;
  const text::Tokenizer* tokenizer_;
  Settings settings_;
  nn::PagedKvCache cache_;
  PagePool pool_;
  std::list<std::unique_ptr<Request>> requests_;  // in the order they came
  std::vector<Sequence*> running_;                // oldest first
  std::deque<Sequence*> preempted_;               // oldest first
  std::int64_t prompt_tokens_ = 0;
  std::int64_t reused_tokens_ = 0;
  std::int64_t new_tokens_ = 0;
  std::int64_t num_preemptions_ = 0;
  at::Tensor latest_picture_;  // that was hashed, with its key
  models::ImageGrid latest_grid_;
  std::string latest_key_;
};

}  // namespace thinkvg::generation
