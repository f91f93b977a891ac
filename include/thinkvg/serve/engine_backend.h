#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "thinkvg/generation/async_engine.h"
#include "thinkvg/generation/prompt_builder.h"
#include "thinkvg/serve/backend.h"
#include "thinkvg/text/grammar.h"

namespace thinkvg::serve {

// A model on an engine of its own, as a server's backend. Pictures are decoded in the calling thread.
class EngineBackend final : public ChatBackend {
 public:
  EngineBackend(const models::ModelBundle& bundle, const generation::EngineOptions& engine,
                const generation::PromptBuilder::Options& prompts);
  ~EngineBackend() override;

  const text::Tokenizer& tokenizer() const override { return *builder_.bundle().tokenizer; }
  std::int64_t context_length() const override { return context_length_; }
  AcceptedChat submit(const ChatRequest& request, std::uint64_t seed, ChatEvents events) override;
  void cancel(std::uint64_t ticket) override { engine_.cancel(ticket); }
  BackendLoad load() const override;

 private:
  // `seen`: the pictures, for the form `grounded`. Throws ApiError.
  std::shared_ptr<const text::TokenConstraint> constraint_for(const OutputFormat& format,
                                                              const std::vector<SeenPicture>& seen);

  generation::PromptBuilder builder_;
  std::int64_t context_length_;
  std::mutex grammar_mutex_;
  std::unique_ptr<text::GrammarCompiler> compiler_;  // made when it is first asked for
  std::deque<std::pair<std::string, std::shared_ptr<const text::TokenConstraint>>> constraints_;  // latest first
  generation::AsyncEngine engine_;
};

}  // namespace thinkvg::serve
