#include "thinkvg/rl/grpo.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <numeric>

#include "thinkvg/core/error.h"
#include "thinkvg/core/interrupt.h"
#include "thinkvg/core/log.h"
#include "thinkvg/core/manifest.h"
#include "thinkvg/core/progress.h"
#include "thinkvg/core/random.h"
#include "thinkvg/generation/question.h"
#include "thinkvg/nn/head_stats.h"
#include "thinkvg/nn/workers.h"
#include "thinkvg/rewards/rollout_log.h"
#include "thinkvg/rl/advantage.h"
#include "thinkvg/rl/local_judge.h"
#include "thinkvg/rl/policy_loss.h"
#include "thinkvg/train/example.h"
#include "thinkvg/train/out_of_memory.h"
#include "thinkvg/train/profile.h"
#include "thinkvg/train/run_folder.h"

namespace thinkvg::rl {
namespace {

using Clock = std::chrono::steady_clock;
using generation::Completion;
using generation::FinishReason;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// The longest completion is the sampler's, unless the rewards say otherwise.
rewards::RewardOptions reward_options(const GrpoOptions& options) {
  rewards::RewardOptions reward = options.reward;
  if (reward.max_completion_length == 0) reward.max_completion_length = options.sampling.max_new_tokens;
  return reward;
}

// One completion with what it was worth.
struct ScoredCompletion {
  const Completion* completion = nullptr;
  std::string text;
  grounding::ParsedResponse parsed;
  rewards::CompletionReward reward;
  double advantage = 0;
  bool in_loss = true;
  // Of the weights before the update, one number a token, on the CPU; undefined until they are needed.
  at::Tensor old_log_probs, ref_log_probs, entropies, token_mask;
};

// A question with all of its completions: what an update pass shares the prompt of.
struct Group {
  std::shared_ptr<const generation::Question> question;
  std::vector<Completion> drawn;
  std::vector<ScoredCompletion> completions;

  std::int64_t num_tokens() const {
    auto count = static_cast<std::int64_t>(question->prompt.ids.size());
    for (const ScoredCompletion& scored : completions)
      count += static_cast<std::int64_t>(scored.completion->ids.size());
    return count;
  }
};

double mean_of(const std::vector<double>& values) {
  return values.empty() ? 0 : std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

double deviation_of(const std::vector<double>& values) {
  if (values.size() < 2) return 0;
  const double center = mean_of(values);
  double sum = 0;
  for (const double value : values) sum += (value - center) * (value - center);
  return std::sqrt(sum / static_cast<double>(values.size() - 1));
}

// The tokens of some groups' completions, laid out for log-probabilities: each prompt once, its completions behind it.
struct UpdateBatch {
  models::Pack pack;
  at::Tensor rows;                             // [N] rows of the pack whose hidden state predicts a completion token
  at::Tensor targets;                          // [N]
  at::Tensor rollout_log_probs;                // [N]
  at::Tensor sequence;                         // [N] completion of the batch
  at::Tensor lengths;                          // [B]
  at::Tensor advantages;                       // [B]
  std::vector<ScoredCompletion*> completions;  // B
};

// Completions that are not in the loss are left out, unless `all`.
UpdateBatch make_update_batch(generation::QuestionBuilder& builder, const std::vector<Group*>& groups,
                              at::Device device, bool all) {
  std::vector<const generation::Question*> questions;
  for (const Group* group : groups) questions.push_back(group->question.get());
  const std::vector<at::Tensor> features = builder.features(questions);
  models::PackBuilder packer;
  std::vector<std::int64_t> rows, targets, sequence, lengths;
  std::vector<float> rollout;
  std::vector<double> advantages;
  UpdateBatch batch;
  for (std::size_t i = 0; i < groups.size(); ++i) {
    const generation::Question& question = *questions[i];
    const std::int64_t prefix = packer.num_sequences();
    const std::int64_t first =
        packer.add({question.prompt.ids, question.positions.positions, question.prompt.image_rows, {features[i]}, -1});
    const std::int64_t last_of_prompt = first + static_cast<std::int64_t>(question.prompt.ids.size()) - 1;
    for (ScoredCompletion& scored : groups[i]->completions) {
      if (!scored.in_loss && !all) continue;
      const std::vector<std::int64_t>& ids = scored.completion->ids;
      const auto length = static_cast<std::int64_t>(ids.size());
      // The last token is only a target: nothing follows it.
      std::int64_t begin = 0;
      if (length > 1)
        begin = packer.add({{ids.begin(), ids.end() - 1},
                            models::text_positions(question.positions.next, length - 1),
                            {},
                            {},
                            prefix});
      for (std::int64_t t = 0; t < length; ++t) {
        rows.push_back(t == 0 ? last_of_prompt : begin + t - 1);
        targets.push_back(ids[static_cast<std::size_t>(t)]);
        rollout.push_back(scored.completion->logprobs[static_cast<std::size_t>(t)]);
        sequence.push_back(static_cast<std::int64_t>(lengths.size()));
      }
      lengths.push_back(length);
      advantages.push_back(scored.advantage);
      batch.completions.push_back(&scored);
    }
  }
  batch.pack = packer.build(device);
  batch.rows = at::tensor(rows, at::kLong).to(device);
  batch.targets = at::tensor(targets, at::kLong).to(device);
  batch.rollout_log_probs = at::tensor(rollout, at::kFloat).to(device);
  batch.sequence = at::tensor(sequence, at::kLong).to(device);
  batch.lengths = at::tensor(lengths, at::kLong).to(device);
  batch.advantages = at::tensor(advantages, at::kDouble).to(device);
  return batch;
}

nn::TokenStats completion_stats(models::VisionLanguageModel& model, const UpdateBatch& batch,
                                const nn::HeadOptions& options) {
  nn::PackedAttention attention(batch.pack.layout);
  const at::Tensor hidden = models::run_pack(model, batch.pack, attention).index_select(0, batch.rows);
  return nn::head_token_stats(hidden, model.output_weight(), batch.targets, options);
}

// One of the completions' own numbers, end to end [N].
at::Tensor joined(const UpdateBatch& batch, at::Tensor ScoredCompletion::*numbers) {
  std::vector<at::Tensor> parts;
  for (const ScoredCompletion* scored : batch.completions) parts.push_back(scored->*numbers);
  return at::cat(parts).to(batch.rows.device());
}

void share_out(const UpdateBatch& batch, const at::Tensor& all, at::Tensor ScoredCompletion::*numbers) {
  const at::Tensor plain = all.detach().cpu();
  std::int64_t begin = 0;
  for (ScoredCompletion* scored : batch.completions) {
    const auto length = static_cast<std::int64_t>(scored->completion->ids.size());
    scored->*numbers = plain.narrow(0, begin, length);
    begin += length;
  }
}

// Means over one step, weighted by tokens.
struct UpdateMetrics {
  double loss = 0, kl = 0, entropy = 0, clip_low = 0, clip_high = 0, gap_sum = 0, gap_max = 0, grad_norm = 0;
  double log_prob_seconds = 0, num_tokens = 0;
};

class GrpoTrainer {
 public:
  GrpoTrainer(const GrpoOptions& options, const train::Scorer& scorer)
      : options_(options),
        dataset_(train::open_training_data(options.data, options.images)),
        rewards_(options.rewards, reward_options(options), reward_resources(options.engine)),
        scaling_(parse_advantage_scaling(options.scale_rewards)),
        run_(options.out, options.resume, options.run),
        checkpoint_(options.resume ? run_.latest_checkpoint() : std::filesystem::path()),
        trained_(checkpoint_.empty() ? train::TrainedModel(options.model, options.tuning, options.seed)
                                     : train::TrainedModel(options.model, options.tuning, checkpoint_)),
        optimizer_(trained_.groups(options.optimizer), options.optimizer),
        builder_(trained_.bundle(),
                 {options.prompt,
                  options.images,
                  trained_.fixed_features(),
                  {options.run.picture_cache_mb << 20, at::get_num_threads(), options.run.pictures}}),
        validation_(options.eval, {trained_.bundle(), run_.path(), options.images, options.prompt, true, 0,
                                   trained_.fixed_features(), options.run, scorer}),
        profile_(options.run.profile_steps, run_.path() / "profile.json"),
        device_(trained_.model().output_weight().device()) {
    loss_options_.type = parse_loss_type(options.loss_type);
    loss_options_.ratio_level = parse_ratio_level(options.importance_sampling_level);
    loss_options_.epsilon_low = options.epsilon_low;
    loss_options_.epsilon_high = options.epsilon_high;
    loss_options_.delta = options.delta;
    loss_options_.sapo_temperature_pos = options.sapo_temperature_pos;
    loss_options_.sapo_temperature_neg = options.sapo_temperature_neg;
    loss_options_.beta = options.kl_in_reward ? 0 : options.beta;
    loss_options_.kl = parse_kl_estimator(options.kl_estimator);
    loss_options_.bias_corrected_kl = options.use_bias_correction_kl;
    loss_options_.entropy_coef = options.entropy_coef;
    loss_options_.off_policy_threshold = options.off_policy_mask_threshold;
    correction_ = {parse_rollout_correction(options.rollout_correction), options.rollout_correction_min,
                   options.rollout_correction_max};
    loss_options_.max_completion_length = options.sampling.max_new_tokens;

    // With adapters the model below them is the reference.
    if (options.beta != 0 && !trained_.adapters()) {
      reference_ = models::load_bundle(models::resolve_model_folder(options.model)).model;
      reference_->to(trained_.model().output_weight().scalar_type());
      for (const at::Tensor& parameter : reference_->parameters()) parameter.set_requires_grad(false);
    }
    if (options.sync_ref_model && !reference_)
      throw_invalid("sync_ref_model needs a reference model of its own: beta above 0, and no lora");
    if (checkpoint_.empty()) {
      run_.write_config(settings_to_json(options));
      run_.write_manifest(make_manifest("grpo", options.seed, {{"data", options.data.path}}));
    } else {
      const train::RunFolder::TrainerState state = train::RunFolder::load_checkpoint(checkpoint_, optimizer_);
      step_ = state.step;
      num_nonfinite_ = state.extra.value("num_nonfinite", std::int64_t{0});
      next_prompt_ = state.extra.value("next_prompt", std::int64_t{0});
      validation_.load_state(state.extra.value("best", Json()));
      if (options.sync_ref_model) read_reference(checkpoint_ / kReference);
      spdlog::info("resuming from {}", checkpoint_.string());
    }
    run_.open_logs(step_);
    for (std::size_t k = 0; k < rewards_.size(); ++k)
      if (rewards_.name(k) == options.dynamic_sampling_reward) filter_reward_ = static_cast<std::int64_t>(k);
    if (!options.dynamic_sampling_reward.empty() && filter_reward_ < 0)
      throw_invalid("dynamic_sampling_reward '{}' is none of the rewards", options.dynamic_sampling_reward);
    const std::vector<std::int64_t> banned = models::banned_ids(trained_.model().special_tokens());
    if (!banned.empty()) head_.banned = at::tensor(banned, at::kLong).to(device_);
    head_.temperature = options.sampling.temperature;
  }

  void run() {
    const std::int64_t steps = options_.run.steps;
    spdlog::info("grpo: {} questions, {} steps of {} x {}, {} threads", format_count(dataset_->size()),
                 format_count(steps), options_.prompts_per_step, options_.group_size, at::get_num_threads());
    Progress progress("grpo", steps, step_);
    const auto start = Clock::now();
    std::string eval_summary;
    while (step_ < steps) {
      profile_.begin_step();
      Json metrics = step();
      profile_.end_step();
      bool save_now = step_ == steps || (options_.run.save_every > 0 && step_ % options_.run.save_every == 0);
      const bool evaluates = validation_.due(step_, steps);
      if (evaluates) {
        const train::Validation::Result evaluation = validation_.evaluate(step_);
        metrics.update(evaluation.metrics);
        eval_summary = ", " + evaluation.summary;
        save_now |= evaluation.is_best;
      }
      if (evaluates || step_ % options_.run.log_every == 0 || step_ == steps) run_.log(metrics);
      progress.update(step_,
                      fmt::format("reward {:.3f}, {} tokens/s{}", metrics.at("reward").get<double>(),
                                  format_count(metrics.at("tokens_per_second").get<std::int64_t>()), eval_summary));
      const bool stop = interrupt_requested();
      if (stop || save_now) save();
      if (stop && step_ < steps) {
        run_.finish();
        progress.finish();
        spdlog::warn("grpo: asked to stop; step {} of {} is saved, go on with --resume", format_count(step_),
                     format_count(steps));
        return;
      }
    }
    run_.finish();
    progress.finish();
    spdlog::info("grpo: {} steps in {}, written to {}", format_count(steps), format_duration(seconds_since(start)),
                 options_.out);
  }

 private:
  static constexpr const char* kReference = "trainer/reference.safetensors";

  void save() {
    models::FolderContent content = trained_.content();
    if (options_.sync_ref_model)
      for (const auto& item : reference_->named_parameters())
        content.tensors[kReference].emplace_back(item.key(), item.value());
    const Json extra = {
        {"num_nonfinite", num_nonfinite_}, {"next_prompt", next_prompt_}, {"best", validation_.state()}};
    run_.save_checkpoint(content, optimizer_, {step_, extra, validation_.best_step()});
  }

  void read_reference(const std::filesystem::path& file) {
    const at::NoGradGuard no_grad;
    const auto stored = models::read_safetensors(file);
    for (const auto& item : reference_->named_parameters()) item.value().copy_(stored.at(item.key()));
  }

  void sync_reference() {
    const at::NoGradGuard no_grad;
    const auto policy = trained_.model().named_parameters();
    for (const auto& item : reference_->named_parameters())
      item.value().lerp_(policy[item.key()].to(item.value().device()), options_.ref_model_mixup_alpha);
  }

  // What drawing the completions of a step came to.
  struct Draw {
    std::vector<Group> groups;
    std::int64_t num_dropped = 0;
    std::int64_t num_refills = 0;
    double rollout_seconds = 0, reward_seconds = 0;
  };

  // Completions of the next questions, with their rewards. With dynamic sampling other questions take the place of
  // groups without signal, for a number of rounds.
  Draw draw() {
    Draw result;
    for (std::int64_t round = 0;; ++round) {
      const std::int64_t missing = options_.prompts_per_step - static_cast<std::int64_t>(result.groups.size());
      std::vector<Group> groups = draw_groups(missing, result);
      // Otherwise they stay: they count in the normaliser, and a KL term moves them.
      if (!options_.dynamic_sampling) {
        result.groups = std::move(groups);
        break;
      }
      std::vector<Group> dropped;
      for (Group& group : groups) (has_signal(group) ? result.groups : dropped).push_back(std::move(group));
      result.num_dropped += static_cast<std::int64_t>(dropped.size());
      const bool last = round == options_.max_refill;
      if (last && result.groups.empty()) result.groups = std::move(dropped);
      if (last || static_cast<std::int64_t>(result.groups.size()) == options_.prompts_per_step) break;
      ++result.num_refills;
    }
    prefetch_next();
    return result;
  }

  // The next step's pictures are read while this one's update is computed.
  void prefetch_next() {
    std::vector<data::Sample> samples;
    for (const std::int64_t index : train::ordered_indices(dataset_->size(), next_prompt_, options_.prompts_per_step,
                                                           static_cast<std::uint64_t>(options_.seed)))
      samples.push_back(dataset_->get(index));
    builder_.prefetch(samples);
  }

  std::vector<Group> draw_groups(std::int64_t count, Draw& timed) {
    std::vector<data::Sample> samples;
    const std::vector<std::int64_t> indices =
        train::ordered_indices(dataset_->size(), next_prompt_, count, static_cast<std::uint64_t>(options_.seed));
    next_prompt_ += count;
    for (const std::int64_t index : indices) samples.push_back(dataset_->get(index));
    std::vector<generation::Question> questions = builder_.build(samples);
    const auto rollout_start = Clock::now();
    std::vector<std::vector<Completion>> completions = roll_out(questions, indices);
    timed.rollout_seconds += seconds_since(rollout_start);

    const auto reward_start = Clock::now();
    std::vector<Group> groups(questions.size());
    for (std::size_t i = 0; i < questions.size(); ++i) {
      groups[i].question = std::make_shared<const generation::Question>(std::move(questions[i]));
      groups[i].drawn = std::move(completions[i]);
      for (const Completion& completion : groups[i].drawn)
        groups[i].completions.push_back(read_completion(*groups[i].question, completion));
    }
    score(groups);
    timed.reward_seconds += seconds_since(reward_start);
    return groups;
  }

  bool has_signal(const Group& group) const {
    double low = std::numeric_limits<double>::infinity(), high = -low;
    for (const ScoredCompletion& scored : group.completions) {
      double value = scored.reward.total;
      if (filter_reward_ >= 0) {
        const rewards::RewardScore& score = scored.reward.scores[static_cast<std::size_t>(filter_reward_)];
        if (!score.applicable) continue;
        value = score.value;
      } else if (!scored.reward.applicable) {
        continue;
      }
      low = std::min(low, value);
      high = std::max(high, value);
    }
    return high > low;
  }

  Json step() {
    const auto start = Clock::now();
    Draw drawn = draw();
    std::vector<Group>& groups = drawn.groups;

    const auto update_start = Clock::now();
    if (needs_forward_pass()) forward_pass(groups);
    const double forward_seconds = seconds_since(update_start);
    const Advantages advantages = set_advantages(groups);
    const double lr = train::learning_rate(options_.optimizer, step_, options_.run.steps);
    const UpdateMetrics update_metrics = update(groups, lr);
    const double update_seconds = seconds_since(update_start);
    ++step_;
    if (options_.sync_ref_model && step_ % options_.ref_model_sync_steps == 0) sync_reference();

    log_samples(groups);
    Json metrics = reward_metrics(groups, advantages);
    std::int64_t num_tokens = 0;
    for (const Group& group : groups) num_tokens += group.num_tokens();
    const double seconds = seconds_since(start);
    metrics.update({{"loss", update_metrics.loss},
                    {"kl", update_metrics.kl},
                    {"entropy", update_metrics.entropy},
                    {"clip_ratio/low", update_metrics.clip_low},
                    {"clip_ratio/high", update_metrics.clip_high},
                    {"rollout_gap/mean", update_metrics.gap_sum},
                    {"rollout_gap/max", update_metrics.gap_max},
                    {"grad_norm", update_metrics.grad_norm},
                    {"lr", lr},
                    {"step_time", seconds},
                    {"step_time/rollout", drawn.rollout_seconds},
                    {"step_time/reward", drawn.reward_seconds},
                    {"step_time/logprob", forward_seconds + update_metrics.log_prob_seconds},
                    {"step_time/update", update_seconds - forward_seconds - update_metrics.log_prob_seconds},
                    {"num_tokens", num_tokens},
                    {"tokens_per_second", static_cast<double>(num_tokens) / seconds},
                    {"peak_memory", peak_memory_bytes()}});
    if (options_.dynamic_sampling)
      metrics.update(
          {{"dynamic_sampling/dropped_groups", drawn.num_dropped}, {"dynamic_sampling/refills", drawn.num_refills}});
    return metrics;
  }

  // Whether something has to be known of the weights before the update that the update itself does not compute.
  bool needs_forward_pass() const {
    return (options_.kl_in_reward && options_.beta != 0) || options_.top_entropy_quantile < 1 ||
           correction_.mode != RolloutCorrection::none;
  }

  // Log-probabilities and entropies of all completions under the weights before the update, and under the reference.
  void forward_pass(std::vector<Group>& groups) {
    std::vector<Group*> all;
    std::vector<std::int64_t> sizes;
    for (Group& group : groups) {
      all.push_back(&group);
      sizes.push_back(group.num_tokens());
    }
    const auto splits = split(sizes);
    const at::NoGradGuard no_grad;
    const auto pass = [&](std::int64_t i) {
      const auto& [begin, end] = splits[static_cast<std::size_t>(i)];
      const std::vector<Group*> some(all.begin() + static_cast<std::ptrdiff_t>(begin),
                                     all.begin() + static_cast<std::ptrdiff_t>(end));
      const UpdateBatch batch = make_update_batch(builder_, some, device_, /*all=*/true);
      const nn::TokenStats policy = completion_stats(trained_.model(), batch, head_);
      share_out(batch, policy.logprob, &ScoredCompletion::old_log_probs);
      share_out(batch, policy.entropy, &ScoredCompletion::entropies);
      if (options_.beta != 0) share_out(batch, reference_log_probs(batch), &ScoredCompletion::ref_log_probs);
    };
    if (device_.is_cpu())
      nn::run_each_alone(std::ssize(splits), pass);
    else
      for (std::int64_t i = 0; i < std::ssize(splits); ++i) pass(i);
  }

  // Neighbouring groups that share a pass: enough passes that every worker has one.
  std::vector<std::pair<std::size_t, std::size_t>> split(const std::vector<std::int64_t>& sizes) const {
    const std::int64_t num_tokens = std::accumulate(sizes.begin(), sizes.end(), std::int64_t{0});
    return train::split_by_size(sizes, std::min(options_.run.micro_batch_tokens, num_tokens / nn::num_workers() + 1));
  }

  std::vector<std::vector<Completion>> roll_out(const std::vector<generation::Question>& questions,
                                                const std::vector<std::int64_t>& indices) {
    std::vector<const generation::Question*> pointers;
    for (const generation::Question& question : questions) pointers.push_back(&question);
    std::vector<at::Tensor> features;
    {
      const at::NoGradGuard no_grad;
      features = builder_.features(pointers);
    }
    std::vector<generation::GenerationRequest> requests;
    for (std::size_t i = 0; i < questions.size(); ++i)
      requests.push_back({questions[i].prompt,
                          questions[i].grids,
                          {features[i]},
                          options_.group_size,
                          {hash_key("rollout"), static_cast<std::uint64_t>(options_.seed),
                           static_cast<std::uint64_t>(step_), static_cast<std::uint64_t>(indices[i])}});
    generation::RolloutEngine engine(trained_.model(), options_.engine);
    return engine.generate(requests, options_.sampling);
  }

  ScoredCompletion read_completion(const generation::Question& question, const Completion& completion) const {
    ScoredCompletion scored;
    scored.completion = &completion;
    scored.text = trained_.bundle().tokenizer->decode(completion.ids);
    scored.parsed = grounding::parse_response(scored.text, question.frame, true);
    scored.in_loss = !(completion.finish == FinishReason::length && options_.mask_truncated);
    return scored;
  }

  // What the rewards see of completion g of a group. `geometry`: of the question's picture; must outlive the result.
  rewards::RewardInput reward_input(const Group& group, std::size_t g, const grounding::ImageGeometry& geometry) const {
    const ScoredCompletion& scored = group.completions[g];
    return {.sample = group.question->sample,
            .parsed = scored.parsed,
            .geometry = geometry,
            .text = scored.text,
            .frame = group.question->frame,
            .truncated = scored.completion->finish == FinishReason::length,
            .num_tokens = static_cast<std::int64_t>(scored.completion->ids.size()),
            .ids = scored.completion->ids,
            .step = step_ + 1,
            .completion = static_cast<std::int64_t>(g)};
  }

  // All completions of a step together: a judge or a program is asked for all of them at once.
  void score(std::vector<Group>& groups) {
    std::vector<grounding::ImageGeometry> geometries;
    for (const Group& group : groups) geometries.push_back(group.question->geometry());
    std::vector<rewards::RewardInput> inputs;
    for (std::size_t i = 0; i < groups.size(); ++i)
      for (std::size_t g = 0; g < groups[i].completions.size(); ++g)
        inputs.push_back(reward_input(groups[i], g, geometries[i]));
    std::vector<rewards::CompletionReward> scores = rewards_.score(inputs);
    std::size_t next = 0;
    for (Group& group : groups)
      for (ScoredCompletion& scored : group.completions) scored.reward = std::move(scores[next++]);
  }

  Advantages set_advantages(std::vector<Group>& groups) const {
    constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
    const bool decoupled = options_.multi_objective_aggregation == "normalize_then_sum";
    std::vector<double> totals, weights;
    std::vector<std::vector<double>> values;
    for (std::size_t k = 0; k < rewards_.size(); ++k) weights.push_back(rewards_.weight(k));
    for (const Group& group : groups) {
      for (const ScoredCompletion& scored : group.completions) {
        double penalty = 0;
        if (options_.kl_in_reward && options_.beta != 0)
          penalty = options_.beta *
                    kl_estimate(scored.old_log_probs, scored.ref_log_probs, loss_options_.kl).sum().item<double>();
        totals.push_back(scored.reward.applicable ? scored.reward.total - penalty : kNan);
        values.emplace_back();
        for (const rewards::RewardScore& score : scored.reward.scores)
          values.back().push_back(score.applicable ? score.value : kNan);
      }
    }
    Advantages advantages = decoupled ? decoupled_advantages(values, weights, options_.group_size)
                                      : group_advantages(totals, options_.group_size, scaling_);
    std::size_t i = 0;
    for (Group& group : groups)
      for (ScoredCompletion& scored : group.completions) scored.advantage = advantages.values[i++];
    return advantages;
  }

  UpdateMetrics update(std::vector<Group>& groups, double lr) {
    std::vector<std::int64_t> sizes;
    std::int64_t total_tokens = 0, total_completions = 0, total_masked_tokens = 0;
    std::vector<Group*> in_loss;
    std::vector<ScoredCompletion*> scored_in_loss;
    for (Group& group : groups) {
      // Without a KL term or an entropy bonus a group of equal rewards has no gradient: it only counts in the
      // normaliser.
      bool useful = false;
      for (ScoredCompletion& scored : group.completions) {
        ++total_completions;  // masked ones count, as in TRL: their loss is 0
        if (!scored.in_loss) continue;
        total_tokens += static_cast<std::int64_t>(scored.completion->ids.size());
        useful |= loss_options_.beta != 0 || loss_options_.entropy_coef != 0 || scored.advantage != 0;
        scored_in_loss.push_back(&scored);
      }
      if (!useful) continue;
      in_loss.push_back(&group);
      sizes.push_back(group.num_tokens());
    }
    UpdateMetrics metrics;
    if (in_loss.empty()) return metrics;
    if (options_.top_entropy_quantile < 1) total_masked_tokens = mark_top_entropy(scored_in_loss);
    const auto splits = split(sizes);
    double tokens_seen = 0;
    for (std::int64_t pass = 0; pass < options_.updates_per_rollout; ++pass) {
      std::vector<UpdateMetrics> parts(splits.size());
      const auto loss_of = [&](std::int64_t i) {
        const auto m = static_cast<std::size_t>(i);
        UpdateMetrics& part = parts[m];
        const std::vector<Group*> some(in_loss.begin() + static_cast<std::ptrdiff_t>(splits[m].first),
                                       in_loss.begin() + static_cast<std::ptrdiff_t>(splits[m].second));
        const UpdateBatch batch = make_update_batch(builder_, some, device_, /*all=*/false);
        PolicyLossInput input;
        if (loss_options_.beta != 0) {
          if (!batch.completions.front()->ref_log_probs.defined()) {
            const auto reference_start = Clock::now();
            share_out(batch, reference_log_probs(batch), &ScoredCompletion::ref_log_probs);
            part.log_prob_seconds = seconds_since(reference_start);
          }
          input.ref_log_probs = joined(batch, &ScoredCompletion::ref_log_probs);
        }
        const nn::TokenStats policy = completion_stats(trained_.model(), batch, head_);
        // With one update per rollout these are the old log-probabilities themselves.
        if (!batch.completions.front()->old_log_probs.defined())
          share_out(batch, policy.logprob, &ScoredCompletion::old_log_probs);
        input.log_probs = policy.logprob;
        input.old_log_probs = joined(batch, &ScoredCompletion::old_log_probs);
        input.rollout_log_probs = batch.rollout_log_probs;
        input.entropy = policy.entropy;
        if (total_masked_tokens > 0) input.token_mask = joined(batch, &ScoredCompletion::token_mask);
        if (correction_.mode != RolloutCorrection::none)
          input.token_weights = rollout_correction(input.old_log_probs, batch.rollout_log_probs, batch.sequence,
                                                   batch.lengths, correction_);
        input.advantages = batch.advantages;
        input.sequence = batch.sequence;
        input.lengths = batch.lengths;
        input.total_completions = total_completions;
        input.total_tokens = total_tokens;
        input.total_masked_tokens = total_masked_tokens;
        input.num_micro_batches = static_cast<std::int64_t>(splits.size());
        const PolicyLoss loss = policy_loss(input, loss_options_);
        part.loss = loss.loss.item<double>();
        part.kl = loss.kl_sum;
        part.clip_low = loss.clipped_low;
        part.clip_high = loss.clipped_high;
        if (pass == 0) {
          part.entropy = policy.entropy.detach().sum().item<double>();
          const at::Tensor gap = (input.old_log_probs - batch.rollout_log_probs).exp().sub(1).abs();
          part.gap_sum = gap.sum().item<double>();
          part.gap_max = gap.max().item<double>();
          part.num_tokens = static_cast<double>(batch.targets.size(0));
        }
        return loss.loss;
      };
      const std::vector<at::Tensor> gradients =
          train::accumulate_gradients(optimizer_.parameters(), static_cast<std::int64_t>(splits.size()), loss_of);
      for (const UpdateMetrics& part : parts) {
        metrics.loss += part.loss;
        metrics.kl += part.kl;
        metrics.clip_low += part.clip_low;
        metrics.clip_high += part.clip_high;
        metrics.entropy += part.entropy;
        metrics.gap_sum += part.gap_sum;
        metrics.gap_max = std::max(metrics.gap_max, part.gap_max);
        metrics.log_prob_seconds += part.log_prob_seconds / static_cast<double>(nn::num_workers());
        tokens_seen += part.num_tokens;
      }
      metrics.grad_norm = optimizer_.step(gradients, lr);
      if (!std::isfinite(metrics.grad_norm)) {
        spdlog::warn("step {}: the gradient is not finite; the update was skipped", step_ + 1);
        if (++num_nonfinite_ >= options_.run.max_nonfinite_steps)
          throw_failure("{} updates had a gradient that was not finite; lower optimizer.lr", num_nonfinite_);
      }
    }
    const double passes = static_cast<double>(options_.updates_per_rollout) * tokens_seen;
    metrics.kl /= passes;
    metrics.clip_low /= passes;
    metrics.clip_high /= passes;
    metrics.entropy /= tokens_seen;
    metrics.gap_sum /= tokens_seen;
    return metrics;
  }

  // Sets token_mask of each completion; returns the number of tokens that stay.
  std::int64_t mark_top_entropy(const std::vector<ScoredCompletion*>& completions) const {
    std::vector<at::Tensor> entropies;
    std::vector<std::int64_t> lengths;
    for (const ScoredCompletion* scored : completions) {
      entropies.push_back(scored->entropies);
      lengths.push_back(scored->entropies.size(0));
    }
    const at::Tensor mask = top_entropy_tokens(at::cat(entropies), options_.top_entropy_quantile);
    const std::vector<at::Tensor> parts = mask.split_with_sizes(lengths);
    for (std::size_t i = 0; i < parts.size(); ++i) completions[i]->token_mask = parts[i];
    return mask.sum().item<std::int64_t>();
  }

  at::Tensor reference_log_probs(const UpdateBatch& batch) {
    const at::NoGradGuard no_grad;
    if (reference_) return completion_stats(*reference_, batch, head_).logprob;
    const nn::AdaptersOff off;
    return completion_stats(trained_.model(), batch, head_).logprob;
  }

  Json reward_metrics(const std::vector<Group>& groups, const Advantages& advantages) const {
    std::vector<double> rewards, absolute, lengths, deviations;
    double clipped = 0;
    for (const Group& group : groups) {
      std::vector<double> of_group;
      for (const ScoredCompletion& scored : group.completions) {
        of_group.push_back(scored.reward.total);
        absolute.push_back(std::abs(scored.advantage));
        lengths.push_back(static_cast<double>(scored.completion->ids.size()));
        clipped += scored.completion->finish == FinishReason::length ? 1 : 0;
      }
      deviations.push_back(deviation_of(of_group));
      rewards.insert(rewards.end(), of_group.begin(), of_group.end());
    }
    Json metrics = {{"step", step_}, {"reward", mean_of(rewards)}, {"reward_std", mean_of(deviations)}};
    for (std::size_t k = 0; k < rewards_.size(); ++k) {
      std::vector<double> values;
      for (const Group& group : groups)
        for (const ScoredCompletion& scored : group.completions)
          if (scored.reward.scores[k].applicable) values.push_back(scored.reward.scores[k].value);
      metrics["rewards/" + rewards_.name(k) + "/mean"] = mean_of(values);
      metrics["rewards/" + rewards_.name(k) + "/std"] = deviation_of(values);
    }
    const auto num_zero = std::count(advantages.zero_signal.begin(), advantages.zero_signal.end(), true);
    metrics.update({{"frac_reward_zero_std", static_cast<double>(num_zero) / static_cast<double>(groups.size())},
                    {"advantage_abs_mean", mean_of(absolute)},
                    {"completions/mean_length", mean_of(lengths)},
                    {"completions/min_length", *std::min_element(lengths.begin(), lengths.end())},
                    {"completions/max_length", *std::max_element(lengths.begin(), lengths.end())},
                    {"completions/clipped_ratio", clipped / static_cast<double>(lengths.size())}});
    return metrics;
  }

  void log_samples(const std::vector<Group>& groups) {
    std::int64_t left = options_.samples_per_step;
    for (const Group& group : groups) {
      const grounding::ImageGeometry geometry = group.question->geometry();
      for (std::size_t g = 0; g < group.completions.size() && left > 0; ++g, --left) {
        const ScoredCompletion& scored = group.completions[g];
        Json scores = Json::object();
        for (std::size_t k = 0; k < rewards_.size(); ++k) {
          const rewards::RewardScore& score = scored.reward.scores[k];
          scores[rewards_.name(k)] = {{"value", score.applicable ? Json(score.value) : Json()},
                                      {"reason", score.reason}};
        }
        Json line = rewards::rollout_to_json(reward_input(group, g, geometry));
        line["step"] = step_;
        line["reward"] = scored.reward.total;
        line["rewards"] = scores;
        line["advantage"] = scored.advantage;
        run_.log_sample(line);
      }
    }
  }

  GrpoOptions options_;
  std::shared_ptr<const data::Dataset> dataset_;
  rewards::RewardSet rewards_;
  AdvantageScaling scaling_;
  train::RunFolder run_;
  std::filesystem::path checkpoint_;
  train::TrainedModel trained_;
  train::AdamW optimizer_;
  generation::QuestionBuilder builder_;
  train::Validation validation_;
  train::StepProfile profile_;
  at::Device device_;
  PolicyLossOptions loss_options_;
  nn::HeadOptions head_;
  std::shared_ptr<models::VisionLanguageModel> reference_;
  RolloutCorrectionOptions correction_;
  std::int64_t filter_reward_ = -1;  // of dynamic sampling; -1: the sum
  std::int64_t step_ = 0;
  std::int64_t next_prompt_ = 0;  // place in the order of the questions
  std::int64_t num_nonfinite_ = 0;
};

}  // namespace

void run_grpo(const GrpoOptions& options, const train::Scorer& scorer) {
  options.check();
  if (options.run.num_threads > 0) at::set_num_threads(static_cast<int>(options.run.num_threads));
  train::explaining_memory(memory_levers(options), [&] { GrpoTrainer(options, scorer).run(); });
}

}  // namespace thinkvg::rl
