#include "thinkvg/generation/rollout_engine.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <mutex>
#include <optional>

#include "generation/cache_size.h"
#include "generation/scheduler.h"
#include "thinkvg/core/error.h"
#include "thinkvg/nn/exact.h"
#include "thinkvg/nn/workers.h"

namespace thinkvg::generation {
namespace {

// Fewer completions than this are decoded faster by one worker whose operators use all threads. Weights that no cache
// of the processor holds are read once a step by each worker: then each one needs more rows to share them.
constexpr std::int64_t kRowsWorthAWorker = 8;
constexpr std::int64_t kRowsWorthALargeWorker = 64;
constexpr std::int64_t kLargeWeights = std::int64_t{64} << 20;

std::int64_t rows_worth_a_worker(const models::VisionLanguageModel& model, const models::QuantizedLanguage* quantized) {
  std::int64_t bytes = 0;
  if (quantized != nullptr)
    bytes = quantized->num_bytes();
  else
    for (const at::Tensor& parameter : model.parameters()) bytes += static_cast<std::int64_t>(parameter.nbytes());
  return bytes > kLargeWeights ? kRowsWorthALargeWorker : kRowsWorthAWorker;
}

}  // namespace

RolloutEngine::RolloutEngine(models::VisionLanguageModel& model, const EngineOptions& options,
                             const text::Tokenizer* tokenizer)
    : model_(model), options_(options), tokenizer_(tokenizer) {
  options.check();
  check_device(model, options);
  quantized_ = models::quantized_language(model, options.weights());
}

std::vector<std::vector<Completion>> RolloutEngine::generate(const std::vector<GenerationRequest>& requests,
                                                             const SamplingOptions& sampling) {
  sampling.check();
  return generate_each(requests, std::vector<SamplingOptions>(requests.size(), sampling));
}

std::vector<std::vector<Completion>> RolloutEngine::generate_each(const std::vector<GenerationRequest>& requests,
                                                                  const std::vector<SamplingOptions>& sampling) {
  const auto start = std::chrono::steady_clock::now();
  if (requests.size() != sampling.size())
    throw_invalid("{} requests came with {} sampling settings; one each is needed", requests.size(), sampling.size());
  stats_ = {};
  if (requests.empty()) return {};
  std::optional<nn::ExactForward> exact;
  if (options_.exact) exact.emplace();

  const auto num_requests = std::ssize(requests);
  std::int64_t num_completions = 0;
  for (const GenerationRequest& request : requests)
    num_completions += std::max<std::int64_t>(1, request.num_completions);
  std::int64_t workers = 1;
  if (!on_token_ && model_.parameters().front().device().is_cpu())
    workers = std::min({nn::num_workers(), num_requests,
                        std::max<std::int64_t>(1, num_completions / rows_worth_a_worker(model_, quantized_.get())),
                        options_.max_rows});

  std::vector<std::vector<Completion>> results(requests.size());
  std::vector<GenerationStats> stats(static_cast<std::size_t>(workers));
  std::mutex finishing;
  const auto complete = [&](std::int64_t worker) {
    const std::int64_t begin = num_requests * worker / workers, end = num_requests * (worker + 1) / workers;
    const std::int64_t max_rows = options_.max_rows / workers;
    std::int64_t longest = 1, own_completions = 0, longest_prompt = 0, all_prompts = 0;
    for (std::int64_t i = begin; i < end; ++i) {
      const GenerationRequest& request = requests[static_cast<std::size_t>(i)];
      longest = std::max(longest, Scheduler::pages_needed(request, sampling[static_cast<std::size_t>(i)]));
      own_completions += std::max<std::int64_t>(1, request.num_completions);
      const std::int64_t prompt_pages = nn::PagedKvCache::pages_for(std::ssize(request.prompt.ids));
      longest_prompt = std::max(longest_prompt, prompt_pages);
      all_prompts += prompt_pages;
    }
    const std::int64_t rows = std::min(max_rows, own_completions);
    // Besides what the rows write, room for prompts to be found again; not for all of a long list.
    const std::int64_t kept_prompts = std::min(all_prompts, rows * longest_prompt);
    Scheduler scheduler(
        model_, tokenizer_,
        {.max_rows = rows,
         .num_pages = cache_pages(model_, options_,
                                  {.wanted = rows * (longest + 2) + kept_prompts, .least = longest, .share = workers}),
         .prefix_cache = options_.prefix_cache,
         .wait_for_rows = true});
    std::exception_ptr failure;
    for (std::int64_t i = begin; i < end; ++i) {
      const auto index = static_cast<std::size_t>(i);
      scheduler.check(requests[index], sampling[index]);
      results[index].resize(static_cast<std::size_t>(requests[index].num_completions));
      RequestEvents events;
      if (on_token_)
        events.on_token = [&, i](std::int64_t completion, const DrawnToken& token) {
          on_token_(i, completion, token.id);
        };
      events.on_finish = [&, index](std::int64_t completion, const Completion& result) {
        results[index][static_cast<std::size_t>(completion)] = result;
        if (!on_finish_) return;
        const std::lock_guard lock(finishing);
        on_finish_(static_cast<std::int64_t>(index), completion, result);
      };
      events.on_error = [&](const std::exception_ptr& error) {
        if (!failure) failure = error;
      };
      scheduler.add(static_cast<Scheduler::Ticket>(i), requests[index], sampling[index], std::move(events));
    }
    while (!failure && scheduler.step()) {
    }
    if (failure) std::rethrow_exception(failure);
    const EngineLoad load = scheduler.load();
    stats[static_cast<std::size_t>(worker)] = {load.prompt_tokens, load.reused_tokens, load.new_tokens,
                                               scheduler.num_preemptions(), 0};
  };
  nn::run_on_workers(workers, complete);
  for (const GenerationStats& part : stats) {
    stats_.prompt_tokens += part.prompt_tokens;
    stats_.reused_tokens += part.reused_tokens;
    stats_.new_tokens += part.new_tokens;
    stats_.preemptions += part.preemptions;
  }
  stats_.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return results;
}

}  // namespace thinkvg::generation
