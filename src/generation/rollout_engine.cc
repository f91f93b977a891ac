#include "thinkvg/generation/rollout_engine.h"

#include <algorithm>
#include <chrono>
#include <numeric>

#include "thinkvg/core/error.h"
#include "thinkvg/core/random.h"
#include "thinkvg/nn/kv_cache.h"
#include "thinkvg/nn/workers.h"

namespace thinkvg::generation {
namespace {

// Fewer completions than this are decoded faster by one worker whose operators use all threads.
constexpr std::int64_t kRowsWorthAWorker = 8;

// A completion being decoded in one row of the cache.
struct ActiveRow {
  std::int64_t row;
  std::size_t request;
  std::size_t completion;
  std::int64_t next_position;
  std::int64_t last_id;
  RandomStream random;
};

// A prompt whose keys and values are there, waiting for rows.
struct Prefilled {
  std::size_t request;
  std::shared_ptr<const std::vector<nn::PackedAttention::KeyValue>> recorded;
  std::int64_t begin;  // its first token in the recorded pass
  std::int64_t length;
  std::int64_t next_position;
  at::Tensor log_probs;  // [V] of the first token
  std::size_t next_completion = 0;
};

// Log-probabilities of what is sampled from: [B, V] float on the CPU, -inf where a token cannot be drawn.
at::Tensor sampling_log_probs(const at::Tensor& logits, const at::Tensor& banned, const SamplingOptions& sampling) {
  at::Tensor scores = logits.to(at::kFloat);
  if (sampling.temperature > 0 && sampling.temperature != 1.0) scores = scores / sampling.temperature;
  if (banned.defined()) scores = scores.index_fill(1, banned, -std::numeric_limits<float>::infinity());
  at::Tensor log_probs = at::log_softmax(scores, -1);
  const std::int64_t vocabulary = log_probs.size(1);
  const bool use_top_k = sampling.top_k > 0 && sampling.top_k < vocabulary;
  if (sampling.temperature > 0 && (use_top_k || sampling.top_p < 1.0)) {
    auto [sorted, order] = log_probs.sort(-1, true);
    at::Tensor drop = at::zeros_like(sorted, sorted.options().dtype(at::kBool));
    if (use_top_k) drop.slice(1, sampling.top_k).fill_(true);
    if (sampling.top_p < 1.0) {
      const at::Tensor probs = sorted.exp();
      drop = drop.logical_or(probs.cumsum(-1).sub(probs).ge(sampling.top_p));  // mass before the token
    }
    const at::Tensor dropped = at::zeros_like(drop).scatter(1, order, drop);
    log_probs = at::log_softmax(log_probs.masked_fill(dropped, -std::numeric_limits<float>::infinity()), -1);
  }
  return log_probs.cpu().contiguous();
}

std::int64_t draw(const float* log_probs, const float* probs, std::int64_t vocabulary, RandomStream& random,
                  bool greedy) {
  if (greedy) return std::max_element(log_probs, log_probs + vocabulary) - log_probs;
  const double target = random.uniform() * std::accumulate(probs, probs + vocabulary, 0.0);
  double mass = 0;
  std::int64_t last = -1;
  for (std::int64_t id = 0; id < vocabulary; ++id) {
    if (probs[id] <= 0) continue;
    mass += probs[id];
    last = id;
    if (mass > target) return id;
  }
  return last;
}

}  // namespace

RolloutEngine::RolloutEngine(models::VisionLanguageModel& model, const EngineOptions& options)
    : model_(model), options_(options) {
  if (options.max_rows < 1) throw_invalid("max_rows must be at least 1, but is {}", options.max_rows);
}

std::vector<std::vector<Completion>> RolloutEngine::generate(const std::vector<GenerationRequest>& requests,
                                                             const SamplingOptions& sampling) {
  sampling.check();
  const auto start = std::chrono::steady_clock::now();
  const at::NoGradGuard no_grad;
  std::int64_t num_completions = 0;
  for (const GenerationRequest& request : requests) {
    if (request.num_completions < 1)
      throw_invalid("a request asks for {} completions; at least 1 is needed", request.num_completions);
    num_completions += request.num_completions;
  }
  if (requests.empty()) {
    stats_ = {};
    return {};
  }
  const auto num_requests = static_cast<std::int64_t>(requests.size());
  std::int64_t workers = 1;
  if (!on_token_ && model_.parameters().front().device().is_cpu())
    workers = std::min({nn::num_workers(), num_requests, std::max<std::int64_t>(1, num_completions / kRowsWorthAWorker),
                        options_.max_rows});
  std::vector<std::vector<Completion>> results(requests.size());
  std::vector<GenerationStats> stats(static_cast<std::size_t>(workers));
  nn::run_on_workers(workers, [&](std::int64_t worker) {
    const std::int64_t begin = num_requests * worker / workers, end = num_requests * (worker + 1) / workers;
    const std::vector<GenerationRequest> some(requests.begin() + begin, requests.begin() + end);
    auto completed =
        generate_together(some, sampling, options_.max_rows / workers, stats[static_cast<std::size_t>(worker)]);
    std::move(completed.begin(), completed.end(), results.begin() + begin);
  });
  stats_ = {};
  for (const GenerationStats& part : stats) {
    stats_.prompt_tokens += part.prompt_tokens;
    stats_.new_tokens += part.new_tokens;
  }
  stats_.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return results;
}

std::vector<std::vector<Completion>> RolloutEngine::generate_together(const std::vector<GenerationRequest>& requests,
                                                                      const SamplingOptions& sampling,
                                                                      std::int64_t max_rows, GenerationStats& stats) {
  std::vector<std::vector<Completion>> results(requests.size());
  if (requests.empty()) return results;

  const bool greedy = sampling.temperature == 0;
  const auto parameter = model_.parameters().front();
  const std::vector<std::int64_t> banned_list = models::banned_ids(model_.special_tokens());
  const at::Tensor banned =
      banned_list.empty() ? at::Tensor() : at::tensor(banned_list, at::kLong).to(parameter.device());
  const std::vector<std::int64_t>& end_ids = model_.special_tokens().end;
  std::int64_t num_completions = 0, longest_prompt = 0;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    results[i].resize(static_cast<std::size_t>(requests[i].num_completions));
    num_completions += requests[i].num_completions;
    longest_prompt = std::max(longest_prompt, static_cast<std::int64_t>(requests[i].prompt.ids.size()));
  }
  const std::int64_t num_rows = std::min(max_rows, num_completions);
  nn::KvCache cache({model_.num_layers(), num_rows, model_.num_kv_heads(), longest_prompt + sampling.max_new_tokens,
                     model_.head_dim()},
                    parameter.options().requires_grad(false));
  std::vector<std::int64_t> free_rows(static_cast<std::size_t>(num_rows));
  std::iota(free_rows.rbegin(), free_rows.rend(), 0);
  std::vector<ActiveRow> active;
  std::vector<Prefilled> waiting;
  std::size_t next_request = 0;

  // Prompts are computed together until they fill the free rows.
  const auto prefill = [&] {
    models::PackBuilder builder;
    std::vector<Prefilled> added;
    std::int64_t rows = static_cast<std::int64_t>(free_rows.size());
    while (next_request < requests.size() && rows > 0) {
      const GenerationRequest& request = requests[next_request];
      const models::TokenPositions positions = model_.token_positions(request.prompt.ids, request.grids);
      const std::int64_t begin =
          builder.add({request.prompt.ids, positions.positions, request.prompt.image_rows, request.image_features, -1});
      added.push_back(
          {next_request, nullptr, begin, static_cast<std::int64_t>(request.prompt.ids.size()), positions.next, {}, 0});
      rows -= request.num_completions;
      ++next_request;
    }
    const models::Pack pack = builder.build(parameter.device());
    nn::PackedAttention attention(pack.layout);
    attention.record();
    const at::Tensor hidden = models::run_pack(model_, pack, attention);
    std::vector<std::int64_t> last_rows;
    for (const Prefilled& prompt : added) last_rows.push_back(prompt.begin + prompt.length - 1);
    const at::Tensor log_probs = sampling_log_probs(
        model_.logits(hidden.index_select(0, at::tensor(last_rows, at::kLong).to(parameter.device()))), banned,
        sampling);
    auto recorded = std::make_shared<const std::vector<nn::PackedAttention::KeyValue>>(attention.recorded());
    for (std::size_t i = 0; i < added.size(); ++i) {
      added[i].recorded = recorded;
      added[i].log_probs = log_probs[static_cast<std::int64_t>(i)];
      waiting.push_back(std::move(added[i]));
    }
    stats.prompt_tokens += builder.num_tokens();
  };

  // Takes a drawn token into its completion; returns whether the completion goes on.
  const auto accept = [&](ActiveRow& row, std::int64_t id, float log_prob) {
    Completion& completion = results[row.request][row.completion];
    completion.ids.push_back(id);
    completion.logprobs.push_back(log_prob);
    ++stats.new_tokens;
    if (on_token_) on_token_(static_cast<std::int64_t>(row.request), static_cast<std::int64_t>(row.completion), id);
    row.last_id = id;
    if (std::find(end_ids.begin(), end_ids.end(), id) != end_ids.end()) {
      completion.finish = FinishReason::stop;
      return false;
    }
    return static_cast<std::int64_t>(completion.ids.size()) < sampling.max_new_tokens;
  };

  const auto admit = [&] {
    std::size_t done = 0;
    for (Prefilled& prompt : waiting) {
      const GenerationRequest& request = requests[prompt.request];
      const std::int64_t vocabulary = prompt.log_probs.size(0);
      const at::Tensor probs = prompt.log_probs.exp();
      while (!free_rows.empty() && prompt.next_completion < static_cast<std::size_t>(request.num_completions)) {
        std::vector<std::uint64_t> key = request.stream;
        key.push_back(prompt.next_completion);
        ActiveRow row{free_rows.back(),
                      prompt.request,
                      prompt.next_completion,
                      prompt.next_position,
                      -1,
                      RandomStream(std::span<const std::uint64_t>(key))};
        ++prompt.next_completion;
        const float* log_probs = prompt.log_probs.const_data_ptr<float>();
        const std::int64_t id = draw(log_probs, probs.const_data_ptr<float>(), vocabulary, row.random, greedy);
        if (!accept(row, id, log_probs[id])) continue;
        free_rows.pop_back();
        cache.fill(row.row, *prompt.recorded, prompt.begin, prompt.length);
        active.push_back(std::move(row));
      }
      if (prompt.next_completion == static_cast<std::size_t>(request.num_completions)) ++done;
    }
    waiting.erase(waiting.begin(), waiting.begin() + static_cast<std::ptrdiff_t>(done));
  };

  while (true) {
    // A few freed rows are not worth a prefill pass of their own, unless nothing else is left to do.
    const bool worth = active.empty() || static_cast<std::int64_t>(free_rows.size()) * 8 >= num_rows;
    if (worth && waiting.empty() && next_request < requests.size() && !free_rows.empty()) prefill();
    if (!waiting.empty()) admit();
    if (active.empty()) {
      if (waiting.empty() && next_request == requests.size()) break;
      continue;
    }
    std::vector<std::int64_t> ids, positions, rows;
    for (const ActiveRow& row : active) {
      ids.push_back(row.last_id);
      positions.push_back(row.next_position);
      rows.push_back(row.row);
    }
    nn::CachedAttention attention(cache, rows);
    const at::Tensor position = at::tensor(positions, at::kLong).unsqueeze(0).expand({3, -1}).to(parameter.device());
    const at::Tensor hidden =
        model_.decode(model_.embed(at::tensor(ids, at::kLong).to(parameter.device()), {}, {}), position, attention);
    cache.advance(rows);
    const at::Tensor log_probs = sampling_log_probs(model_.logits(hidden), banned, sampling);
    const at::Tensor probs = greedy ? log_probs : log_probs.exp();
    const std::int64_t vocabulary = log_probs.size(1);
    std::vector<ActiveRow> remaining;
    remaining.reserve(active.size());
    for (std::size_t i = 0; i < active.size(); ++i) {
      ActiveRow& row = active[i];
      ++row.next_position;
      const float* row_log_probs = log_probs.const_data_ptr<float>() + static_cast<std::int64_t>(i) * vocabulary;
      const float* row_probs = probs.const_data_ptr<float>() + static_cast<std::int64_t>(i) * vocabulary;
      const std::int64_t id = draw(row_log_probs, row_probs, vocabulary, row.random, greedy);
      if (accept(row, id, row_log_probs[id]))
        remaining.push_back(std::move(row));
      else
        free_rows.push_back(row.row);
    }
    active = std::move(remaining);
  }
  return results;
}

}  // namespace thinkvg::generation
