#include "thinkvg/train/sft.h"

#include <ATen/Parallel.h>

#include <chrono>
#include <cmath>
#include <numeric>

#include "thinkvg/core/error.h"
#include "thinkvg/core/log.h"
#include "thinkvg/core/manifest.h"
#include "thinkvg/core/progress.h"
#include "thinkvg/data/loader.h"
#include "thinkvg/nn/workers.h"
#include "thinkvg/train/example.h"
#include "thinkvg/train/run_folder.h"

namespace thinkvg::train {
namespace {

using generation::Question;
using generation::QuestionBuilder;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

struct TrainingSequence {
  const Question* question;
  std::vector<std::int64_t> answer;  // ids that carry loss

  std::int64_t length() const { return static_cast<std::int64_t>(question->prompt.ids.size() + answer.size()); }
};

// Sum of the token losses of some sequences, with gradient.
at::Tensor loss_sum(models::VisionLanguageModel& model, QuestionBuilder& builder,
                    const std::vector<TrainingSequence>& sequences) {
  std::vector<const Question*> questions;
  for (const TrainingSequence& sequence : sequences) questions.push_back(sequence.question);
  const std::vector<at::Tensor> features = builder.features(questions);

  models::PackBuilder packer;
  std::vector<std::int64_t> rows, targets;
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    const Question& question = *sequences[i].question;
    const std::vector<std::int64_t>& answer = sequences[i].answer;
    // The last answer token is only a target: nothing follows it.
    std::vector<std::int64_t> ids = question.prompt.ids;
    ids.insert(ids.end(), answer.begin(), answer.end() - 1);
    const auto prompt_length = static_cast<std::int64_t>(question.prompt.ids.size());
    const at::Tensor positions =
        at::cat({question.positions.positions,
                 models::text_positions(question.positions.next, static_cast<std::int64_t>(answer.size()) - 1)},
                1);
    const std::int64_t first = packer.add({ids, positions, question.prompt.image_rows, {features[i]}, -1});
    for (std::size_t t = 0; t < answer.size(); ++t) {
      rows.push_back(first + prompt_length - 1 + static_cast<std::int64_t>(t));
      targets.push_back(answer[t]);
    }
  }
  const at::Device device = model.parameters().front().device();
  const models::Pack pack = packer.build(device);
  nn::PackedAttention attention(pack.layout);
  const at::Tensor hidden =
      models::run_pack(model, pack, attention).index_select(0, at::tensor(rows, at::kLong).to(device));
  return target_log_probs(model, hidden, at::tensor(targets, at::kLong).to(device), {}).log_probs.sum().neg();
}

}  // namespace

void run_sft(const SftOptions& options) {
  if (options.batch_size < 1) throw_invalid("batch_size must be at least 1, but is {}", options.batch_size);
  if (options.run.num_threads > 0) at::set_num_threads(static_cast<int>(options.run.num_threads));
  const auto dataset = open_training_data(options.data, options.images);
  std::int64_t steps = options.run.steps;
  if (steps == 0)
    steps = static_cast<std::int64_t>(
        std::ceil(options.epochs * static_cast<double>(dataset->size()) / static_cast<double>(options.batch_size)));
  if (steps < 1) throw_invalid("nothing to do: give run.steps or epochs");

  RunFolder run(options.out, options.resume);
  const std::filesystem::path checkpoint = options.resume ? run.latest_checkpoint() : std::filesystem::path();
  const models::ModelBundle bundle =
      models::load_bundle(checkpoint.empty() ? models::resolve_model_folder(options.model) : checkpoint);
  models::VisionLanguageModel& model = *bundle.model;
  const models::NamedTensors parameters = trainable_parameters(model, options.freeze_vision);
  AdamW optimizer(parameters, options.optimizer);
  std::int64_t step = 0;
  if (!checkpoint.empty()) {
    step = run.load_checkpoint(checkpoint, optimizer).step;
    spdlog::info("resuming from {}", checkpoint.string());
  } else {
    run.write_config(settings_to_json(options));
    run.write_manifest(make_manifest("sft", options.seed, {{"data", options.data.path}}));
  }
  QuestionBuilder builder(bundle, {options.prompt,
                                   options.images,
                                   options.freeze_vision,
                                   {options.run.picture_cache_mb << 20, at::get_num_threads(), options.run.pictures}});
  std::int64_t num_trained = 0, num_total = 0;
  for (const auto& [name, parameter] : parameters) num_trained += parameter.numel();
  for (const at::Tensor& parameter : model.parameters()) num_total += parameter.numel();
  spdlog::info("sft: {} questions, {} steps of {}, {} of {} parameters trained, {} threads",
               format_count(dataset->size()), format_count(steps), options.batch_size, format_count(num_trained),
               format_count(num_total), at::get_num_threads());

  data::BatchLoader loader(dataset, {options.batch_size, static_cast<std::uint64_t>(options.seed), 2, step},
                           [&](const std::vector<data::Sample>& samples) { builder.prefetch(samples); });
  Progress progress("sft", steps, step);
  std::int64_t num_tokens_seen = 0;
  int num_skipped = 0;
  const auto start = Clock::now();
  while (step < steps) {
    const auto step_start = Clock::now();
    const std::vector<Question> questions = builder.build(loader.next().samples);
    std::vector<TrainingSequence> sequences;
    std::int64_t num_targets = 0, num_tokens = 0;
    for (const Question& question : questions) {
      const std::string answer = target_text(question.sample, question.geometry(), question.frame, options.think);
      sequences.push_back({&question, text::chat_answer(*bundle.tokenizer, answer)});
      num_targets += static_cast<std::int64_t>(sequences.back().answer.size());
      num_tokens += sequences.back().length();
    }
    // Neighbours of like length share a pass: less padding inside attention.
    std::stable_sort(sequences.begin(), sequences.end(),
                     [](const TrainingSequence& a, const TrainingSequence& b) { return a.length() < b.length(); });
    std::vector<std::int64_t> sizes;
    for (const TrainingSequence& sequence : sequences) sizes.push_back(sequence.length());
    const double data_seconds = seconds_since(step_start);

    // Enough passes that every worker has one.
    const std::int64_t limit = std::min(options.run.micro_batch_tokens, num_tokens / nn::num_workers() + 1);
    const auto splits = split_by_size(sizes, limit);
    std::vector<double> losses(splits.size());
    accumulate_gradients(parameters, static_cast<std::int64_t>(splits.size()), [&](std::int64_t i) {
      const auto& [begin, end] = splits[static_cast<std::size_t>(i)];
      const std::vector<TrainingSequence> some(sequences.begin() + static_cast<std::ptrdiff_t>(begin),
                                               sequences.begin() + static_cast<std::ptrdiff_t>(end));
      const at::Tensor part = loss_sum(model, builder, some) / static_cast<double>(num_targets);
      losses[static_cast<std::size_t>(i)] = part.item<double>();
      return part;
    });
    const double loss = std::accumulate(losses.begin(), losses.end(), 0.0);
    const double lr = learning_rate(options.optimizer, step, steps);
    const double grad_norm = optimizer.step(lr);
    if (!std::isfinite(grad_norm) || !std::isfinite(loss)) {
      spdlog::warn("step {}: the loss or its gradient is not finite; the step was skipped", step + 1);
      if (++num_skipped >= 10) throw_failure("10 steps had a loss that was not finite; lower optimizer.lr");
    }
    ++step;
    num_tokens_seen += num_tokens;
    const double step_seconds = seconds_since(step_start);
    const double tokens_per_second = static_cast<double>(num_tokens_seen) / seconds_since(start);
    if (step % options.run.log_every == 0 || step == steps)
      run.log({{"step", step},
               {"loss", loss},
               {"lr", lr},
               {"grad_norm", grad_norm},
               {"num_tokens", num_tokens},
               {"tokens_per_second", static_cast<double>(num_tokens) / step_seconds},
               {"samples_per_second", static_cast<double>(options.batch_size) / step_seconds},
               {"step_time", step_seconds},
               {"step_time/data", data_seconds},
               {"peak_memory", peak_memory_bytes()}});
    progress.update(step, fmt::format("loss {:.4f}, {} tokens/s", loss,
                                      format_count(static_cast<std::int64_t>(tokens_per_second))));
    if (step == steps || (options.run.save_every > 0 && step % options.run.save_every == 0))
      run.save_checkpoint(bundle, optimizer, {step, Json::object()}, options.run.keep_last);
  }
  progress.finish();
  spdlog::info("sft: {} steps in {}, written to {}", format_count(steps), format_duration(seconds_since(start)),
               options.out);
}

}  // namespace thinkvg::train
