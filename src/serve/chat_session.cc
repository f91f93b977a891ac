#include "serve/chat_session.h"

#include <algorithm>
#include <utility>

#include "serve/grounded_reply.h"

namespace thinkvg::serve {
namespace {

using std::chrono::milliseconds;

// How often a waiting request looks whether its client is still there.
constexpr milliseconds kLook(200);
// A stream in which nothing comes for so long says so, for proxies that close silent connections.
constexpr std::chrono::seconds kSilence(10);

double seconds_since(ChatSession::Clock::time_point start) {
  return std::chrono::duration<double>(ChatSession::Clock::now() - start).count();
}

std::string sse(const std::string& data) { return "data: " + data + "\n\n"; }

[[noreturn]] void rethrow_as_api_error(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const ApiError&) {
    throw;
  } catch (const std::invalid_argument& invalid) {
    throw invalid_request(invalid.what());
  } catch (const std::exception& failure) {
    throw internal_error(failure.what());
  }
}

}  // namespace

ChatEvents ChatSession::events_into(const std::shared_ptr<Mailbox>& mailbox) {
  const auto put = [mailbox](Event event, bool ends, bool ends_all) {
    std::shared_ptr<void> place;  // is given back without the lock
    {
      const std::lock_guard lock(mailbox->mutex);
      mailbox->events.push_back(std::move(event));
      if (ends) --mailbox->remaining;
      if (ends_all) mailbox->remaining = 0;
      if (mailbox->remaining <= 0) place = std::move(mailbox->place);
    }
    mailbox->changed.notify_one();
  };
  ChatEvents events;
  events.on_token = [put](std::int64_t completion, ChatToken token) {
    put({completion, std::move(token), ChatFinish::stop, {}, nullptr}, false, false);
  };
  events.on_finish = [put](std::int64_t completion, ChatFinish finish, std::string text) {
    put({completion, std::nullopt, finish, std::move(text), nullptr}, true, false);
  };
  events.on_error = [put](std::exception_ptr error) {
    put({0, std::nullopt, ChatFinish::cancelled, {}, std::move(error)}, false, true);
  };
  return events;
}

ChatSession::ChatSession(ChatRequest request, std::uint64_t seed, Context context)
    : request_(std::move(request)),
      context_(std::move(context)),
      start_(Clock::now()),
      mailbox_(std::make_shared<Mailbox>()) {
  const auto count = static_cast<std::size_t>(request_.num_completions);
  for (std::size_t i = 0; i < count; ++i) completions_.emplace_back(context_.backend.tokenizer(), request_);
  first_tokens_.resize(count);
  told_finish_.resize(count);
  mailbox_->remaining = request_.num_completions;
  mailbox_->place = std::move(context_.place);
  accepted_ = context_.backend.submit(request_, seed, events_into(mailbox_));
  context_.metrics.count_pictures(static_cast<std::int64_t>(accepted_.pictures.size()));
  request_.pictures.clear();  // they may be large, and the answer may be long
}

ChatSession::~ChatSession() { give_up("client_gone"); }

void ChatSession::give_up(const std::string& why) {
  if (given_up_ || all_finished()) return;
  given_up_ = true;
  context_.backend.cancel(accepted_.ticket);
  for (const CompletionText& completion : completions_)
    if (!completion.finished()) context_.metrics.count_completion(why, completion.num_tokens());
}

bool ChatSession::all_finished() const {
  return std::all_of(completions_.begin(), completions_.end(),
                     [](const CompletionText& completion) { return completion.finished(); });
}

void ChatSession::take(Event event) {
  if (event.error) {
    given_up_ = true;  // the backend has
    context_.metrics.count_completion("error", 0);
    rethrow_as_api_error(event.error);
  }
  const auto index = static_cast<std::size_t>(event.completion);
  if (index >= completions_.size()) return;
  CompletionText& completion = completions_[index];
  if (event.token) {
    if (!std::exchange(any_token_, true)) context_.metrics.observe_first_token(seconds_since(start_));
    if (!first_tokens_[index]) first_tokens_[index] = Clock::now();
    completion.add(*event.token);
    return;
  }
  if (event.finish == ChatFinish::cancelled) throw unavailable("the answer was broken off: the server is stopping");
  completion.finish(event.finish, std::move(event.text));
  context_.metrics.count_completion(completion.finish_reason(), completion.num_tokens());
  if (completion.num_tokens() > 1)
    context_.metrics.observe_next_tokens(seconds_since(*first_tokens_[index]) /
                                         static_cast<double>(completion.num_tokens() - 1));
}

void ChatSession::collect() {
  const Clock::time_point deadline =
      start_ + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(context_.seconds));
  std::deque<Event> events;
  {
    std::unique_lock lock(mailbox_->mutex);
    mailbox_->changed.wait_until(lock, std::min(deadline, Clock::now() + kLook),
                                 [&] { return !mailbox_->events.empty(); });
    events.swap(mailbox_->events);
  }
  for (Event& event : events) take(std::move(event));
  if (all_finished()) return;
  if (context_.client_gone()) {
    give_up("client_gone");
    throw ApiError(499, "invalid_request_error", "client_closed_request", "the client has closed the connection");
  }
  if (Clock::now() >= deadline) {
    give_up("timeout");
    throw out_of_time(context_.seconds);
  }
  if (context_.stopping()) {
    give_up("stopping");
    throw unavailable("the server is stopping");
  }
}

std::string ChatSession::whole_reply() {
  while (!all_finished()) collect();
  Json choices = Json::array();
  std::int64_t num_tokens = 0;
  for (std::size_t i = 0; i < completions_.size(); ++i) {
    CompletionText& completion = completions_[i];
    num_tokens += completion.num_tokens();
    choices.push_back({{"index", i},
                       {"message", {{"role", "assistant"}, {"content", completion.text()}, {"refusal", nullptr}}},
                       {"logprobs", completion.take_logprobs()},
                       {"finish_reason", completion.finish_reason()},
                       {"thinkvg", grounded_reply(completion.text(), accepted_.pictures)}});
  }
  Json body = reply_json(context_.head, "chat.completion", std::move(choices));
  body["usage"] = usage_json(accepted_.prompt_tokens, num_tokens);
  return dump(body);
}

std::string ChatSession::chunk(Json choices) const {
  Json body = reply_json(context_.head, "chat.completion.chunk", std::move(choices));
  if (request_.include_usage) body["usage"] = nullptr;
  return sse(dump(body));
}

std::string ChatSession::news() {
  std::string parts;
  for (std::size_t i = 0; i < completions_.size(); ++i) {
    CompletionText& completion = completions_[i];
    const bool finishes = completion.finished() && !told_finish_[i];
    if (!completion.has_news() && !finishes) continue;
    const std::string text = completion.take_text();
    if (!text.empty() || request_.logprobs) {
      Json choice = {{"index", i},
                     {"delta", {{"content", text}}},
                     {"logprobs", completion.take_logprobs()},
                     {"finish_reason", nullptr}};
      // A sentence can only have ended where one of these came.
      if (finishes || text.find_first_of(".!?\n<\" ") != std::string::npos) {
        Json sentences = sentences_so_far(completion.text(), completion.num_sentences, accepted_.pictures, finishes);
        if (!sentences.empty()) {
          completion.num_sentences += sentences.size();
          choice["thinkvg"] = {{"sentences", std::move(sentences)}};
        }
      }
      parts += chunk(Json::array({std::move(choice)}));
    }
    if (!finishes) continue;
    told_finish_[i] = true;
    parts += chunk(Json::array({{{"index", i},
                                 {"delta", Json::object()},
                                 {"logprobs", nullptr},
                                 {"finish_reason", completion.finish_reason()},
                                 {"thinkvg", grounded_reply(completion.text(), accepted_.pictures)}}}));
  }
  return parts;
}

std::string ChatSession::last_parts() const {
  std::string parts;
  if (request_.include_usage) {
    std::int64_t num_tokens = 0;
    for (const CompletionText& completion : completions_) num_tokens += completion.num_tokens();
    Json body = reply_json(context_.head, "chat.completion.chunk", Json::array());
    body["usage"] = usage_json(accepted_.prompt_tokens, num_tokens);
    parts += sse(dump(body));
  }
  return parts + sse("[DONE]");
}

std::optional<std::string> ChatSession::next_part() {
  if (!std::exchange(stream_begun_, true)) {
    Json choices = Json::array();
    for (std::size_t i = 0; i < completions_.size(); ++i)
      choices.push_back({{"index", i},
                         {"delta", {{"role", "assistant"}, {"content", ""}}},
                         {"logprobs", nullptr},
                         {"finish_reason", nullptr},
                         {"thinkvg", {{"pictures", pictures_reply(accepted_.pictures)}}}});
    return chunk(std::move(choices));
  }
  try {
    const Clock::time_point begin = Clock::now();
    while (true) {
      collect();
      std::string parts = news();
      if (all_finished()) {
        stream_over_ = true;
        return parts + last_parts();
      }
      if (!parts.empty()) return parts;
      if (Clock::now() - begin >= kSilence) return ": waiting\n\n";
    }
  } catch (const ApiError& error) {
    stream_over_ = true;
    if (error.status() == 499) return std::nullopt;
    return sse(error.json()) + sse("[DONE]");
  }
}

}  // namespace thinkvg::serve
