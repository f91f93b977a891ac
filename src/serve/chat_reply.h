#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "thinkvg/core/json.h"
#include "thinkvg/serve/backend.h"

namespace thinkvg::serve {

// What all objects of one answer begin with.
struct ReplyHead {
  std::string id;  // "chatcmpl-.."
  std::int64_t created = 0;
  std::string model;
};

// One of a request's completions on its way from tokens to text.
class CompletionText {
 public:
  CompletionText(const text::Tokenizer& tokenizer, const ChatRequest& request);

  void add(const ChatToken& token);
  void finish(ChatFinish finish, std::string text);

  // All text so far that is certain, without the stop text that ended it.
  const std::string& text() const { return text_; }
  std::int64_t num_tokens() const { return num_tokens_; }
  bool finished() const { return finish_.has_value(); }
  // "stop" or "length".
  std::string finish_reason() const;
  // What came since the last call. Log-probs: {"content": [..], "refusal": null}, or null where none are wanted.
  std::string take_text();
  Json take_logprobs();
  bool has_news() const { return taken_ < text_.size() || !logprobs_.empty(); }

  std::size_t num_sentences = 0;  // that a stream has told

 private:
  Json entry(std::int64_t id, float logprob) const;

  const text::Tokenizer& tokenizer_;
  bool wants_logprobs_;
  std::string text_;
  std::size_t taken_ = 0;
  std::vector<Json> logprobs_;  // not taken yet
  std::int64_t num_tokens_ = 0;
  std::optional<ChatFinish> finish_;
};

Json usage_json(std::int64_t prompt_tokens, std::int64_t completion_tokens);
// {"id", "object", "created", "model", "system_fingerprint", "choices"}.
Json reply_json(const ReplyHead& head, const char* object, Json choices);
// Text that is safe in a JSON body even where a model wrote broken characters.
std::string dump(const Json& json);

}  // namespace thinkvg::serve
