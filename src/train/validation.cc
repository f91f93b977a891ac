#include "thinkvg/train/validation.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <chrono>
#include <numeric>

#include "thinkvg/core/error.h"
#include "thinkvg/core/log.h"
#include "thinkvg/core/random.h"
#include "thinkvg/nn/workers.h"
#include "thinkvg/train/answer_sequences.h"
#include "thinkvg/train/example.h"

namespace thinkvg::train {
namespace {

constexpr std::int64_t kQuestionsAtATime = 64;

// Rank 0's values of validation_metrics(), on every process.
std::map<std::string, double> shared(const std::map<std::string, double>& values, dist::ProcessGroup& group) {
  const std::vector<std::string>& names = validation_metrics();
  std::vector<double> numbers(2 * names.size(), 0.0);  // others add nothing
  for (std::size_t i = 0; i < names.size(); ++i) {
    const auto found = values.find(names[i]);
    if (found == values.end()) continue;
    numbers[2 * i] = 1;
    numbers[2 * i + 1] = found->second;
  }
  numbers = group.sum(std::move(numbers), "evaluation");
  std::map<std::string, double> result;
  for (std::size_t i = 0; i < names.size(); ++i)
    if (numbers[2 * i] > 0) result[names[i]] = numbers[2 * i + 1];
  return result;
}

// `count` samples chosen by seed, in the order of the set; all of them where it has no more.
std::shared_ptr<const data::Dataset> chosen(const std::shared_ptr<const data::Dataset>& dataset, std::int64_t count,
                                            std::int64_t seed) {
  if (count == 0) return nullptr;
  if (count >= dataset->size()) return dataset;
  std::vector<std::int64_t> order(static_cast<std::size_t>(dataset->size()));
  std::iota(order.begin(), order.end(), 0);
  RandomStream random({hash_key("validation"), static_cast<std::uint64_t>(seed)});
  random.shuffle(order);
  order.resize(static_cast<std::size_t>(count));
  std::sort(order.begin(), order.end());
  return data::select(dataset, std::move(order));
}

}  // namespace

Validation::Validation(const ValidationOptions& options, ValidationContext context)
    : options_(options), context_(std::move(context)) {
  if (options.every == 0) return;
  options.check();
  if (options.score_questions > 0 && !context_.scorer)
    throw_invalid("eval.score_questions is {}, but this program cannot score answers; set it to 0",
                  options.score_questions);
  if (!context_.group.is_main()) return;
  images_ = options.images.empty() ? context_.images : options.images;
  const auto dataset = open_training_data(options.data, images_);
  loss_set_ = chosen(dataset, options.loss_questions, options.seed);
  score_set_ = chosen(dataset, options.score_questions, options.seed);
  builder_ = std::make_unique<generation::QuestionBuilder>(
      context_.bundle, generation::QuestionBuilder::Options{context_.prompt,
                                                            images_,
                                                            context_.fixed_features,
                                                            {context_.options.picture_cache_mb << 18,
                                                             at::get_num_threads(), context_.options.pictures}});
  spdlog::info("evaluation every {} steps: loss of {} questions, scores of {}, out of {} of {}", options.every,
               loss_set_ ? loss_set_->size() : 0, score_set_ ? score_set_->size() : 0, dataset->size(),
               options.data.path);
}

bool Validation::due(std::int64_t step, std::int64_t num_steps) const {
  return options_.every > 0 && (step % options_.every == 0 || step == num_steps);
}

double Validation::loss() {
  const at::NoGradGuard no_grad;
  double sum = 0;
  std::int64_t num_targets = 0, num_left_out = 0;
  for (std::int64_t begin = 0; begin < loss_set_->size(); begin += kQuestionsAtATime) {
    std::vector<data::Sample> samples;
    for (std::int64_t i = begin; i < std::min(loss_set_->size(), begin + kQuestionsAtATime); ++i)
      samples.push_back(loss_set_->get(i));
    const std::vector<generation::Question> questions = builder_->build(samples);
    std::vector<TrainingSequence> sequences;
    std::vector<std::int64_t> sizes;
    for (const generation::Question& question : questions) {
      TrainingSequence sequence = make_training_sequence(context_.bundle, context_.prompt, question, context_.think);
      if (context_.max_length > 0 && sequence.length() > context_.max_length) {
        ++num_left_out;
        continue;
      }
      sizes.push_back(sequence.length());
      num_targets += std::ssize(sequence.targets);
      sequences.push_back(std::move(sequence));
    }
    const auto passes = split_by_size(sizes, context_.options.micro_batch_tokens);
    std::vector<double> parts(passes.size());
    const auto pass = [&](std::int64_t i) {
      const auto& [first, last] = passes[static_cast<std::size_t>(i)];
      parts[static_cast<std::size_t>(i)] =
          answer_loss_sum(context_.bundle, *builder_, std::span(sequences).subspan(first, last - first)).item<double>();
    };
    // Each pass alone on a thread: the loss does not depend on the number of threads.
    if (context_.bundle.model->output_weight().device().is_cpu())
      nn::run_each_alone(std::ssize(passes), pass);
    else
      for (std::int64_t i = 0; i < std::ssize(passes); ++i) pass(i);
    sum = std::accumulate(parts.begin(), parts.end(), sum);
  }
  if (num_left_out > 0)
    spdlog::warn("evaluation: {} questions longer than max_length {} are left out of eval/loss", num_left_out,
                 context_.max_length);
  if (num_targets == 0) throw_failure("{}: no held-out question is left to measure eval/loss on", options_.data.path);
  return sum / static_cast<double>(num_targets);
}

std::map<std::string, double> Validation::measure(std::int64_t step) {
  std::map<std::string, double> values;
  if (loss_set_) values["loss"] = loss();
  if (score_set_) {
    const std::string name = fmt::format("step-{}", step);
    values.merge(context_.scorer({context_.bundle, score_set_, images_, context_.options.pictures, context_.prompt,
                                  options_.max_new_tokens, name, context_.run / "eval" / name}));
  }
  return values;
}

Validation::Result Validation::evaluate(std::int64_t step, const std::function<void()>& measured) {
  const auto start = std::chrono::steady_clock::now();
  dist::ProcessGroup& group = context_.group;
  group.set_phase("evaluation", step);
  const std::map<std::string, double> own = group.is_main() ? measure(step) : std::map<std::string, double>();
  if (measured) measured();
  const std::map<std::string, double> values = shared(own, group);
  Result result;
  for (const std::string& name : validation_metrics()) {
    const auto found = values.find(name);
    if (found == values.end()) continue;
    result.metrics["eval/" + name] = found->second;
    if (name != "parse_rate" && name != "token_f1")
      result.summary += fmt::format("{}{} {:.4f}", result.summary.empty() ? "eval " : ", ", name, found->second);
  }
  result.metrics["step_time/eval"] = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const std::string& best_by = context_.options.keep_best;
  if (!best_by.empty()) {
    const auto found = values.find(best_by);
    if (found == values.end())
      throw_failure("run.keep_best is {}, but no question of {} has it; keep the best by loss, or evaluate on others",
                    best_by, options_.data.path);
    const bool lower = best_by == "loss";
    result.is_best = !best_value_ || (lower ? found->second < *best_value_ : found->second > *best_value_);
    if (result.is_best) {
      best_step_ = step;
      best_value_ = found->second;
    }
  }
  spdlog::info("step {}: {}{}", step, result.summary, result.is_best ? " (the best so far)" : "");
  return result;
}

Json Validation::state() const {
  if (!best_value_) return Json();
  return {{"metric", context_.options.keep_best}, {"step", best_step_}, {"value", *best_value_}};
}

void Validation::load_state(const Json& state) {
  if (!state.is_object() || state.value("metric", "") != context_.options.keep_best) return;
  best_step_ = state.at("step").get<std::int64_t>();
  best_value_ = state.at("value").get<double>();
}

}  // namespace thinkvg::train
