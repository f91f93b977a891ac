#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "serve/chat_reply.h"
#include "serve/metrics.h"
#include "thinkvg/serve/backend.h"

namespace thinkvg::serve {

// One request for an answer, from submit() to the last byte of its reply. Used by one thread, the connection's; the
// backend's events reach it through a mailbox that outlives it where that is needed. A session that is given up cancels
// its request.
class ChatSession {
 public:
  using Clock = std::chrono::steady_clock;
  struct Context {
    ChatBackend& backend;
    Metrics& metrics;
    ReplyHead head;
    double seconds = 600;               // for the answer
    std::function<bool()> client_gone;  // may be asked at any time
    std::function<bool()> stopping;     // the server's time for ending is over
    std::shared_ptr<void> place;        // among the requests that may run; given back when the backend is done
  };
  // Submits. Throws ApiError.
  ChatSession(ChatRequest request, std::uint64_t seed, Context context);
  ~ChatSession();
  ChatSession(const ChatSession&) = delete;
  ChatSession& operator=(const ChatSession&) = delete;

  // Waits for the whole answer and returns the body. Throws ApiError.
  std::string whole_reply();

  // The next part of a stream of server-sent events, waiting for it; nothing when the client is gone. Errors are parts
  // of the stream. Behind the last part, stream_over() is true.
  std::optional<std::string> next_part();
  bool stream_over() const { return stream_over_; }

 private:
  struct Event {
    std::int64_t completion = 0;
    std::optional<ChatToken> token;  // else
    ChatFinish finish = ChatFinish::stop;
    std::string text;  // with `finish`
    std::exception_ptr error;
  };
  struct Mailbox {
    std::mutex mutex;
    std::condition_variable changed;
    std::deque<Event> events;
    std::int64_t remaining = 0;   // completions that have not ended in the backend
    std::shared_ptr<void> place;  // until they have
  };

  static ChatEvents events_into(const std::shared_ptr<Mailbox>& mailbox);
  // Waits a little for events and takes them in. Throws ApiError when there is nothing more to wait for.
  void collect();
  void take(Event event);
  void give_up(const std::string& why);
  bool all_finished() const;
  // A chunk of each completion that has something new.
  std::string news();
  std::string chunk(Json choices) const;
  std::string last_parts() const;

  ChatRequest request_;
  Context context_;
  Clock::time_point start_;
  std::shared_ptr<Mailbox> mailbox_;
  AcceptedChat accepted_;
  std::vector<CompletionText> completions_;
  std::vector<std::optional<Clock::time_point>> first_tokens_;
  bool any_token_ = false;
  bool given_up_ = false;
  bool stream_begun_ = false;
  bool stream_over_ = false;
  std::vector<bool> told_finish_;
};

}  // namespace thinkvg::serve
