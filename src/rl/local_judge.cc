#include "thinkvg/rl/local_judge.h"

#include "thinkvg/core/random.h"
#include "thinkvg/text/chat.h"

namespace thinkvg::rl {
namespace {

generation::SamplingOptions sampling_of(const rewards::JudgeOptions& options) {
  generation::SamplingOptions sampling;
  sampling.max_new_tokens = options.max_tokens;
  sampling.temperature = options.temperature;
  sampling.check();
  return sampling;
}

}  // namespace

LocalJudge::LocalJudge(const rewards::JudgeOptions& options, const generation::EngineOptions& engine, at::Device device)
    : bundle_(models::load_bundle(models::resolve_model_folder(options.model), {}, device)),
      engine_(*bundle_.model, engine),
      sampling_(sampling_of(options)) {}

std::vector<rewards::JudgeReply> LocalJudge::ask(std::span<const rewards::JudgeRequest> requests) {
  if (requests.empty()) return {};
  std::vector<generation::GenerationRequest> prompts;
  for (const rewards::JudgeRequest& request : requests) {
    text::Prompt prompt = text::chat_prompt(*bundle_.tokenizer, *bundle_.chat, request.system, request.user, {});
    prompts.push_back({std::move(prompt),
                       {},
                       {},
                       1,
                       {hash_key("judge"), hash_key(request.system), hash_key(request.user),
                        static_cast<std::uint64_t>(request.attempt)}});
  }
  const auto completions = engine_.generate(prompts, sampling_);
  std::vector<rewards::JudgeReply> replies;
  for (std::size_t i = 0; i < completions.size(); ++i) {
    const generation::Completion& completion = completions[i].front();
    rewards::JudgeReply reply;
    reply.text = bundle_.tokenizer->decode(completion.ids);
    reply.prompt_tokens = static_cast<std::int64_t>(prompts[i].prompt.ids.size());
    reply.reply_tokens = static_cast<std::int64_t>(completion.ids.size());
    replies.push_back(std::move(reply));
  }
  return replies;
}

rewards::RewardResources reward_resources(const generation::EngineOptions& engine, at::Device device) {
  rewards::RewardResources resources;
  resources.local_judge = [engine, device,
                           judge = std::shared_ptr<rewards::Judge>()](const rewards::JudgeOptions& options) mutable {
    if (!judge) judge = std::make_shared<LocalJudge>(options, engine, device);
    return judge;
  };
  return resources;
}

}  // namespace thinkvg::rl
