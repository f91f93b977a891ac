#include "thinkvg/generation/prompt_builder.h"

#include <torch/csrc/autograd/grad_mode.h>

#include "thinkvg/core/error.h"
#include "thinkvg/core/files.h"
#include "thinkvg/nn/workers.h"

namespace thinkvg::generation {

grounding::BoxFrame BuiltPrompt::frame() const {
  return pictures.empty() ? grounding::BoxFrame::original() : pictures.front()->frame;
}

grounding::ImageSize BuiltPrompt::original() const {
  return pictures.empty() ? grounding::ImageSize{} : pictures.front()->original;
}

GenerationRequest BuiltPrompt::request(std::int64_t num_completions, std::vector<std::uint64_t> stream) const {
  GenerationRequest request;
  request.prompt = prompt;
  for (const auto& picture : pictures) {
    request.grids.push_back(picture->grid);
    request.image_features.push_back(picture->features);
  }
  request.num_completions = num_completions;
  request.stream = std::move(stream);
  return request;
}

PromptBuilder::PromptBuilder(models::ModelBundle bundle, const Options& options)
    : bundle_(std::move(bundle)), options_(options) {
  options.read.check();
  if (options.feature_cache_mb < 0)
    throw_invalid("feature_cache_mb must be at least 0, but is {}", options.feature_cache_mb);
}

std::shared_ptr<const models::EncodedPicture> PromptBuilder::find(const std::string& key) {
  const std::lock_guard lock(mutex_);
  const auto found = kept_.find(key);
  if (found == kept_.end()) return nullptr;
  order_.splice(order_.begin(), order_, found->second.place);
  return found->second.picture;
}

void PromptBuilder::keep(const std::string& key, const std::shared_ptr<const models::EncodedPicture>& picture) {
  const std::lock_guard lock(mutex_);
  if (kept_.contains(key)) return;
  bytes_ += static_cast<std::int64_t>(picture->features.nbytes());
  order_.push_front(key);
  kept_[key] = {picture, order_.begin()};
  while (bytes_ > options_.feature_cache_mb << 20 && !order_.empty()) {
    const auto oldest = kept_.find(order_.back());
    bytes_ -= static_cast<std::int64_t>(oldest->second.picture->features.nbytes());
    kept_.erase(oldest);
    order_.pop_back();
  }
}

std::shared_ptr<const models::EncodedPicture> PromptBuilder::encode(std::string_view file, const std::string& name) {
  const std::string key = sha256_text(file);
  if (auto picture = find(key)) return picture;
  image::PictureStoreOptions store;
  store.read = options_.read;
  const image::PreparedPicture prepared = image::prepare_picture(file, name, bundle_.processor->rule(), store);
  models::ProcessedPicture processed = bundle_.processor->process_prepared(prepared);

  const std::lock_guard lock(tower_);
  if (auto picture = find(key)) return picture;
  const at::NoGradGuard no_grad;
  const at::Device device = bundle_.model->parameters().front().device();
  processed.patches.values = processed.patches.values.to(device);
  at::Tensor features;
  // As ImageEncoder does it: features then equal those of evaluation and training to the bit.
  const auto pass = [&](std::int64_t) { features = bundle_.model->encode_images(processed.patches); };
  if (device.is_cpu())
    nn::run_each_alone(1, pass);
  else
    pass(0);
  const auto picture = std::make_shared<const models::EncodedPicture>(
      models::EncodedPicture{features, processed.patches.grids.front(), processed.frame, prepared.original});
  keep(key, picture);
  return picture;
}

BuiltPrompt PromptBuilder::build(const std::vector<text::Message>& messages,
                                 std::vector<std::shared_ptr<const models::EncodedPicture>> pictures) const {
  text::ChatImages images;
  for (const auto& picture : pictures) images.num_tokens.push_back(bundle_.model->num_image_tokens(picture->grid));
  images.token_id = bundle_.model->special_tokens().image;
  BuiltPrompt built;
  built.prompt = text::build_prompt(*bundle_.tokenizer, *bundle_.chat, messages, images, true);
  built.pictures = std::move(pictures);
  return built;
}

std::vector<text::Message> question_messages(const text::PromptOptions& options, const std::string& question,
                                             std::size_t num_pictures) {
  std::vector<text::Message> messages;
  if (!options.system.empty())
    messages.push_back({text::Role::kSystem, {{text::MessagePart::Kind::kText, options.system}}});
  text::Message& user = messages.emplace_back();
  for (std::size_t i = 0; i < num_pictures; ++i) user.parts.push_back(text::MessagePart::image());
  user.parts.push_back(
      {text::MessagePart::Kind::kText, options.instruction.empty() ? question : question + "\n" + options.instruction});
  return messages;
}

}  // namespace thinkvg::generation
