#include "thinkvg/train/sft.h"

#include <ATen/ATen.h>
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
#include "thinkvg/data/wrappers.h"
#include "thinkvg/generation/question.h"
#include "thinkvg/nn/adapter.h"
#include "thinkvg/nn/workers.h"
#include "thinkvg/train/answer_sequences.h"
#include "thinkvg/train/distributed.h"
#include "thinkvg/train/example.h"
#include "thinkvg/train/out_of_memory.h"
#include "thinkvg/train/parameter_shards.h"
#include "thinkvg/train/profile.h"
#include "thinkvg/train/run_folder.h"

namespace thinkvg::train {
namespace {

using generation::Question;
using generation::QuestionBuilder;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// This process's sequences of one step.
struct Batch {
  std::vector<Question> questions;
  std::vector<TrainingSequence> sequences;
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

at::Device device_of(const SftOptions& options, const dist::ProcessGroup& group) {
  return nn::device_setting(options.tuning.device, group.local_rank());
}

class SftTrainer {
 public:
  SftTrainer(const SftOptions& options, dist::ProcessGroup& group, const Scorer& scorer)
      : options_(options),
        group_(group),
        dataset_(open_sft_data(options)),
        steps_(num_sft_steps(options, dataset_->size())),
        run_(options.out, options.resume, options.run, group.is_main()),
        checkpoint_(options.resume ? agreed_path(group, [&] { return run_.latest_checkpoint(); })
                                   : std::filesystem::path()),
        trained_(checkpoint_.empty()
                     ? TrainedModel(options.model, options.tuning, options.seed, device_of(options, group))
                     : TrainedModel(options.model, options.tuning, checkpoint_, device_of(options, group))),
        shards_(shard_parameters(trained_, group)),
        optimizer_(trained_.groups(options.optimizer), options.optimizer, group, shards_.get()),
        builder_(trained_.bundle(),
                 {options.prompt,
                  options.images,
                  trained_.fixed_features(),
                  {options.run.picture_cache_mb << 20, at::get_num_threads(), options.run.pictures}}),
        validation_(options.eval, {trained_.bundle(), run_.path(), options.images, options.prompt, options.think,
                                   options.max_length, trained_.fixed_features(), options.run, scorer, group}),
        profile_(options.run.profile_steps, run_.path() / "profile.json") {
    if (checkpoint_.empty()) {
      run_.write_config(settings_to_json(options));
      run_.write_manifest(make_manifest("sft", options.seed, {{"data", options.data.path}}));
    } else {
      const RunFolder::TrainerState state = RunFolder::load_checkpoint(checkpoint_, optimizer_);
      step_ = state.step;
      num_skipped_ = state.extra.value("num_skipped", std::int64_t{0});
      num_nonfinite_ = state.extra.value("num_nonfinite", std::int64_t{0});
      validation_.load_state(state.extra.value("best", Json()));
      spdlog::info("resuming from {}", checkpoint_.string());
    }
    run_.open_logs(step_);
    if (!shards_) require_equal_parameters(group_, trained_.parameters());
    by_layer_ = fetches_by_layer(shards_.get(), group_, trained_.device());
    loader_ = std::make_unique<data::BatchLoader>(
        dataset_, data::LoaderOptions{options.batch_size, static_cast<std::uint64_t>(options.seed), 2, step_},
        [this](const std::vector<data::Sample>& samples) { builder_.prefetch(own_share(samples)); });
  }

  void run() {
    spdlog::info("sft: {} questions, {} steps of {}, {} of {} parameters trained in {}{}, {}",
                 format_count(dataset_->size()), format_count(steps_), options_.batch_size,
                 format_count(trained_.num_trained()), format_count(trained_.num_parameters()), options_.tuning.dtype,
                 trained_.adapters() ? fmt::format(", {} adapters", trained_.adapters()->size()) : "",
                 device_text(trained_.device()));
    const auto progress = group_.is_main() ? std::make_unique<Progress>("sft", steps_, step_) : nullptr;
    const auto start = Clock::now();
    std::int64_t num_tokens = 0;
    std::string eval_summary;
    while (step_ < steps_) {
      profile_.begin_step();
      Json metrics = step();
      profile_.end_step();
      num_tokens += metrics.at("num_tokens").get<std::int64_t>();
      bool save_now = step_ == steps_ || (options_.run.save_every > 0 && step_ % options_.run.save_every == 0);
      const bool evaluates = validation_.due(step_, steps_);
      if (evaluates) {
        ParameterShards::Whole whole(shards_.get(), group_.is_main(), by_layer_);
        const Validation::Result evaluation = validation_.evaluate(step_, [&] { whole.end_passes(); });
        metrics.update(evaluation.metrics);
        eval_summary = ", " + evaluation.summary;
        save_now |= evaluation.is_best;
      }
      if (evaluates || step_ % options_.run.log_every == 0 || step_ == steps_) run_.log(metrics);
      if (progress)
        progress->update(
            step_,
            fmt::format("loss {:.4f}, {} tokens/s{}", metrics.at("loss").get<double>(),
                        format_count(static_cast<std::int64_t>(static_cast<double>(num_tokens) / seconds_since(start))),
                        eval_summary));
      const bool stop = group_.any(interrupt_requested(), "wish to stop");
      if (stop || save_now) save();
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
    const Json extra = {
        {"num_skipped", num_skipped_}, {"num_nonfinite", num_nonfinite_}, {"best", validation_.state()}};
    models::FolderContent content = trained_.content();
    if (shards_) content = shards_->fetched(std::move(content));
    run_.save_checkpoint(content, optimizer_, {step_, extra, validation_.best_step()}, group_);
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
    for (const Question& question : batch.questions) {
      TrainingSequence sequence = make_training_sequence(trained_.bundle(), options_.prompt, question, options_.think);
      if (options_.max_length > 0 && sequence.length() > options_.max_length) {
        batch.skipped.push_back(skipped_line(sequence));
        continue;
      }
      batch.num_targets += std::ssize(sequence.targets);
      batch.num_tokens += sequence.length();
      batch.sequences.push_back(std::move(sequence));
    }
    // Sequences of one length side by side share their attention calls.
    if (by_length())
      std::stable_sort(batch.sequences.begin(), batch.sequences.end(),
                       [](const TrainingSequence& a, const TrainingSequence& b) { return a.length() < b.length(); });
    return batch;
  }

  bool by_length() const { return options_.packing == "by_length"; }

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
    // With split weights passes run one after the other.
    const std::int64_t num_workers = shards_ ? 1 : pass_workers(trained_.device());
    const auto passes = pack_passes(sizes, {options_.run.micro_batch_tokens, num_workers}, by_length());
    std::int64_t longest = 0;
    for (const std::vector<std::int64_t>& pass : passes) {
      std::int64_t length = 0;
      for (const std::int64_t place : pass) length += sizes[static_cast<std::size_t>(place)];
      longest = std::max(longest, length);
    }
    std::vector<double> losses(passes.size());
    const std::vector<at::Tensor> gradients =
        optimizer_.accumulate(static_cast<std::int64_t>(passes.size()), [&](std::int64_t i) {
          std::vector<TrainingSequence> some;
          EmbeddingNoise noise{options_.neftune_noise_alpha, {}};
          for (const std::int64_t place : passes[static_cast<std::size_t>(i)]) {
            some.push_back(batch.sequences[static_cast<std::size_t>(place)]);
            noise.keys.push_back(
                RandomStream({hash_key("neftune"), static_cast<std::uint64_t>(options_.seed),
                              static_cast<std::uint64_t>(step_), hash_key(some.back().question->sample.id)})
                    .next_u64());
          }
          const std::uint64_t key = RandomStream({hash_key("sft"), static_cast<std::uint64_t>(options_.seed),
                                                  static_cast<std::uint64_t>(step_),
                                                  static_cast<std::uint64_t>(i * group_.size() + group_.rank())})
                                        .next_u64();
          const nn::DropoutStream dropout(key);
          const at::Tensor part =
              answer_loss_sum(trained_.bundle(), builder_, some, noise) / static_cast<double>(totals.num_targets);
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
        {"packing_fill", passes.empty() ? 1.0
                                        : static_cast<double>(batch.num_tokens) /
                                              static_cast<double>(static_cast<std::int64_t>(passes.size()) * longest)},
        {"num_passes", passes.size()},
        {"tokens_per_second", static_cast<double>(totals.num_tokens) / seconds},
        {"samples_per_second", static_cast<double>(totals.num_sequences) / seconds},
        {"step_time", seconds},
        {"step_time/data", data_seconds},
        {"step_time/gradient", gradient_seconds},
        {"step_time/optimizer", seconds_since(optimizer_start)},
        {"peak_memory", peak_memory_bytes()}};
    metrics.update(communication_metrics(group_, before));
    metrics.update(device_metrics(trained_.device()));
    return metrics;
  }

  const SftOptions options_;
  dist::ProcessGroup& group_;
  std::shared_ptr<const data::Dataset> dataset_;
  std::int64_t steps_;
  RunFolder run_;
  std::filesystem::path checkpoint_;
  TrainedModel trained_;
  std::unique_ptr<ParameterShards> shards_;  // null: every process has all weights
  bool by_layer_ = false;                    // fetched for evaluations
  DistributedAdamW optimizer_;
  QuestionBuilder builder_;
  std::unique_ptr<data::BatchLoader> loader_;  // uses the builder
  Validation validation_;
  StepProfile profile_;
  std::int64_t step_ = 0;
  std::int64_t num_skipped_ = 0;
  std::int64_t num_nonfinite_ = 0;
};

}  // namespace

std::shared_ptr<const data::Dataset> open_sft_data(const SftOptions& options) {
  const auto dataset = open_training_data(options.data, options.images);
  return options.turns == "joined" ? data::join_turns(dataset) : dataset;
}

std::int64_t num_sft_steps(const SftOptions& options, std::int64_t num_questions) {
  if (options.run.steps > 0) return options.run.steps;
  const auto steps = static_cast<std::int64_t>(
      std::ceil(options.epochs * static_cast<double>(num_questions) / static_cast<double>(options.batch_size)));
  if (steps < 1) throw_invalid("nothing to do: give run.steps or epochs");
  return steps;
}

void run_sft(const SftOptions& options, dist::ProcessGroup& group, const Scorer& scorer) {
  try {
    options.check();
    if (options.run.num_threads > 0) at::set_num_threads(static_cast<int>(options.run.num_threads));
    explaining_memory(memory_levers(options), [&] { SftTrainer(options, group, scorer).run(); });
  } catch (const std::exception& error) {
    group.fail(error);
    throw;
  }
}

void run_sft(const SftOptions& options, const Scorer& scorer) {
  dist::ProcessGroup alone;
  run_sft(options, alone, scorer);
}

}  // namespace thinkvg::train
