#include "serve/chat_reply.h"

#include <algorithm>
#include <utility>

#include "thinkvg/core/manifest.h"

namespace thinkvg::serve {

namespace {
// JSON knows no infinity; vLLM writes this for a token that cannot come.
constexpr float kLeastLogprob = -9999.0f;
}  // namespace

CompletionText::CompletionText(const text::Tokenizer& tokenizer, const ChatRequest& request)
    : tokenizer_(tokenizer), wants_logprobs_(request.logprobs) {}

Json CompletionText::entry(std::int64_t id, float logprob) const {
  // Possibly a part of a character: dump() then writes U+FFFD for the text, and the bytes say what it is.
  const std::string text = tokenizer_.bytes(id, num_tokens_ > 1 ? text::TextPlace::kInside : text::TextPlace::kStart);
  Json bytes = Json::array();
  for (const char c : text) bytes.push_back(static_cast<unsigned char>(c));
  return {{"token", text}, {"logprob", std::max(logprob, kLeastLogprob)}, {"bytes", std::move(bytes)}};
}

void CompletionText::add(const ChatToken& token) {
  ++num_tokens_;
  if (wants_logprobs_) {
    Json chosen = entry(token.id, token.logprob);
    chosen["top_logprobs"] = Json::array();
    for (const auto& [id, logprob] : token.top) chosen["top_logprobs"].push_back(entry(id, logprob));
    logprobs_.push_back(std::move(chosen));
  }
  text_ += token.text;
}

void CompletionText::finish(ChatFinish finish, std::string text) {
  text_ = std::move(text);
  taken_ = std::min(taken_, text_.size());
  finish_ = finish;
}

std::string CompletionText::finish_reason() const { return finish_ == ChatFinish::stop ? "stop" : "length"; }

std::string CompletionText::take_text() {
  std::string news = text_.substr(taken_);
  taken_ = text_.size();
  return news;
}

Json CompletionText::take_logprobs() {
  if (!wants_logprobs_) return nullptr;
  Json content = Json::array();
  for (Json& item : logprobs_) content.push_back(std::move(item));
  logprobs_.clear();
  return {{"content", std::move(content)}, {"refusal", nullptr}};
}

Json usage_json(std::int64_t prompt_tokens, std::int64_t completion_tokens) {
  return {{"prompt_tokens", prompt_tokens},
          {"completion_tokens", completion_tokens},
          {"total_tokens", prompt_tokens + completion_tokens}};
}

Json reply_json(const ReplyHead& head, const char* object, Json choices) {
  return {{"id", head.id},
          {"object", object},
          {"created", head.created},
          {"model", head.model},
          {"system_fingerprint", "thinkvg-" + version()},
          {"choices", std::move(choices)}};
}

std::string dump(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

}  // namespace thinkvg::serve
