#include "thinkvg/train/sft.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>

#include "thinkvg/core/error.h"
#include "thinkvg/core/interrupt.h"
#include "thinkvg/core/log.h"
#include "thinkvg/core/manifest.h"
#include "thinkvg/core/progress.h"
#include "thinkvg/core/random.h"
#include "thinkvg/data/loader.h"
#include "thinkvg/generation/question.h"
#include "thinkvg/nn/head_stats.h"
#include "thinkvg/nn/workers.h"
#include "thinkvg/train/distributed.h"
#include "thinkvg/train/example.h"
#include "thinkvg/train/profile.h"
#include "thinkvg/train/run_folder.h"

namespace thinkvg::train {
namespace {

using generation::Question;
using generation::QuestionBuilder;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

struct TrainingSequence {
  const Question* question;
  std::int64_t place;                // in the step's batch, over all processes
  std::vector<std::int64_t> answer;  // ids that carry loss

  std::int64_t length() const { return static_cast<std::int64_t>(question->prompt.ids.size() + answer.size()); }
};

// This process's sequences of one step.
struct Batch {
  std::vector<Question> questions;
  std::vector<TrainingSequence> sequences;  // by length: neighbours of like length share a pass
  std::int64_t num_targets = 0;
  std::int64_t num_tokens = 0;
  std::vector<Json> skipped;
};

// Of all processes together.
struct BatchTotals {
  std::int64_t num_sequences = 0;
  std::int64_t num_targets = 0;
  std::int64_t num_tokens = 0;
};

std::int64_t num_steps(const SftOptions& options, std::int64_t dataset_size) {
  if (options.run.steps > 0) return options.run.steps;
  const auto steps = static_cast<std::int64_t>(
      std::ceil(options.epochs * static_cast<double>(dataset_size) / static_cast<double>(options.batch_size)));
  if (steps < 1) throw_invalid("nothing to do: give run.steps or epochs");
  return steps;
}

void check(const SftOptions& options) {
  if (options.batch_size < 1) throw_invalid("batch_size must be at least 1, but is {}", options.batch_size);
  if (options.max_length < 0) throw_invalid("max_length must be 0 (no limit) or more, but is {}", options.max_length);
  if (options.overlong != "refuse" && options.overlong != "skip")
    throw_invalid("overlong must be refuse or skip, but is '{}'", options.overlong);
  if (!(options.neftune_noise_alpha >= 0))
    throw_invalid("neftune_noise_alpha must be 0 (none) or more, but is {}", options.neftune_noise_alpha);
  options.run.check();
}

// Uniform in +-alpha / sqrt(length * width) for each sequence of a pack (Jain et al. 2023), by a key of its own: it
// does not depend on what the sequence is packed with.
at::Tensor with_neftune_noise(const at::Tensor& embeddings, const std::vector<std::int64_t>& lengths, double alpha,
                              const std::vector<std::uint64_t>& keys) {
  std::vector<at::Tensor> noise;
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    at::Generator generator = at::detail::createCPUGenerator(keys[i]);
    const double scale =
        alpha / std::sqrt(static_cast<double>(std::max<std::int64_t>(1, lengths[i]) * embeddings.size(1)));
    noise.push_back(at::empty({lengths[i], embeddings.size(1)}, at::kFloat).uniform_(-1, 1, generator).mul_(scale));
  }
  return embeddings + at::cat(noise).to(embeddings.options());
}

class SftTrainer {
 public:
  SftTrainer(const SftOptions& options, dist::ProcessGroup& group)
      : options_(options),
        group_(group),
        dataset_(open_training_data(options.data, options.images)),
        steps_(num_steps(options, dataset_->size())),
        run_(options.out, options.resume, options.run, group.is_main()),
        checkpoint_(options.resume ? agreed_path(group, [&] { return run_.latest_checkpoint(); })
                                   : std::filesystem::path()),
        trained_(checkpoint_.empty() ? TrainedModel(options.model, options.tuning, options.seed)
                                     : TrainedModel(options.model, options.tuning, checkpoint_)),
        optimizer_(trained_.groups(options.optimizer), options.optimizer, group),
        builder_(trained_.bundle(),
                 {options.prompt,
                  options.images,
                  trained_.fixed_features(),
                  {options.run.picture_cache_mb << 20, at::get_num_threads(), options.run.pictures}}),
        profile_(options.run.profile_steps, run_.path() / "profile.json") {
    if (checkpoint_.empty()) {
      run_.write_config(settings_to_json(options));
      run_.write_manifest(make_manifest("sft", options.seed, {{"data", options.data.path}}));
    } else {
      const RunFolder::TrainerState state = RunFolder::load_checkpoint(checkpoint_, optimizer_);
      step_ = state.step;
      num_skipped_ = state.extra.value("num_skipped", std::int64_t{0});
      num_nonfinite_ = state.extra.value("num_nonfinite", std::int64_t{0});
      spdlog::info("resuming from {}", checkpoint_.string());
    }
    run_.open_logs(step_);
    require_equal_parameters(group_, trained_.parameters());
    loader_ = std::make_unique<data::BatchLoader>(
        dataset_, data::LoaderOptions{options.batch_size, static_cast<std::uint64_t>(options.seed), 2, step_},
        [this](const std::vector<data::Sample>& samples) { builder_.prefetch(own_share(samples)); });
  }

  void run() {
    spdlog::info("sft: {} questions, {} steps of {}, {} of {} parameters trained in {}{}, {} threads",
                 format_count(dataset_->size()), format_count(steps_), options_.batch_size,
                 format_count(trained_.num_trained()), format_count(trained_.num_parameters()), options_.tuning.dtype,
                 trained_.adapters() ? fmt::format(", {} adapters", trained_.adapters()->size()) : "",
                 at::get_num_threads());
    const auto progress = group_.is_main() ? std::make_unique<Progress>("sft", steps_, step_) : nullptr;
    const auto start = Clock::now();
    std::int64_t num_tokens = 0;
    while (step_ < steps_) {
      profile_.begin_step();
      const Json metrics = step();
      profile_.end_step();
      num_tokens += metrics.at("num_tokens").get<std::int64_t>();
      if (step_ % options_.run.log_every == 0 || step_ == steps_) run_.log(metrics);
      if (progress)
        progress->update(step_, fmt::format("loss {:.4f}, {} tokens/s", metrics.at("loss").get<double>(),
                                            format_count(static_cast<std::int64_t>(static_cast<double>(num_tokens) /
                                                                                   seconds_since(start)))));
      const bool stop = group_.any(interrupt_requested(), "wish to stop");
      if (stop || step_ == steps_ || (options_.run.save_every > 0 && step_ % options_.run.save_every == 0)) save();
      if (stop && step_ < steps_) {
        run_.finish();
        if (progress) progress->finish();
        spdlog::warn("sft: asked to stop; step {} of {} is saved, go on with --resume", format_count(step_),
                     format_count(steps_));
        return;
      }
    }
    run_.finish();
    if (progress) progress->finish();
    if (num_skipped_ > 0)
      spdlog::warn("sft: {} questions were longer than max_length {} and were skipped; see {}/samples/skipped.jsonl",
                   format_count(num_skipped_), options_.max_length, options_.out);
    spdlog::info("sft: {} steps in {}, written to {}", format_count(steps_), format_duration(seconds_since(start)),
                 options_.out);
  }

 private:
  void save() {
    group_.set_phase("checkpoint", step_);
    run_.save_checkpoint(trained_.content(), optimizer_,
                         {step_, {{"num_skipped", num_skipped_}, {"num_nonfinite", num_nonfinite_}}}, group_);
  }

  std::vector<data::Sample> own_share(const std::vector<data::Sample>& samples) const {
    std::vector<data::Sample> own;
    for (const std::int64_t place : group_.share_of(std::ssize(samples)))
      own.push_back(samples[static_cast<std::size_t>(place)]);
    return own;
  }

  Batch next_batch() {
    Batch batch;
    batch.questions = builder_.build(own_share(loader_->next().samples));
    for (std::size_t i = 0; i < batch.questions.size(); ++i) {
      const Question& question = batch.questions[i];
      const std::string answer = target_text(question.sample, question.geometry(), question.frame, options_.think);
      TrainingSequence sequence{&question, static_cast<std::int64_t>(i) * group_.size() + group_.rank(),
                                text::chat_answer(*trained_.bundle().tokenizer, *trained_.bundle().chat, answer)};
      if (options_.max_length > 0 && sequence.length() > options_.max_length) {
        batch.skipped.push_back(skipped_line(sequence));
        continue;
      }
      batch.num_targets += static_cast<std::int64_t>(sequence.answer.size());
      batch.num_tokens += sequence.length();
      batch.sequences.push_back(std::move(sequence));
    }
    std::stable_sort(batch.sequences.begin(), batch.sequences.end(),
                     [](const TrainingSequence& a, const TrainingSequence& b) { return a.length() < b.length(); });
    return batch;
  }

  Json skipped_line(const TrainingSequence& sequence) const {
    const std::string& id = sequence.question->sample.id;
    if (options_.overlong == "refuse")
      throw_failure(
          "question {} has {} tokens, more than max_length {}; raise max_length, lower the picture's size, or leave "
          "such questions out with overlong=skip",
          id, sequence.length(), options_.max_length);
    return {{"step", step_ + 1}, {"id", id}, {"length", sequence.length()}};
  }

  BatchTotals totals_of(const Batch& batch) {
    const std::vector<double> sums =
        group_.sum({static_cast<double>(batch.sequences.size()), static_cast<double>(batch.num_targets),
                    static_cast<double>(batch.num_tokens), static_cast<double>(batch.skipped.size())},
                   "batch");
    if (sums[3] > 0) {
      for (const std::string& lines : group_.gather_texts(Json(batch.skipped).dump(), "skipped questions"))
        for (const Json& line : Json::parse(lines)) run_.log_sample(line, "skipped.jsonl");
      num_skipped_ += static_cast<std::int64_t>(sums[3]);
    }
    return {static_cast<std::int64_t>(sums[0]), static_cast<std::int64_t>(sums[1]), static_cast<std::int64_t>(sums[2])};
  }

  // Sum of the token losses of some sequences, with gradient.
  at::Tensor loss_sum(const std::vector<TrainingSequence>& sequences) {
    models::VisionLanguageModel& model = trained_.model();
    std::vector<const Question*> questions;
    for (const TrainingSequence& sequence : sequences) questions.push_back(sequence.question);
    const std::vector<at::Tensor> features = builder_.features(questions);

    models::PackBuilder packer;
    std::vector<std::int64_t> rows, targets;
    std::vector<std::uint64_t> noise_keys;
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
      noise_keys.push_back(
          RandomStream({hash_key("neftune"), static_cast<std::uint64_t>(options_.seed),
                        static_cast<std::uint64_t>(step_), static_cast<std::uint64_t>(sequences[i].place)})
              .next_u64());
      const std::int64_t first = packer.add({ids, positions, question.prompt.image_rows, {features[i]}, -1});
      for (std::size_t t = 0; t < answer.size(); ++t) {
        rows.push_back(first + prompt_length - 1 + static_cast<std::int64_t>(t));
        targets.push_back(answer[t]);
      }
    }
    const at::Device device = model.output_weight().device();
    const models::Pack pack = packer.build(device);
    nn::PackedAttention attention(pack.layout);
    at::Tensor embeddings = model.embed(pack.ids, pack.image_rows, pack.image_features);
    if (options_.neftune_noise_alpha > 0)
      embeddings = with_neftune_noise(embeddings, pack.layout.lengths, options_.neftune_noise_alpha, noise_keys);
    const at::Tensor hidden =
        model.decode(embeddings, pack.positions, attention).index_select(0, at::tensor(rows, at::kLong).to(device));
    return nn::head_token_stats(hidden, model.output_weight(), at::tensor(targets, at::kLong).to(device), {})
        .logprob.sum()
        .neg();
  }

  Json step() {
    const auto step_start = Clock::now();
    const dist::CommunicationStats before = group_.total_stats();
    group_.set_phase("data", step_ + 1);
    const Batch batch = next_batch();
    const double data_seconds = seconds_since(step_start);
    const BatchTotals totals = totals_of(batch);
    group_.set_phase("gradient", step_ + 1);

    const auto gradient_start = Clock::now();
    std::vector<std::int64_t> sizes;
    for (const TrainingSequence& sequence : batch.sequences) sizes.push_back(sequence.length());
    // Enough passes that every worker has one.
    const std::int64_t limit = std::min(options_.run.micro_batch_tokens, batch.num_tokens / nn::num_workers() + 1);
    const auto splits = split_by_size(sizes, limit);
    std::vector<double> losses(splits.size());
    const std::vector<at::Tensor> gradients =
        optimizer_.accumulate(static_cast<std::int64_t>(splits.size()), [&](std::int64_t i) {
          const auto& [begin, end] = splits[static_cast<std::size_t>(i)];
          const std::vector<TrainingSequence> some(batch.sequences.begin() + static_cast<std::ptrdiff_t>(begin),
                                                   batch.sequences.begin() + static_cast<std::ptrdiff_t>(end));
          const std::uint64_t key = RandomStream({hash_key("sft"), static_cast<std::uint64_t>(options_.seed),
                                                  static_cast<std::uint64_t>(step_),
                                                  static_cast<std::uint64_t>(i * group_.size() + group_.rank())})
                                        .next_u64();
          const nn::DropoutStream dropout(key);
          const at::Tensor part = loss_sum(some) / static_cast<double>(totals.num_targets);
          losses[static_cast<std::size_t>(i)] = part.item<double>();
          return part;
        });
    const double gradient_seconds = seconds_since(gradient_start);

    const auto optimizer_start = Clock::now();
    group_.set_phase("optimizer", step_ + 1);
    const double loss = group_.sum({std::accumulate(losses.begin(), losses.end(), 0.0)}, "loss").front();
    const double lr = learning_rate(options_.optimizer, step_, steps_);
    double grad_norm = 0;
    if (totals.num_targets > 0) {
      grad_norm = std::isfinite(loss) ? optimizer_.step(gradients, lr) : std::numeric_limits<double>::quiet_NaN();
      if (!std::isfinite(grad_norm)) {
        spdlog::warn("step {}: the loss or its gradient is not finite; the step was skipped", step_ + 1);
        if (++num_nonfinite_ >= options_.run.max_nonfinite_steps)
          throw_failure("{} steps had a loss or gradient that was not finite; lower optimizer.lr", num_nonfinite_);
      }
    }
    ++step_;
    const double seconds = seconds_since(step_start);
    Json metrics = {
        {"step", step_},
        {"loss", loss},
        {"lr", lr},
        {"grad_norm", grad_norm},
        {"epoch", static_cast<double>(step_ * options_.batch_size) / static_cast<double>(dataset_->size())},
        {"num_tokens", totals.num_tokens},
        {"num_target_tokens", totals.num_targets},
        {"num_skipped", num_skipped_},
        {"num_nonfinite_steps", num_nonfinite_},
        {"packing_fill", splits.empty() ? 1.0
                                        : static_cast<double>(batch.num_tokens) /
                                              static_cast<double>(static_cast<std::int64_t>(splits.size()) * limit)},
        {"tokens_per_second", static_cast<double>(totals.num_tokens) / seconds},
        {"samples_per_second", static_cast<double>(totals.num_sequences) / seconds},
        {"step_time", seconds},
        {"step_time/data", data_seconds},
        {"step_time/gradient", gradient_seconds},
        {"step_time/optimizer", seconds_since(optimizer_start)},
        {"peak_memory", peak_memory_bytes()}};
    metrics.update(communication_metrics(group_, before));
    return metrics;
  }

  const SftOptions options_;
  dist::ProcessGroup& group_;
  std::shared_ptr<const data::Dataset> dataset_;
  std::int64_t steps_;
  RunFolder run_;
  std::filesystem::path checkpoint_;
  TrainedModel trained_;
  DistributedAdamW optimizer_;
  QuestionBuilder builder_;
  std::unique_ptr<data::BatchLoader> loader_;  // uses the builder
  StepProfile profile_;
  std::int64_t step_ = 0;
  std::int64_t num_skipped_ = 0;
  std::int64_t num_nonfinite_ = 0;
};

}  // namespace

void run_sft(const SftOptions& options, dist::ProcessGroup& group) {
  try {
    check(options);
    if (options.run.num_threads > 0) at::set_num_threads(static_cast<int>(options.run.num_threads));
    SftTrainer(options, group).run();
  } catch (const std::exception& error) {
    group.fail(error);
    throw;
  }
}

void run_sft(const SftOptions& options) {
  dist::ProcessGroup alone;
  run_sft(options, alone);
}

}  // namespace thinkvg::train
