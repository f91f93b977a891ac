#include "thinkvg/serve/engine_backend.h"

#include <algorithm>
#include <string_view>

#include "thinkvg/core/error.h"
#include "thinkvg/core/random.h"

namespace thinkvg::serve {
namespace {

constexpr std::size_t kMaxConstraints = 32;  // that are kept

// What the model was made for; a model that does not say takes what the cache holds.
std::int64_t context_length_of(const models::VisionLanguageModel& model) {
  const Json& config = model.config();
  const Json* text = config.contains("text_config") ? &config["text_config"] : &config;
  for (const Json* from : {text, &config})
    if (from->contains("max_position_embeddings") && (*from)["max_position_embeddings"].is_number_integer())
      return (*from)["max_position_embeddings"].get<std::int64_t>();
  return 32768;
}

ChatFinish finish_of(generation::FinishReason reason) {
  switch (reason) {
    case generation::FinishReason::stop:
      return ChatFinish::stop;
    case generation::FinishReason::length:
      return ChatFinish::length;
    case generation::FinishReason::cancelled:
      return ChatFinish::cancelled;
  }
  return ChatFinish::cancelled;
}

// Matches one of the texts.
std::string choice_pattern(const std::vector<std::string>& choices) {
  std::string pattern;
  for (const std::string& choice : choices) {
    if (!pattern.empty()) pattern += '|';
    for (const char c : choice) {
      if (std::string_view("\\^$.|?*+()[]{}-/").find(c) != std::string_view::npos) pattern += '\\';
      pattern += c;
    }
  }
  return pattern;
}

}  // namespace

EngineBackend::EngineBackend(const models::ModelBundle& bundle, const generation::EngineOptions& engine,
                             const generation::PromptBuilder::Options& prompts)
    : builder_(bundle, prompts), context_length_(context_length_of(*bundle.model)), engine_(bundle, engine) {}

EngineBackend::~EngineBackend() = default;

std::shared_ptr<const text::TokenConstraint> EngineBackend::constraint_for(const OutputFormat& format,
                                                                           const std::vector<SeenPicture>& seen) {
  text::ResponseGrammar response;
  std::string text = format.text;
  if (format.kind == OutputFormat::Kind::choice) text = choice_pattern(format.choices);
  if (format.kind == OutputFormat::Kind::grounded) {
    if (seen.empty()) throw invalid_request("the form 'grounded' needs a picture to point at", format.param);
    const grounding::ImageSize extent = grounding::ImageGeometry(seen.front().original).extent(seen.front().frame);
    response.frame_width = extent.width;
    response.frame_height = extent.height;
    text = fmt::format("{} {}", extent.width, extent.height);
  }
  const std::string key = fmt::format("{} {}", static_cast<int>(format.kind), text);
  // Requests that ask for a form at the same time wait for each other's; a known one is found at once.
  const std::lock_guard lock(grammar_mutex_);
  for (auto known = constraints_.begin(); known != constraints_.end(); ++known) {
    if (known->first != key) continue;
    std::rotate(constraints_.begin(), known, known + 1);
    return constraints_.front().second;
  }
  const models::VisionLanguageModel& model = *builder_.bundle().model;
  if (!compiler_)
    compiler_ = std::make_unique<text::GrammarCompiler>(tokenizer(), model.special_tokens().end, model.vocab_size());
  std::shared_ptr<const text::TokenConstraint> constraint;
  try {
    switch (format.kind) {
      case OutputFormat::Kind::json_object:
        constraint = compiler_->json_object();
        break;
      case OutputFormat::Kind::json_schema:
        constraint = compiler_->json_schema(parse_request_json(text));
        break;
      case OutputFormat::Kind::regex:
      case OutputFormat::Kind::choice:
        constraint = compiler_->regex(text);
        break;
      case OutputFormat::Kind::grounded:
        constraint = compiler_->response(response);
        break;
    }
  } catch (const std::invalid_argument& error) {
    throw invalid_request(fmt::format("{}: {}", format.param, error.what()), format.param, "invalid_grammar");
  }
  constraints_.emplace_front(key, constraint);
  if (constraints_.size() > kMaxConstraints) constraints_.pop_back();
  return constraint;
}

AcceptedChat EngineBackend::submit(const ChatRequest& request, std::uint64_t seed, ChatEvents events) {
  AcceptedChat accepted;
  std::vector<std::shared_ptr<const models::EncodedPicture>> pictures;
  for (const UploadedPicture& picture : request.pictures) {
    try {
      pictures.push_back(builder_.encode(picture.bytes, picture.name));
    } catch (const std::bad_alloc&) {
      throw;
    } catch (const std::exception& error) {
      throw invalid_request(error.what(), picture.name, "invalid_image");
    }
    accepted.pictures.push_back({pictures.back()->original, pictures.back()->frame});
  }
  generation::BuiltPrompt built;
  try {
    built = builder_.build(request.messages, std::move(pictures));
  } catch (const std::invalid_argument& error) {
    throw invalid_request(error.what(), "messages");
  }
  accepted.prompt_tokens = static_cast<std::int64_t>(built.prompt.ids.size());
  if (accepted.prompt_tokens + request.sampling.max_new_tokens > context_length_)
    throw invalid_request(
        fmt::format("this model's context holds {} tokens, but the prompt has {} and max_tokens asks for {}",
                    context_length_, accepted.prompt_tokens, request.sampling.max_new_tokens),
        "messages", "context_length_exceeded");

  generation::GenerationRequest asked = built.request(request.num_completions, {hash_key("serve"), seed});
  asked.stop = request.stop;
  asked.num_top_logprobs = request.top_logprobs;
  if (request.format) asked.constraint = constraint_for(*request.format, accepted.pictures);
  const auto shared = std::make_shared<ChatEvents>(std::move(events));
  generation::RequestEvents told;
  told.on_token = [shared](std::int64_t completion, const generation::DrawnToken& token) {
    shared->on_token(completion, {token.id, token.logprob, token.top, token.text});
  };
  told.on_finish = [shared](std::int64_t completion, const generation::Completion& result) {
    shared->on_finish(completion, finish_of(result.finish), result.text);
  };
  told.on_error = [shared](std::exception_ptr error) { shared->on_error(std::move(error)); };
  try {
    accepted.ticket = engine_.submit(std::move(asked), request.sampling, std::move(told));
  } catch (const std::invalid_argument& error) {
    throw invalid_request(error.what(), {}, "context_length_exceeded");
  }
  return accepted;
}

BackendLoad EngineBackend::load() const {
  const generation::EngineLoad load = engine_.load();
  return {load.waiting_requests, load.running_completions, load.pages_used, load.pages_total,
          load.prompt_tokens,    load.reused_tokens,       load.new_tokens};
}

}  // namespace thinkvg::serve
