#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "thinkvg/grounding/geometry.h"
#include "thinkvg/serve/chat_request.h"
#include "thinkvg/text/tokenizer.h"

namespace thinkvg::serve {

// A token as the model drew it.
struct ChatToken {
  std::int64_t id = 0;
  float logprob = 0;
  std::vector<std::pair<std::int64_t, float>> top;  // as many as the request's top_logprobs, best first
  std::string text;                                 // that is certain now: whole characters, nothing of a stop text
};

enum class ChatFinish { stop, length, cancelled };

// What is told of a request, in order, from any thread. The functions return at once and do not throw.
struct ChatEvents {
  std::function<void(std::int64_t completion, ChatToken token)> on_token;
  // Once a completion, with its whole text, without the stop text that ended it.
  std::function<void(std::int64_t completion, ChatFinish finish, std::string text)> on_finish;
  std::function<void(std::exception_ptr)> on_error;  // instead of all further events
};

// A picture as the model sees it.
struct SeenPicture {
  grounding::ImageSize original;  // as shown, EXIF orientation applied
  grounding::BoxFrame frame;      // of the boxes in the model's text
};

struct AcceptedChat {
  std::uint64_t ticket = 0;
  std::int64_t prompt_tokens = 0;
  std::vector<SeenPicture> pictures;
};

struct BackendLoad {
  std::int64_t waiting_requests = 0;
  std::int64_t running_completions = 0;
  std::int64_t pages_used = 0;
  std::int64_t pages_total = 0;
  std::int64_t prompt_tokens = 0;  // since the start, as the two below; those taken from the prefix cache are apart
  std::int64_t reused_tokens = 0;
  std::int64_t new_tokens = 0;
};

// What answers a server's requests: a model on its engine, or something that stands in for it in a test. All methods
// may be called from several threads.
class ChatBackend {
 public:
  virtual ~ChatBackend() = default;
  virtual const text::Tokenizer& tokenizer() const = 0;
  // Tokens of prompt and answer together.
  virtual std::int64_t context_length() const = 0;
  // Reads the pictures and starts the answer; events may come before this returns. Throws ApiError where the request
  // itself is wrong (a damaged picture, too long a prompt): nothing has been started then.
  virtual AcceptedChat submit(const ChatRequest& request, std::uint64_t seed, ChatEvents events) = 0;
  // Ends a request soon; its events go on to on_finish. Does nothing where it has ended.
  virtual void cancel(std::uint64_t ticket) = 0;
  virtual BackendLoad load() const = 0;
};

}  // namespace thinkvg::serve
