#include "thinkvg/train/answer_sequences.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "thinkvg/core/error.h"
#include "thinkvg/data/packing.h"
#include "thinkvg/nn/head_stats.h"
#include "thinkvg/train/example.h"

namespace thinkvg::train {
namespace {

// `width`: of the token embeddings, the first columns; a family may put more behind them.
at::Tensor with_noise(const at::Tensor& embeddings, std::int64_t width, const std::vector<std::int64_t>& lengths,
                      const EmbeddingNoise& noise) {
  std::vector<at::Tensor> values;
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    at::Generator generator = at::detail::createCPUGenerator(noise.keys[i]);
    const double scale = noise.alpha / std::sqrt(static_cast<double>(std::max<std::int64_t>(1, lengths[i]) * width));
    values.push_back(at::empty({lengths[i], width}, at::kFloat).uniform_(-1, 1, generator).mul_(scale));
  }
  const at::Tensor all = at::cat(values).to(embeddings.options());
  const std::int64_t rest = embeddings.size(1) - width;
  return embeddings + (rest > 0 ? at::constant_pad_nd(all, {0, rest}) : all);
}

text::Message text_message(text::Role role, std::string content) {
  return {role, {{text::MessagePart::Kind::kText, std::move(content)}}};
}

// A conversation of several turns, tokenized as a whole.
text::Prompt conversation(const models::ModelBundle& bundle, const text::PromptOptions& options,
                          const generation::Question& question, bool think) {
  const auto asked = [&](const data::Sample& sample) {
    return sample.prompt() + (options.instruction.empty() ? "" : "\n" + options.instruction);
  };
  const auto answered = [&](const data::Sample& sample) {
    return target_text(sample, question.geometry(), question.frame, think);
  };
  std::vector<text::Message> messages;
  if (!options.system.empty()) messages.push_back(text_message(text::Role::kSystem, options.system));
  text::Message& first = messages.emplace_back();
  for (std::size_t i = 0; i < question.grids.size(); ++i) first.parts.push_back(text::MessagePart::image());
  first.parts.push_back({text::MessagePart::Kind::kText, asked(question.sample)});
  messages.push_back(text_message(text::Role::kAssistant, answered(question.sample)));
  for (const data::Sample& turn : question.sample.more_turns) {
    messages.push_back(text_message(text::Role::kUser, asked(turn)));
    messages.push_back(text_message(text::Role::kAssistant, answered(turn)));
  }
  text::ChatImages images;
  for (const models::ImageGrid& grid : question.grids)
    images.num_tokens.push_back(bundle.model->num_image_tokens(grid));
  if (bundle.model->special_tokens().image >= 0) images.token_id = bundle.model->special_tokens().image;
  return text::build_prompt(*bundle.tokenizer, *bundle.chat, messages, images, false);
}

}  // namespace

TrainingSequence make_training_sequence(const models::ModelBundle& bundle, const text::PromptOptions& prompt,
                                        const generation::Question& question, bool think) {
  TrainingSequence sequence;
  sequence.question = &question;
  if (question.sample.more_turns.empty()) {
    const std::vector<std::int64_t> answer = text::chat_answer(
        *bundle.tokenizer, *bundle.chat, target_text(question.sample, question.geometry(), question.frame, think));
    sequence.ids = question.prompt.ids;
    sequence.image_rows = question.prompt.image_rows;
    for (const std::int64_t id : answer) {
      sequence.targets.push_back(sequence.length());
      sequence.ids.push_back(id);
    }
    sequence.positions = at::cat(
        {question.positions.positions, models::text_positions(question.positions.next, std::ssize(answer) - 1)}, 1);
    return sequence;
  }
  text::Prompt whole = conversation(bundle, prompt, question, think);
  for (std::size_t i = 0; i < whole.ids.size(); ++i)
    if (whole.loss_mask[i] != 0) sequence.targets.push_back(static_cast<std::int64_t>(i));
  whole.ids.resize(static_cast<std::size_t>(sequence.targets.back()) + 1);
  sequence.ids = std::move(whole.ids);
  sequence.image_rows = std::move(whole.image_rows);
  sequence.positions =
      bundle.model->token_positions({sequence.ids.begin(), sequence.ids.end() - 1}, question.grids).positions;
  return sequence;
}

at::Tensor answer_loss_sum(const models::ModelBundle& bundle, generation::QuestionBuilder& builder,
                           std::span<const TrainingSequence> sequences, const EmbeddingNoise& noise) {
  if (noise.alpha > 0 && noise.keys.size() != sequences.size())
    throw_invalid("answer_loss_sum: {} keys of noise for {} sequences", noise.keys.size(), sequences.size());
  models::VisionLanguageModel& model = *bundle.model;
  std::vector<const generation::Question*> questions;
  for (const TrainingSequence& sequence : sequences) questions.push_back(sequence.question);
  const std::vector<at::Tensor> features = builder.features(questions);

  models::PackBuilder packer;
  std::vector<std::int64_t> rows, targets;
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    const TrainingSequence& sequence = sequences[i];
    const std::int64_t first = packer.add(
        {{sequence.ids.begin(), sequence.ids.end() - 1}, sequence.positions, sequence.image_rows, {features[i]}, -1});
    for (const std::int64_t place : sequence.targets) {
      rows.push_back(first + place - 1);
      targets.push_back(sequence.ids[static_cast<std::size_t>(place)]);
    }
  }
  const at::Device device = model.output_weight().device();
  const models::Pack pack = packer.build(device);
  nn::PackedAttention attention(pack.layout);
  at::Tensor embeddings = model.embed(pack.ids, pack.image_rows, pack.image_features);
  if (noise.alpha > 0) embeddings = with_noise(embeddings, model.hidden_size(), pack.layout.lengths, noise);
  const at::Tensor hidden =
      model.decode(embeddings, pack.positions, attention).index_select(0, at::tensor(rows, at::kLong).to(device));
  return nn::head_token_stats(hidden, model.output_weight(), at::tensor(targets, at::kLong).to(device), {})
      .logprob.sum()
      .neg();
}

namespace {

// The longest first, each into the pass that is shortest so far; empty where one gets longer than the limit.
std::vector<std::vector<std::int64_t>> even_passes(const std::vector<std::int64_t>& lengths, std::int64_t limit,
                                                   std::size_t count) {
  std::vector<std::size_t> order(lengths.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return lengths[a] > lengths[b]; });
  std::vector<std::vector<std::int64_t>> passes(count);
  std::vector<std::int64_t> sizes(count, 0);
  for (const std::size_t place : order) {
    const auto shortest = static_cast<std::size_t>(std::min_element(sizes.begin(), sizes.end()) - sizes.begin());
    if (!passes[shortest].empty() && sizes[shortest] + lengths[place] > limit) return {};
    passes[shortest].push_back(static_cast<std::int64_t>(place));
    sizes[shortest] += lengths[place];
  }
  for (std::vector<std::int64_t>& pass : passes) std::sort(pass.begin(), pass.end());
  std::sort(passes.begin(), passes.end());
  return passes;
}

}  // namespace

std::vector<std::vector<std::int64_t>> pack_passes(const std::vector<std::int64_t>& lengths, const EvenSplit& split,
                                                   bool by_length) {
  std::vector<std::vector<std::int64_t>> passes;
  if (by_length) {
    passes = data::pack_by_length(lengths, split.limit).packs;
    const auto workers = static_cast<std::size_t>(split.workers);
    const std::size_t count = std::min(lengths.size(), (passes.size() + workers - 1) / workers * workers);
    std::vector<std::vector<std::int64_t>> even = even_passes(lengths, split.limit, count);
    return even.empty() ? passes : even;
  }
  for (const auto& [begin, end] : split_evenly(lengths, split)) {
    std::vector<std::int64_t>& pass = passes.emplace_back();
    for (std::size_t i = begin; i < end; ++i) pass.push_back(static_cast<std::int64_t>(i));
  }
  return passes;
}

}  // namespace thinkvg::train
