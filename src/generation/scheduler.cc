#include "generation/scheduler.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <unordered_set>

#include "generation/stop_scan.h"
#include "thinkvg/core/error.h"
#include "thinkvg/core/files.h"
#include "thinkvg/core/random.h"
#include "thinkvg/nn/workers.h"

namespace thinkvg::generation {
namespace {

constexpr std::int64_t kPage = nn::PagedKvCache::kPageTokens;
// Prompts are computed together up to about this many tokens: their activations must fit into memory.
constexpr std::int64_t kPromptTokensAtATime = 8192;

nn::PagedKvCache::Shape cache_shape(const models::VisionLanguageModel& model, std::int64_t num_pages) {
  return {model.num_layers(), num_pages, model.num_kv_heads(), model.head_dim()};
}

std::string bytes_of(const at::Tensor& tensor) {
  const at::Tensor dense = tensor.detach().cpu().contiguous();
  return {static_cast<const char*>(dense.const_data_ptr()), static_cast<std::size_t>(dense.nbytes())};
}

std::string picture_key(const models::ImageGrid& grid, const at::Tensor& features) {
  const std::int64_t shape[] = {grid.t,           grid.h,           grid.w,
                                features.size(0), features.size(1), static_cast<std::int64_t>(features.scalar_type())};
  return sha256_text(std::string(reinterpret_cast<const char*>(shape), sizeof shape) + bytes_of(features));
}

// Rows of logits as fp32 on the CPU, dense.
at::Tensor readable(const at::Tensor& logits) { return logits.to(at::kCPU, at::kFloat).contiguous(); }

std::span<float> row_of(const at::Tensor& logits, std::int64_t row) {
  const std::int64_t vocabulary = logits.size(-1);
  return {logits.mutable_data_ptr<float>() + row * vocabulary, static_cast<std::size_t>(vocabulary)};
}

}  // namespace

// A completion that has begun.
struct Scheduler::Sequence {
  Request* request = nullptr;
  std::int64_t index = 0;
  std::vector<std::int64_t> pages;
  std::int64_t length = 0;  // tokens in the cache: all but the last drawn one
  std::int64_t next_position = 0;
  Sampler sampler;
  Completion result;
  std::unique_ptr<StopScan> text;
  bool finished = false;
};

struct Scheduler::Request {
  Ticket ticket = 0;
  GenerationRequest request;
  SamplingOptions sampling;
  RequestEvents events;
  std::shared_ptr<const Sampler::Settings> sampler;
  models::TokenPositions positions;
  std::vector<std::string> picture_keys;
  std::vector<std::string> chain;  // keys of the prompt's full pages
  // The prompt, from its pass until all completions have begun.
  std::vector<std::int64_t> pages;
  at::Tensor logits;  // [V] behind its last token
  std::vector<std::unique_ptr<Sequence>> begun;
  std::int64_t num_finished = 0;
  bool failed = false;

  std::int64_t prompt_length() const { return std::ssize(request.prompt.ids); }
  bool all_begun() const { return std::ssize(begun) == request.num_completions; }
  bool is_over() const { return failed || num_finished == request.num_completions; }
  bool is_computed() const { return logits.defined(); }

  // Key of page `index`, which lies behind the page of key `before`. Ids behind the prompt come from `answer`.
  std::string page_key(std::int64_t index, const std::string& before, const std::vector<std::int64_t>& answer) const {
    std::string content = before;
    for (std::int64_t i = index * kPage; i < (index + 1) * kPage; ++i) {
      const std::int64_t id = i < prompt_length() ? request.prompt.ids[static_cast<std::size_t>(i)]
                                                  : answer[static_cast<std::size_t>(i - prompt_length())];
      content.append(reinterpret_cast<const char*>(&id), sizeof id);
    }
    // Pictures with a token in this page: their rows lie one behind the other.
    const std::vector<std::int64_t>& rows = request.prompt.image_rows;
    std::size_t first = 0;
    for (std::size_t picture = 0; picture < picture_keys.size(); ++picture) {
      const auto last = first + static_cast<std::size_t>(request.image_features[picture].size(0)) - 1;
      if (rows[first] < (index + 1) * kPage && rows[last] >= index * kPage)
        content += picture_keys[picture] + std::to_string(rows[first]);
      first = last + 1;
    }
    return sha256_text(content);
  }

  void make_chain() {
    std::string before;
    for (std::int64_t page = 0; page < prompt_length() / kPage; ++page)
      chain.push_back(before = page_key(page, before, {}));
  }
};

// Tokens [past, end) of a prompt, or of a completion that was preempted, to be computed.
struct Scheduler::Part {
  Request* request = nullptr;
  Sequence* sequence = nullptr;  // null: the prompt itself
  std::vector<std::int64_t> pages = {};
  std::int64_t past = 0;
  std::int64_t end = 0;
};

struct Scheduler::Draw {
  Sequence* sequence;
  std::span<float> logits;
  std::optional<SampledToken> token = {};
};

Scheduler::Scheduler(models::VisionLanguageModel& model, const text::Tokenizer* tokenizer, const Settings& settings)
    : model_(model),
      tokenizer_(tokenizer),
      settings_(settings),
      cache_(cache_shape(model, settings.num_pages), model.parameters().front().options().requires_grad(false)),
      pool_(settings.num_pages) {}

Scheduler::~Scheduler() = default;

std::int64_t Scheduler::pages_needed(const GenerationRequest& request, const SamplingOptions& sampling) {
  return nn::PagedKvCache::pages_for(std::ssize(request.prompt.ids) + sampling.max_new_tokens - 1);
}

void Scheduler::check(const GenerationRequest& request, const SamplingOptions& sampling) const {
  sampling.check();
  const text::Prompt& prompt = request.prompt;
  const std::int64_t length = std::ssize(prompt.ids);
  if (request.num_completions < 1)
    throw_invalid("a request asks for {} completions; at least 1 is needed", request.num_completions);
  if (prompt.ids.empty()) throw_invalid("a request's prompt has no tokens; at least 1 is needed");
  for (const std::int64_t id : prompt.ids)
    if (id < 0 || id >= model_.vocab_size())
      throw_invalid("a prompt holds the id {}; the model's ids go from 0 to {}", id, model_.vocab_size() - 1);
  if (request.num_top_logprobs < 0)
    throw_invalid("num_top_logprobs must be 0 or more, but is {}", request.num_top_logprobs);
  if (request.grids.size() != request.image_features.size())
    throw_invalid("a request has {} picture grids, but features of {} pictures", request.grids.size(),
                  request.image_features.size());
  std::int64_t num_rows = 0;
  for (const at::Tensor& features : request.image_features) {
    if (!features.defined() || features.dim() != 2 || features.size(0) < 1)
      throw_invalid("a request's picture features must be [tokens, width]");
    num_rows += features.size(0);
  }
  if (num_rows != std::ssize(prompt.image_rows))
    throw_invalid("a prompt has room for {} image tokens, but its pictures make {}", prompt.image_rows.size(),
                  num_rows);
  for (std::size_t i = 0; i < prompt.image_rows.size(); ++i)
    if (prompt.image_rows[i] < (i == 0 ? 0 : prompt.image_rows[i - 1] + 1) || prompt.image_rows[i] >= length)
      throw_invalid("a prompt's image rows must rise and lie inside its {} tokens", length);
  if (!tokenizer_ && !request.stop.empty())
    throw_invalid("stop texts need a tokenizer: give one to the engine, or no stop texts");
  for (const std::string& text : request.stop)
    if (text.empty()) throw_invalid("a stop text is empty; give at least one character, or leave it out");
  if (pages_needed(request, sampling) > pool_.num_pages()) {
    const std::int64_t bytes =
        nn::PagedKvCache::page_bytes(cache_.shape(), static_cast<std::int64_t>(cache_.keys(0).element_size()));
    throw_invalid(
        "a prompt of {} tokens with up to {} new ones needs {:.1f} MiB of keys and values, but the cache has {:.1f}; "
        "raise cache_mb, or lower max_new_tokens",
        length, sampling.max_new_tokens, static_cast<double>(pages_needed(request, sampling) * bytes) / (1 << 20),
        static_cast<double>(pool_.num_pages() * bytes) / (1 << 20));
  }
}

void Scheduler::add(Ticket ticket, GenerationRequest request, const SamplingOptions& sampling, RequestEvents events) {
  auto added = std::make_unique<Request>();
  added->ticket = ticket;
  added->request = std::move(request);
  added->sampling = sampling;
  added->events = std::move(events);
  auto sampler = std::make_shared<Sampler::Settings>();
  sampler->sampling = sampling;
  sampler->banned = models::banned_ids(model_.special_tokens());
  sampler->banned.insert(sampler->banned.end(), added->request.banned_ids.begin(), added->request.banned_ids.end());
  sampler->end_ids = model_.special_tokens().end;
  sampler->num_top = added->request.num_top_logprobs;
  sampler->constraint = added->request.constraint;
  added->sampler = std::move(sampler);
  added->positions = model_.token_positions(added->request.prompt.ids, added->request.grids);
  if (settings_.prefix_cache) {
    for (std::size_t i = 0; i < added->request.image_features.size(); ++i)
      added->picture_keys.push_back(key_of_picture(added->request.grids[i], added->request.image_features[i]));
    added->make_chain();
  }
  requests_.push_back(std::move(added));
}

// Questions about one picture come one after the other and bring the same tensor: it is hashed once.
std::string Scheduler::key_of_picture(const models::ImageGrid& grid, const at::Tensor& features) {
  if (!latest_picture_.is_same(features) || !(latest_grid_ == grid)) {
    latest_key_ = picture_key(grid, features);
    latest_picture_ = features;
    latest_grid_ = grid;
  }
  return latest_key_;
}

void Scheduler::cancel(Ticket ticket) {
  const auto found =
      std::find_if(requests_.begin(), requests_.end(), [&](const auto& request) { return request->ticket == ticket; });
  if (found != requests_.end()) cancel(**found);
  forget_finished();
}

void Scheduler::cancel_all() {
  for (const auto& request : requests_) cancel(*request);
  forget_finished();
}

void Scheduler::cancel(Request& request) {
  if (request.is_over()) return;
  drop_prompt(request);
  for (const auto& sequence : request.begun)
    if (!sequence->finished) finish(*sequence, FinishReason::cancelled);
  while (!request.all_begun()) {
    const std::int64_t index = std::ssize(request.begun);
    request.begun.push_back(nullptr);
    ++request.num_finished;
    Completion none;
    none.finish = FinishReason::cancelled;
    if (request.events.on_finish) request.events.on_finish(index, none);
  }
}

EngineLoad Scheduler::load() const {
  EngineLoad load;
  for (const auto& request : requests_) load.waiting_requests += request->begun.empty() ? 1 : 0;
  load.running_completions = std::ssize(running_) + std::ssize(preempted_);
  load.pages_used = pool_.num_held();
  load.pages_total = pool_.num_pages();
  load.prompt_tokens = prompt_tokens_;
  load.reused_tokens = reused_tokens_;
  load.new_tokens = new_tokens_;
  return load;
}

void Scheduler::release(std::vector<std::int64_t>& pages) {
  for (const std::int64_t page : pages) pool_.release(page);
  pages.clear();
}

void Scheduler::drop_prompt(Request& request) {
  release(request.pages);
  request.logits = at::Tensor();
}

void Scheduler::finish(Sequence& sequence, FinishReason reason) {
  Request& request = *sequence.request;
  if (settings_.prefix_cache && settings_.remember_answers)
    remember(request, &sequence, sequence.pages, sequence.length);
  release(sequence.pages);
  std::erase(running_, &sequence);
  std::erase(preempted_, &sequence);
  sequence.finished = true;
  ++request.num_finished;
  if (sequence.text) {
    sequence.result.text = sequence.text->finish();
    sequence.result.stop_text = sequence.text->stop_text();
    if (!sequence.result.stop_text.empty() && reason == FinishReason::length) reason = FinishReason::stop;
  }
  sequence.result.finish = reason;
  if (request.events.on_finish) request.events.on_finish(sequence.index, sequence.result);
}

void Scheduler::fail(Request& request, const std::exception_ptr& error) {
  drop_prompt(request);
  for (const auto& sequence : request.begun) {
    if (!sequence || sequence->finished) continue;
    release(sequence->pages);
    std::erase(running_, sequence.get());
    std::erase(preempted_, sequence.get());
    sequence->finished = true;
  }
  request.failed = true;
  if (request.events.on_error) request.events.on_error(error);
}

void Scheduler::forget_finished() {
  std::erase_if(requests_, [](const std::unique_ptr<Request>& request) { return request->is_over(); });
}

// Registers the full pages among the first `length` tokens.
void Scheduler::remember(const Request& request, const Sequence* sequence, const std::vector<std::int64_t>& pages,
                         std::int64_t length) {
  std::string before;
  for (std::int64_t page = 0; page < length / kPage && page < std::ssize(pages); ++page) {
    if (page < std::ssize(request.chain))
      before = request.chain[static_cast<std::size_t>(page)];
    else if (sequence != nullptr)
      before = request.page_key(page, before, sequence->result.ids);
    else
      break;
    pool_.remember(pages[static_cast<std::size_t>(page)], before);
  }
}

std::int64_t Scheduler::rows_in_use() const {
  std::int64_t rows = std::ssize(running_);
  for (const auto& request : requests_)
    if (request->is_computed()) rows += request->request.num_completions - std::ssize(request->begun);
  return rows;
}

// Finds remembered pages for the part's beginning and takes pages for the rest; false where there are not enough.
bool Scheduler::plan_part(Part& part) {
  const Request& request = *part.request;
  // At least one token is computed: the logits behind the last one are wanted.
  const std::int64_t reusable = std::min((part.end - 1) / kPage, std::ssize(request.chain));
  if (settings_.prefix_cache) {
    while (std::ssize(part.pages) < reusable) {
      const auto page = pool_.find(request.chain[part.pages.size()]);
      if (!page) break;
      part.pages.push_back(*page);
    }
  }
  part.past = std::ssize(part.pages) * kPage;
  const std::int64_t missing = nn::PagedKvCache::pages_for(part.end) - std::ssize(part.pages);
  // One page more for each that runs, so that what begins is not preempted at once.
  if (pool_.num_available() < missing + std::min(std::ssize(running_) + 1, pool_.num_pages() / 8)) {
    if (!running_.empty() || pool_.num_available() < missing) {
      release(part.pages);
      return false;
    }
  }
  for (std::int64_t i = 0; i < missing; ++i) part.pages.push_back(*pool_.take());
  return true;
}

void Scheduler::run_parts(std::vector<Part>& parts) {
  models::PackBuilder builder;
  std::vector<nn::PagedSequence> tables;
  std::vector<std::int64_t> last_rows;
  for (const Part& part : parts) {
    const GenerationRequest& request = part.request->request;
    const std::int64_t prompt_length = part.request->prompt_length();
    const std::int64_t prompt_end = std::min(part.end, prompt_length);
    models::PackBuilder::Sequence tokens;
    std::vector<at::Tensor> positions;
    if (part.past < prompt_end) {
      tokens.ids.assign(request.prompt.ids.begin() + part.past, request.prompt.ids.begin() + prompt_end);
      positions.push_back(part.request->positions.positions.narrow(1, part.past, prompt_end - part.past));
    }
    if (part.end > prompt_length) {
      const std::int64_t from = std::max(part.past, prompt_length) - prompt_length, to = part.end - prompt_length;
      const std::vector<std::int64_t>& answer = part.sequence->result.ids;
      tokens.ids.insert(tokens.ids.end(), answer.begin() + from, answer.begin() + to);
      positions.push_back(models::text_positions(part.request->positions.next + from, to - from));
    }
    tokens.positions = at::cat(positions, 1);
    std::size_t row = 0;
    for (const at::Tensor& features : request.image_features) {
      const std::int64_t count = features.size(0);
      std::int64_t skipped = 0;
      for (std::int64_t i = 0; i < count; ++i, ++row) {
        const std::int64_t place = request.prompt.image_rows[row];
        if (place < part.past)
          ++skipped;
        else
          tokens.image_rows.push_back(place - part.past);
      }
      if (skipped < count) tokens.image_features.push_back(features.narrow(0, skipped, count - skipped));
    }
    last_rows.push_back(builder.add(tokens) + std::ssize(tokens.ids) - 1);
    tables.push_back({part.pages, part.past});
  }
  const at::Device device = model_.parameters().front().device();
  const models::Pack pack = builder.build(device);
  nn::PagedAttention attention(cache_, std::move(tables), pack.layout);
  const at::Tensor hidden = models::run_pack(model_, pack, attention);
  const at::Tensor logits =
      readable(model_.logits(hidden.index_select(0, at::tensor(last_rows, at::kLong).to(device))));
  for (std::size_t i = 0; i < parts.size(); ++i) {
    Part& part = parts[i];
    prompt_tokens_ += part.end - part.past;
    reused_tokens_ += part.past;
    if (settings_.prefix_cache) remember(*part.request, nullptr, part.pages, part.end);
    if (part.sequence != nullptr) {
      part.sequence->pages = std::move(part.pages);
      part.sequence->length = part.end;
      running_.push_back(part.sequence);
    } else {
      part.request->pages = std::move(part.pages);
      part.request->logits = logits[static_cast<std::int64_t>(i)];
    }
  }
}

// Computes what there is room for: first completions that had to go, then new prompts, oldest first.
void Scheduler::prefill() {
  std::int64_t rows = settings_.max_rows - rows_in_use();
  if (settings_.wait_for_rows && !running_.empty() && rows * 8 < settings_.max_rows) return;
  std::vector<Part> parts;
  std::int64_t num_tokens = 0;
  std::unordered_set<std::string> coming;  // pages that this pass computes: who begins with them waits for them
  // Whether the part has joined the pass.
  const auto join = [&](Part part) {
    if (!plan_part(part)) return false;
    const std::vector<std::string>& chain = part.request->chain;
    const std::size_t first = part.pages.empty() ? 0 : static_cast<std::size_t>(part.past / kPage);
    if (first < chain.size() && coming.contains(chain[first])) {
      release(part.pages);
      return false;
    }
    coming.insert(chain.begin() + static_cast<std::ptrdiff_t>(std::min(first, chain.size())), chain.end());
    num_tokens += part.end - part.past;
    parts.push_back(std::move(part));
    return true;
  };
  std::size_t num_resumed = 0;
  bool full = false;
  for (Sequence* sequence : preempted_) {
    if (rows <= 0 || num_tokens >= kPromptTokensAtATime) break;
    const std::int64_t end = sequence->request->prompt_length() + std::ssize(sequence->result.ids) - 1;
    full = !join({.request = sequence->request, .sequence = sequence, .end = end});
    if (full) break;
    ++num_resumed;
    --rows;
  }
  preempted_.erase(preempted_.begin(), preempted_.begin() + static_cast<std::ptrdiff_t>(num_resumed));
  if (!full && preempted_.empty()) {
    for (const auto& request : requests_) {
      if (rows <= 0 || num_tokens >= kPromptTokensAtATime) break;
      if (request->is_over() || request->is_computed() || request->all_begun()) continue;
      if (!join({.request = request.get(), .end = request->prompt_length()})) break;
      rows -= request->request.num_completions - std::ssize(request->begun);
    }
  }
  if (parts.empty()) return;
  try {
    run_parts(parts);
  } catch (...) {
    for (Part& part : parts) release(part.pages);
    for (const Part& part : parts)
      if (!part.request->failed) fail(*part.request, std::current_exception());
  }
}

// Draws the first token of completions whose prompt is there.
void Scheduler::start_completions() {
  std::vector<Draw> rows;
  std::vector<at::Tensor> copies;
  std::vector<Request*> touched;
  auto free_rows = settings_.max_rows - std::ssize(running_);
  auto free_pages = pool_.num_available() - std::ssize(running_);
  for (const auto& request : requests_) {
    if (request->is_over() || !request->is_computed()) continue;
    const std::int64_t vocabulary = request->logits.size(0);
    while (!request->all_begun() && free_rows > 0 && (free_pages > 0 || (running_.empty() && rows.empty()))) {
      const std::int64_t index = std::ssize(request->begun);
      std::vector<std::uint64_t> key = request->request.stream;
      key.push_back(static_cast<std::uint64_t>(index));
      request->begun.push_back(std::make_unique<Sequence>(Sequence{
          .request = request.get(),
          .index = index,
          .pages = request->pages,
          .length = request->prompt_length(),
          .next_position = request->positions.next,
          .sampler =
              Sampler(request->sampler, request->request.prompt.ids, RandomStream(std::span<const std::uint64_t>(key))),
          .result = {},
          .text =
              tokenizer_ ? std::make_unique<StopScan>(tokenizer_->decode_stream(), request->request.stop) : nullptr}));
      Sequence& sequence = *request->begun.back();
      for (const std::int64_t page : sequence.pages) pool_.hold(page);
      copies.push_back(request->logits.clone());
      rows.push_back({&sequence, {copies.back().mutable_data_ptr<float>(), static_cast<std::size_t>(vocabulary)}});
      running_.push_back(&sequence);
      --free_rows;
      --free_pages;
    }
    if (request->all_begun()) touched.push_back(request.get());
  }
  if (rows.empty()) return;
  for (Request* request : touched) drop_prompt(*request);
  draw(rows);
}

// Room for the next token: a new page, or a page of its own in place of a shared one. False where there is none.
bool Scheduler::grow(Sequence& sequence) {
  const auto page = static_cast<std::size_t>(sequence.length / kPage);
  if (page == sequence.pages.size()) {
    const auto taken = pool_.take();
    if (taken) sequence.pages.push_back(*taken);
    return taken.has_value();
  }
  if (pool_.num_holders(sequence.pages[page]) == 1) return true;
  const auto taken = pool_.take();
  if (!taken) return false;
  cache_.copy_page(sequence.pages[page], *taken);
  pool_.release(sequence.pages[page]);
  sequence.pages[page] = *taken;
  return true;
}

// Takes pages from who came last; false where that is the sequence itself.
bool Scheduler::make_room(const Sequence& sequence) {
  for (auto request = requests_.rbegin(); request != requests_.rend(); ++request) {
    if (!(*request)->is_computed()) continue;
    drop_prompt(**request);
    return true;
  }
  Sequence* youngest = running_.back();
  preempt(*youngest);
  return youngest != &sequence;
}

void Scheduler::preempt(Sequence& sequence) {
  release(sequence.pages);
  sequence.length = 0;
  std::erase(running_, &sequence);
  preempted_.push_front(&sequence);
  ++num_preemptions_;
}

void Scheduler::draw(std::vector<Draw>& rows) {
  const std::int64_t vocabulary = std::ssize(rows.front().logits);
  nn::share_out(std::ssize(rows), std::max<std::int64_t>(1, 32768 / vocabulary),
                [&](std::int64_t begin, std::int64_t end) {
                  for (std::int64_t i = begin; i < end; ++i) {
                    Draw& row = rows[static_cast<std::size_t>(i)];
                    row.token = row.sequence->sampler.draw(row.logits);
                  }
                });
  for (const Draw& row : rows) take_token(*row.sequence, row.token);
}

void Scheduler::take_token(Sequence& sequence, const std::optional<SampledToken>& token) {
  Request& request = *sequence.request;
  if (!token) return finish(sequence, FinishReason::stop);
  Completion& result = sequence.result;
  result.ids.push_back(token->id);
  result.logprobs.push_back(token->logprob);
  if (request.request.num_top_logprobs > 0) result.top.push_back(token->top);
  ++new_tokens_;
  bool stopped = false;
  std::string text;
  if (sequence.text) {
    text = sequence.text->add(token->id);
    stopped = !sequence.text->stop_text().empty();
  }
  if (request.events.on_token)
    request.events.on_token(sequence.index, {token->id, token->logprob, token->top, std::move(text)});
  const std::vector<std::int64_t>& end_ids = request.sampler->end_ids;
  if (stopped || std::find(end_ids.begin(), end_ids.end(), token->id) != end_ids.end())
    finish(sequence, FinishReason::stop);
  else if (std::ssize(result.ids) >= request.sampling.max_new_tokens)
    finish(sequence, FinishReason::length);
}

void Scheduler::decode() {
  for (std::size_t i = 0; i < running_.size();) {
    Sequence* sequence = running_[i];
    bool goes_on = true;
    while (goes_on && !grow(*sequence)) goes_on = make_room(*sequence);
    if (goes_on) ++i;
  }
  if (running_.empty()) return;
  const std::vector<Sequence*> batch = running_;
  try {
    std::vector<std::int64_t> ids, positions;
    std::vector<nn::PagedSequence> tables;
    for (Sequence* sequence : batch) {
      ids.push_back(sequence->result.ids.back());
      positions.push_back(sequence->next_position + std::ssize(sequence->result.ids) - 1);
      tables.push_back({sequence->pages, sequence->length});
    }
    const at::Device device = model_.parameters().front().device();
    nn::PagedAttention attention(cache_, std::move(tables),
                                 {std::vector<std::int64_t>(batch.size(), 1), std::vector<std::int64_t>()});
    const at::Tensor position = at::tensor(positions, at::kLong).unsqueeze(0).expand({3, -1}).to(device);
    const at::Tensor hidden =
        model_.decode(model_.embed(at::tensor(ids, at::kLong).to(device), {}, {}), position, attention);
    const at::Tensor logits = readable(model_.logits(hidden));
    std::vector<Draw> rows;
    for (std::size_t i = 0; i < batch.size(); ++i) {
      ++batch[i]->length;
      rows.push_back({batch[i], row_of(logits, static_cast<std::int64_t>(i))});
    }
    draw(rows);
  } catch (...) {
    for (const Sequence* sequence : batch)
      if (!sequence->request->failed) fail(*sequence->request, std::current_exception());
  }
}

bool Scheduler::step() {
  const at::NoGradGuard no_grad;
  start_completions();
  prefill();
  start_completions();
  decode();
  forget_finished();
  return !requests_.empty();
}

}  // namespace thinkvg::generation
