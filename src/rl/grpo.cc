#include "thinkvg/rl/grpo.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <deque>
#include <future>
#include <iterator>
#include <limits>
#include <map>
#include <numeric>
#include <optional>
#include <utility>

#include "rl/group_shares.h"
#include "rl/update_batch.h"
#include "thinkvg/core/error.h"
#include "thinkvg/core/files.h"
#include "thinkvg/core/interrupt.h"
#include "thinkvg/core/log.h"
#include "thinkvg/core/manifest.h"
#include "thinkvg/core/progress.h"
#include "thinkvg/core/random.h"
#include "thinkvg/generation/question.h"
#include "thinkvg/nn/exact.h"
#include "thinkvg/nn/workers.h"
#include "thinkvg/rewards/rollout_log.h"
#include "thinkvg/rewards/run_warnings.h"
#include "thinkvg/rl/advantage.h"
#include "thinkvg/rl/local_judge.h"
#include "thinkvg/rl/policy_loss.h"
#include "thinkvg/train/distributed.h"
#include "thinkvg/train/example.h"
#include "thinkvg/train/out_of_memory.h"
#include "thinkvg/train/parameter_shards.h"
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

// A few questions of the set by chance, their types taking turns, and of each type those with boxes first.
std::vector<data::Sample> watched_samples(const data::Dataset& dataset, std::int64_t count, std::uint64_t seed) {
  constexpr std::int64_t kCandidates = 64;
  std::map<data::QuestionType, std::deque<data::Sample>> by_type;
  for (const std::int64_t index : train::ordered_indices(dataset.size(), 0, std::min(kCandidates, dataset.size()),
                                                         hash_key("watched questions") + seed)) {
    data::Sample sample = dataset.get(index);
    std::deque<data::Sample>& same = by_type[sample.type];
    if (sample.regions.empty())
      same.push_back(std::move(sample));
    else
      same.insert(std::find_if(same.begin(), same.end(), [](const auto& other) { return other.regions.empty(); }),
                  std::move(sample));
  }
  std::vector<data::Sample> chosen;
  while (std::ssize(chosen) < count && !by_type.empty()) {
    for (auto entry = by_type.begin(); entry != by_type.end() && std::ssize(chosen) < count;) {
      chosen.push_back(std::move(entry->second.front()));
      entry->second.pop_front();
      entry = entry->second.empty() ? by_type.erase(entry) : std::next(entry);
    }
  }
  return chosen;
}

// A group as other processes and checkpoints get it, and back. With the question built anew it can be updated on;
// without, what it is rebuilt from suffices for metrics and logs.
Json group_to_json(const Group& group) {
  const generation::Question& question = *group.question;
  Json completions = Json::array();
  for (const ScoredCompletion& scored : group.completions) {
    Json scores = Json::array();
    for (const rewards::RewardScore& score : scored.reward.scores)
      scores.push_back({score.value, score.applicable, score.reason});
    completions.push_back({{"ids", scored.completion->ids},
                           {"logprobs", scored.completion->logprobs},
                           {"stop", scored.completion->finish == FinishReason::stop},
                           {"total", scored.reward.total},
                           {"applicable", scored.reward.applicable},
                           {"scores", scores},
                           {"advantage", scored.advantage},
                           {"in_loss", scored.in_loss}});
  }
  return {{"place", group.place},
          {"index", group.index},
          {"prompt", question.prompt.ids},
          {"picture", question.picture.string()},
          {"frame", question.frame.name()},
          {"width", question.original.width},
          {"height", question.original.height},
          {"completions", completions}};
}

// Means over one step, weighted by tokens.
struct UpdateMetrics {
  double loss = 0, kl = 0, entropy = 0, clip_low = 0, clip_high = 0, gap_sum = 0, gap_max = 0, grad_norm = 0;
  double log_prob_seconds = 0, num_tokens = 0;
};

class GrpoTrainer {
 public:
  GrpoTrainer(const GrpoOptions& options, dist::ProcessGroup& process_group, const train::Scorer& scorer)
      : options_(options),
        group_(process_group),
        dataset_(train::open_training_data(options.data, options.images)),
        device_(nn::device_setting(options.tuning.device, process_group.local_rank())),
        rewards_(options.rewards, reward_options(options), reward_resources(options.engine, device_)),
        scaling_(parse_advantage_scaling(options.scale_rewards)),
        run_(options.out, options.resume, options.run, process_group.is_main()),
        checkpoint_(options.resume ? train::agreed_path(process_group, [&] { return run_.latest_checkpoint(); })
                                   : std::filesystem::path()),
        trained_(checkpoint_.empty() ? train::TrainedModel(options.model, options.tuning, options.seed, device_)
                                     : train::TrainedModel(options.model, options.tuning, checkpoint_, device_)),
        shards_(train::shard_parameters(trained_, process_group)),
        optimizer_(trained_.groups(options.optimizer), options.optimizer, process_group, shards_.get()),
        builder_(trained_.bundle(),
                 {options.prompt,
                  options.images,
                  trained_.fixed_features(),
                  {options.run.picture_cache_mb << 20, at::get_num_threads(), options.run.pictures}}),
        validation_(options.eval, {trained_.bundle(), run_.path(), options.images, options.prompt, true, 0,
                                   trained_.fixed_features(), options.run, scorer, process_group}),
        profile_(options.run.profile_steps, run_.path() / "profile.json") {
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
      reference_ = models::load_bundle(models::resolve_model_folder(options.model),
                                       trained_.model().output_weight().scalar_type(), device_)
                       .model;
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
      lengths_.load_state(state.extra.value("lengths", Json::object()));
      lengths_in_use_.load_state(state.extra.value("lengths_in_use", Json::object()));
      if (options.sync_ref_model) read_reference(checkpoint_ / kReference);
      if (std::filesystem::exists(checkpoint_ / kAhead)) read_ahead(checkpoint_ / kAhead);
      spdlog::info("resuming from {}", checkpoint_.string());
    }
    by_layer_ = train::fetches_by_layer(shards_.get(), group_, device_);
    run_.open_logs(step_);
    if (!shards_) train::require_equal_parameters(group_, trained_.parameters());
    if (step_ > 0 && group_.is_main()) watch_ = rewards::watch_run(run_.path());
    if (options.watch_every > 0 && group_.is_main())
      watched_ = watched_samples(*dataset_, options.watched_questions, static_cast<std::uint64_t>(options.seed));
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
    spdlog::info("grpo: {} questions, {} steps of {} x {}, {}", format_count(dataset_->size()), format_count(steps),
                 options_.prompts_per_step, options_.group_size, train::device_text(device_));
    const auto progress = group_.is_main() ? std::make_unique<Progress>("grpo", steps, step_) : nullptr;
    const auto start = Clock::now();
    std::string eval_summary;
    if (step_ == 0) log_watched();
    while (step_ < steps) {
      profile_.begin_step();
      Json metrics = step();
      profile_.end_step();
      bool save_now = step_ == steps || (options_.run.save_every > 0 && step_ % options_.run.save_every == 0);
      const bool evaluates = validation_.due(step_, steps);
      if (evaluates) {
        train::ParameterShards::Whole whole(shards_.get(), group_.is_main(), by_layer_);
        const train::Validation::Result evaluation = validation_.evaluate(step_, [&] { whole.end_passes(); });
        metrics.update(evaluation.metrics);
        eval_summary = ", " + evaluation.summary;
        save_now |= evaluation.is_best;
      }
      if (evaluates || step_ % options_.run.log_every == 0 || step_ == steps) log(metrics);
      if (options_.watch_every > 0 && (step_ % options_.watch_every == 0 || step_ == steps)) log_watched();
      if (progress)
        progress->update(step_,
                         fmt::format("reward {:.3f}, {} tokens/s{}", metrics.at("reward").get<double>(),
                                     format_count(metrics.at("tokens_per_second").get<std::int64_t>()), eval_summary));
      const bool stop = group_.any(interrupt_requested(), "wish to stop");
      if (stop || save_now) save();
      if (stop && step_ < steps) {
        run_.finish();
        if (progress) progress->finish();
        spdlog::warn("grpo: asked to stop; step {} of {} is saved, go on with --resume", format_count(step_),
                     format_count(steps));
        return;
      }
    }
    run_.finish();
    if (progress) progress->finish();
    spdlog::info("grpo: {} steps in {}, written to {}", format_count(steps), format_duration(seconds_since(start)),
                 options_.out);
  }

 private:
  static constexpr const char* kReference = "trainer/reference.safetensors";
  static constexpr const char* kAhead = "trainer/drawn_ahead.cbor";

  void save() {
    models::FolderContent content = trained_.content();
    if (options_.sync_ref_model)
      for (const auto& item : reference_->named_parameters())
        content.tensors[kReference].emplace_back(item.key(), item.value());
    group_.set_phase("checkpoint", step_);
    if (ahead_) {
      const std::vector<std::uint8_t> bytes = Json::to_cbor(of_all_processes_json(ahead_->groups));
      content.texts[kAhead].assign(bytes.begin(), bytes.end());
    }
    if (shards_) content = shards_->fetched(std::move(content));
    const Json extra = {{"num_nonfinite", num_nonfinite_},
                        {"next_prompt", next_prompt_},
                        {"best", validation_.state()},
                        {"lengths", lengths_.state()},
                        {"lengths_in_use", lengths_in_use_.state()}};
    run_.save_checkpoint(content, optimizer_, {step_, extra, validation_.best_step()}, group_);
  }

  void read_reference(const std::filesystem::path& file) {
    const at::NoGradGuard no_grad;
    const auto stored = models::read_safetensors(file);
    for (const auto& item : reference_->named_parameters()) item.value().copy_(stored.at(item.key()));
  }

  // Completions that were drawn for the next step, of which each process takes its share.
  void read_ahead(const std::filesystem::path& file) {
    const std::string bytes = read_file(file);
    const Json stored = Json::from_cbor(bytes.begin(), bytes.end());
    const auto count = std::ssize(stored);
    ahead_.emplace();
    ahead_->num_groups = count;
    std::vector<data::Sample> samples;
    const std::vector<std::int64_t> places = group_.share_of(count);
    for (const std::int64_t place : places)
      samples.push_back(dataset_->get(stored[static_cast<std::size_t>(place)].at("index").get<std::int64_t>()));
    std::vector<generation::Question> questions = builder_.build(samples);
    for (std::size_t i = 0; i < places.size(); ++i)
      ahead_->groups.push_back(group_from_json(stored[static_cast<std::size_t>(places[i])],
                                               std::make_shared<const generation::Question>(std::move(questions[i]))));
    mark_drawn_ahead(*ahead_);
  }

  void sync_reference() {
    const at::NoGradGuard no_grad;
    std::map<const at::TensorImpl*, at::Tensor> references;  // by the policy's tensor
    const auto policy = trained_.model().named_parameters();
    for (const auto& item : reference_->named_parameters())
      references[policy[item.key()].unsafeGetTensorImpl()] = item.value();
    const auto move = [&](const at::Tensor& tensor) {
      const auto found = references.find(tensor.unsafeGetTensorImpl());
      if (found == references.end()) return;
      found->second.lerp_(tensor.detach(), options_.ref_model_mixup_alpha);
      references.erase(found);
    };
    if (shards_) shards_->visit(move);
    // What is split nowhere.
    for (const auto& item : policy) move(item.value());
  }

  // What drawing the completions of a step came to.
  struct Draw {
    std::vector<Group> groups;    // this process's
    std::int64_t num_groups = 0;  // of all processes
    std::int64_t num_dropped = 0;
    std::int64_t num_refills = 0;
    double rollout_seconds = 0, reward_seconds = 0;
    bool ahead = false;  // before the last update
  };

  // Completions of the next questions, with their rewards. With dynamic sampling other questions take the place of
  // groups without signal, for a number of rounds.
  Draw draw(train::ParameterShards::Whole& whole) {
    Draw result;
    for (std::int64_t round = 0;; ++round) {
      std::vector<Group> groups = draw_groups(options_.prompts_per_step - result.num_groups, result);
      whole.end_passes();
      // Otherwise they stay: they count in the normaliser, and a KL term moves them.
      if (!options_.dynamic_sampling) {
        result.num_groups = options_.prompts_per_step;
        result.groups = std::move(groups);
        break;
      }
      std::vector<Group> kept, dropped;
      for (Group& group : groups) (has_signal(group) ? kept : dropped).push_back(std::move(group));
      const std::vector<double> counts =
          group_.sum({static_cast<double>(kept.size()), static_cast<double>(dropped.size())}, "groups with signal");
      result.num_dropped += static_cast<std::int64_t>(counts[1]);
      const bool last = round == options_.max_refill;
      if (last && result.num_groups + static_cast<std::int64_t>(counts[0]) == 0) {
        kept = std::move(dropped);
        result.num_groups = static_cast<std::int64_t>(counts[1]);
      } else {
        result.num_groups += static_cast<std::int64_t>(counts[0]);
      }
      std::move(kept.begin(), kept.end(), std::back_inserter(result.groups));
      if (last || result.num_groups == options_.prompts_per_step) break;
      ++result.num_refills;
    }
    prefetch_next();
    return result;
  }

  // The next step's pictures are read while this one's update is computed.
  void prefetch_next() {
    std::vector<data::Sample> samples;
    const std::vector<std::int64_t> indices = train::ordered_indices(
        dataset_->size(), next_prompt_, options_.prompts_per_step, static_cast<std::uint64_t>(options_.seed));
    for (const std::int64_t place : own_places(indices, lengths_))
      samples.push_back(dataset_->get(indices[static_cast<std::size_t>(place)]));
    builder_.prefetch(samples);
  }

  // Of these rows of the data set, those whose completions this process draws.
  std::vector<std::int64_t> own_places(const std::vector<std::int64_t>& indices, const ExpectedLengths& lengths) const {
    if (group_.size() == 1) return group_.share_of(std::ssize(indices));
    std::vector<double> costs;
    for (const std::int64_t index : indices)
      costs.push_back(lengths.of(data::question_type_name(dataset_->get(index).type)));
    return balanced_shares(costs, group_.size())[static_cast<std::size_t>(group_.rank())];
  }

  // Behind a step, of whose pictures the next ones were read ahead by the lengths that are in use from now on.
  void learn_lengths(const std::vector<Group>& groups) {
    lengths_in_use_ = lengths_;
    std::map<std::string, std::pair<double, double>> step;
    for (const Group& group : groups) {
      auto& [tokens, completions] = step[data::question_type_name(group.question->sample.type)];
      for (const ScoredCompletion& scored : group.completions) {
        tokens += static_cast<double>(scored.completion->ids.size());
        completions += 1;
      }
    }
    lengths_.add(step);
  }

  // This process's share of some questions, ready to be completed.
  struct Prepared {
    std::vector<generation::Question> questions;
    std::vector<std::int64_t> indices;  // rows of the data set
    std::vector<std::int64_t> places;   // in the order of the run's questions
    std::vector<at::Tensor> features;   // of their pictures [I, D], no gradient
  };

  // Of the next `count` questions.
  Prepared prepare(std::int64_t count) {
    Prepared prepared;
    const std::vector<std::int64_t> all =
        train::ordered_indices(dataset_->size(), next_prompt_, count, static_cast<std::uint64_t>(options_.seed));
    std::vector<data::Sample> samples;
    for (const std::int64_t place : own_places(all, lengths_in_use_)) {
      prepared.indices.push_back(all[static_cast<std::size_t>(place)]);
      prepared.places.push_back(next_prompt_ + place);
      samples.push_back(dataset_->get(prepared.indices.back()));
    }
    next_prompt_ += count;
    prepared.questions = builder_.build(samples);
    prepared.features = features_now(prepared.questions);
    return prepared;
  }

  std::vector<at::Tensor> features_now(const std::vector<generation::Question>& questions) {
    if (questions.empty()) return {};  // more processes than questions
    std::vector<const generation::Question*> pointers;
    for (const generation::Question& question : questions) pointers.push_back(&question);
    const at::NoGradGuard no_grad;
    return builder_.features(pointers);
  }

  // Completions of the questions, with their rewards, for the step that counts `step` done before it. Uses nothing that
  // an update uses, but for the weights.
  std::vector<Group> complete(Prepared prepared, std::int64_t step, Draw& timed) {
    if (prepared.questions.empty()) return {};
    const auto rollout_start = Clock::now();
    std::vector<std::vector<Completion>> completions = roll_out(prepared, step, options_.group_size, options_.sampling);
    timed.rollout_seconds += seconds_since(rollout_start);
    const auto reward_start = Clock::now();
    std::vector<Group> groups = scored_groups(std::move(prepared.questions), std::move(completions), step);
    for (std::size_t i = 0; i < groups.size(); ++i) {
      groups[i].place = prepared.places[i];
      groups[i].index = prepared.indices[i];
    }
    timed.reward_seconds += seconds_since(reward_start);
    return groups;
  }

  // This process's share of `count` questions with their completions.
  std::vector<Group> draw_groups(std::int64_t count, Draw& timed) {
    group_.set_phase("rollout", step_ + 1);
    return complete(prepare(count), step_, timed);
  }

  // What the step after this one will learn from, by the weights before this one's update; ready before they change.
  std::future<Draw> draw_ahead() {
    auto prepared = std::make_shared<Prepared>(prepare(options_.prompts_per_step));
    prefetch_next();
    return std::async(std::launch::async, [this, prepared, threads = at::get_num_threads()] {
      at::set_num_threads(threads);
      Draw draw;
      draw.num_groups = options_.prompts_per_step;
      draw.groups = complete(std::move(*prepared), step_ + 1, draw);
      mark_drawn_ahead(draw);
      return draw;
    });
  }

  // The weights that drew them are the old policy, unless a pass before the update looks at the newest ones.
  void mark_drawn_ahead(Draw& draw) const {
    draw.ahead = true;
    if (correction_.mode != RolloutCorrection::none) return;
    for (Group& group : draw.groups)
      for (ScoredCompletion& scored : group.completions) scored.old_log_probs = at::tensor(scored.completion->logprobs);
  }

  std::vector<Group> scored_groups(std::vector<generation::Question> questions,
                                   std::vector<std::vector<Completion>> completions, std::int64_t step) {
    std::vector<Group> groups(questions.size());
    for (std::size_t i = 0; i < questions.size(); ++i) {
      groups[i].question = std::make_shared<const generation::Question>(std::move(questions[i]));
      groups[i].drawn = std::move(completions[i]);
      for (const Completion& completion : groups[i].drawn)
        groups[i].completions.push_back(read_completion(*groups[i].question, completion));
    }
    score(groups, step);
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
    const dist::CommunicationStats before = group_.total_stats();
    Draw drawn;
    std::vector<Group>& own = drawn.groups;
    // Declared behind what it uses: whatever is thrown waits for it.
    std::future<Draw> next;
    Clock::time_point update_start;
    double forward_seconds = 0;
    {
      train::ParameterShards::Whole whole(shards_.get(), true, by_layer_);
      drawn = ahead_ ? *std::exchange(ahead_, std::nullopt) : draw(whole);
      drawn_ahead_ = drawn.ahead;
      if (options_.overlap_rollout && step_ + 1 < options_.run.steps) next = draw_ahead();
      update_start = Clock::now();
      group_.set_phase("update", step_ + 1);
      if (needs_forward_pass()) forward_pass(own);
      whole.end_passes();
      forward_seconds = seconds_since(update_start);
    }
    const Advantages advantages = set_advantages(own);
    const double lr = train::learning_rate(options_.optimizer, step_, options_.run.steps);
    const UpdateMetrics update_metrics = update(own, lr, next);
    if (next.valid()) ahead_ = next.get();
    const double update_seconds = seconds_since(update_start);
    ++step_;
    if (options_.sync_ref_model && step_ % options_.ref_model_sync_steps == 0) sync_reference();

    const std::vector<Group> groups = of_all_processes(std::move(own));
    log_samples(groups);
    learn_lengths(groups);
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
    metrics.update(train::communication_metrics(group_, before));
    metrics.update(train::device_metrics(device_));
    return metrics;
  }

  // The step's groups, in the order in which one process would have them.
  std::vector<Group> of_all_processes(std::vector<Group> own) const {
    if (group_.size() == 1) return own;
    std::vector<Group> all;
    for (const Json& json : of_all_processes_json(own)) all.push_back(group_from_json(json, question_from_json(json)));
    return all;
  }

  Json of_all_processes_json(const std::vector<Group>& own) const {
    std::vector<Json> all;
    for (const Group& group : own) all.push_back(group_to_json(group));
    if (group_.size() > 1) {
      const std::vector<std::uint8_t> bytes = Json::to_cbor(Json(all));
      all.clear();
      for (const std::string& text : group_.gather_texts(std::string(bytes.begin(), bytes.end()), "completions"))
        for (const Json& json : Json::from_cbor(text)) all.push_back(json);
    }
    std::stable_sort(all.begin(), all.end(), [](const Json& a, const Json& b) {
      return a.at("place").get<std::int64_t>() < b.at("place").get<std::int64_t>();
    });
    return all;
  }

  std::shared_ptr<const generation::Question> question_from_json(const Json& json) const {
    auto question = std::make_shared<generation::Question>();
    question->sample = dataset_->get(json.at("index").get<std::int64_t>());
    question->prompt.ids = json.at("prompt").get<std::vector<std::int64_t>>();
    question->picture = json.at("picture").get<std::string>();
    question->frame = grounding::BoxFrame::parse(json.at("frame").get<std::string>());
    question->original = {json.at("width").get<std::int64_t>(), json.at("height").get<std::int64_t>()};
    return question;
  }

  Group group_from_json(const Json& json, std::shared_ptr<const generation::Question> question) const {
    Group group;
    group.place = json.at("place").get<std::int64_t>();
    group.index = json.at("index").get<std::int64_t>();
    group.question = std::move(question);
    for (const Json& one : json.at("completions"))
      group.drawn.push_back({one.at("ids").get<std::vector<std::int64_t>>(),
                             one.at("logprobs").get<std::vector<float>>(),
                             one.at("stop").get<bool>() ? FinishReason::stop : FinishReason::length});
    for (std::size_t g = 0; g < group.drawn.size(); ++g) {
      const Json& one = json.at("completions").at(g);
      ScoredCompletion scored = read_completion(*group.question, group.drawn[g]);
      scored.reward.total = one.at("total").get<double>();
      scored.reward.applicable = one.at("applicable").get<bool>();
      for (const Json& score : one.at("scores"))
        scored.reward.scores.push_back(
            {score.at(0).get<double>(), score.at(1).get<bool>(), score.at(2).get<std::string>()});
      scored.advantage = one.at("advantage").get<double>();
      scored.in_loss = one.at("in_loss").get<bool>();
      group.completions.push_back(std::move(scored));
    }
    return group;
  }

  // Whether something has to be known of the weights before the update that the update itself does not compute.
  bool needs_forward_pass() const {
    return (options_.kl_in_reward && options_.beta != 0) || options_.top_entropy_quantile < 1 ||
           correction_.mode != RolloutCorrection::none ||
           // A pass of an update runs split weights once: not again for the reference below their adapters.
           (shards_ && options_.beta != 0 && !reference_);
  }

  // Log-probabilities and entropies of all completions under the weights before the update, and under the reference.
  void forward_pass(std::vector<Group>& groups) {
    std::vector<Group*> all;
    std::vector<std::int64_t> sizes;
    for (Group& group : groups) {
      all.push_back(&group);
      sizes.push_back(group.num_tokens());
    }
    const auto splits = split(sizes, train::pass_workers(device_));
    const at::NoGradGuard no_grad;
    const auto pass = [&](std::int64_t i) {
      const auto& [begin, end] = splits[static_cast<std::size_t>(i)];
      const std::vector<Group*> some(all.begin() + static_cast<std::ptrdiff_t>(begin),
                                     all.begin() + static_cast<std::ptrdiff_t>(end));
      const UpdateBatch batch = make_update_batch(some, features_of(some), device_, /*all=*/true);
      const nn::TokenStats policy = completion_stats(trained_.model(), batch, head_);
      if (!batch.completions.front()->old_log_probs.defined())
        share_out(batch, policy.logprob, &ScoredCompletion::old_log_probs);
      share_out(batch, policy.entropy, &ScoredCompletion::entropies);
      if (options_.beta != 0) share_out(batch, reference_log_probs(batch), &ScoredCompletion::ref_log_probs);
    };
    if (device_.is_cpu())
      nn::run_each_alone(std::ssize(splits), pass);
    else
      for (std::int64_t i = 0; i < std::ssize(splits); ++i) pass(i);
  }

  std::vector<at::Tensor> features_of(const std::vector<Group*>& groups) {
    std::vector<const generation::Question*> questions;
    for (const Group* group : groups) questions.push_back(group->question.get());
    return builder_.features(questions);
  }

  // Neighbouring groups that share a pass.
  std::vector<std::pair<std::size_t, std::size_t>> split(const std::vector<std::int64_t>& sizes,
                                                         std::int64_t num_workers) const {
    return train::split_evenly(sizes, {options_.run.micro_batch_tokens, num_workers});
  }

  std::vector<std::vector<Completion>> roll_out(const Prepared& prepared, std::int64_t step, std::int64_t group_size,
                                                const generation::SamplingOptions& sampling) const {
    std::vector<generation::GenerationRequest> requests;
    for (std::size_t i = 0; i < prepared.questions.size(); ++i)
      requests.push_back({prepared.questions[i].prompt,
                          prepared.questions[i].grids,
                          {prepared.features[i]},
                          group_size,
                          {hash_key("rollout"), static_cast<std::uint64_t>(options_.seed),
                           static_cast<std::uint64_t>(step), static_cast<std::uint64_t>(prepared.indices[i])}});
    generation::RolloutEngine engine(trained_.model(), options_.engine);
    return engine.generate(requests, sampling);
  }

  ScoredCompletion read_completion(const generation::Question& question, const Completion& completion) const {
    ScoredCompletion scored;
    scored.completion = &completion;
    scored.text = trained_.bundle().tokenizer->decode(completion.ids);
    scored.parsed = grounding::parse_response(scored.text, question.frame, options_.reward.require_think);
    scored.in_loss = !(completion.finish == FinishReason::length && options_.mask_truncated);
    return scored;
  }

  // What the rewards see of completion g of a group, in the step that counts `step` done before it. `geometry`: of the
  // question's picture; must outlive the result.
  rewards::RewardInput reward_input(const Group& group, std::size_t g, const grounding::ImageGeometry& geometry,
                                    std::int64_t step) const {
    const ScoredCompletion& scored = group.completions[g];
    return {.sample = group.question->sample,
            .parsed = scored.parsed,
            .geometry = geometry,
            .text = scored.text,
            .frame = group.question->frame,
            .truncated = scored.completion->finish == FinishReason::length,
            .num_tokens = static_cast<std::int64_t>(scored.completion->ids.size()),
            .ids = scored.completion->ids,
            .step = step + 1,
            .completion = static_cast<std::int64_t>(g)};
  }

  // All completions of a step together: a judge or a program is asked for all of them at once.
  void score(std::vector<Group>& groups, std::int64_t step) {
    std::vector<grounding::ImageGeometry> geometries;
    for (const Group& group : groups) geometries.push_back(group.question->geometry());
    std::vector<rewards::RewardInput> inputs;
    for (std::size_t i = 0; i < groups.size(); ++i)
      for (std::size_t g = 0; g < groups[i].completions.size(); ++g)
        inputs.push_back(reward_input(groups[i], g, geometries[i], step));
    std::vector<rewards::CompletionReward> scores = rewards_.score(inputs);
    std::size_t next = 0;
    for (Group& group : groups)
      for (ScoredCompletion& scored : group.completions) scored.reward = std::move(scores[next++]);
  }

  Advantages set_advantages(std::vector<Group>& groups) const {
    constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
    const bool decoupled = options_.multi_objective_aggregation == "normalize_then_sum";
    std::vector<double> weights;
    std::vector<RewardRow> rows;
    for (std::size_t k = 0; k < rewards_.size(); ++k) weights.push_back(rewards_.weight(k));
    for (const Group& group : groups) {
      for (const ScoredCompletion& scored : group.completions) {
        double penalty = 0;
        if (options_.kl_in_reward && options_.beta != 0)
          penalty = options_.beta *
                    kl_estimate(scored.old_log_probs, scored.ref_log_probs, loss_options_.kl).sum().item<double>();
        RewardRow& row = rows.emplace_back();
        row.place = group.place;
        row.total = scored.reward.applicable ? scored.reward.total - penalty : kNan;
        for (const rewards::RewardScore& score : scored.reward.scores)
          row.values.push_back(score.applicable ? score.value : kNan);
      }
    }
    rows = of_all_processes(rows);
    std::vector<double> totals;
    std::vector<std::vector<double>> values;
    for (RewardRow& row : rows) {
      totals.push_back(row.total);
      values.push_back(std::move(row.values));
    }
    Advantages advantages = decoupled ? decoupled_advantages(values, weights, options_.group_size)
                                      : group_advantages(totals, options_.group_size, scaling_);
    std::size_t i = 0;
    for (Group& group : groups) {
      while (rows[i].place != group.place) ++i;
      for (ScoredCompletion& scored : group.completions) scored.advantage = advantages.values[i++];
    }
    return advantages;
  }

  // What the advantages of a step are computed from, of one completion.
  struct RewardRow {
    std::int64_t place = 0;      // of its group
    double total = 0;            // NaN: no reward could judge it
    std::vector<double> values;  // of each reward
  };

  // Those of all processes, in the order of one process.
  std::vector<RewardRow> of_all_processes(const std::vector<RewardRow>& own) const {
    if (group_.size() == 1) return own;
    std::string mine;
    const auto add = [&](double value) { mine.append(reinterpret_cast<const char*>(&value), sizeof(value)); };
    for (const RewardRow& row : own) {
      add(static_cast<double>(row.place));
      add(row.total);
      for (const double value : row.values) add(value);
    }
    const std::size_t width = 2 + rewards_.size();
    std::vector<RewardRow> all;
    for (const std::string& bytes : group_.gather_texts(mine, "rewards")) {
      std::vector<double> numbers(bytes.size() / sizeof(double));
      std::memcpy(numbers.data(), bytes.data(), numbers.size() * sizeof(double));
      for (std::size_t i = 0; i < numbers.size(); i += width)
        all.push_back({static_cast<std::int64_t>(numbers[i]),
                       numbers[i + 1],
                       {numbers.begin() + static_cast<std::ptrdiff_t>(i + 2),
                        numbers.begin() + static_cast<std::ptrdiff_t>(i + width)}});
    }
    std::stable_sort(all.begin(), all.end(), [](const RewardRow& a, const RewardRow& b) { return a.place < b.place; });
    return all;
  }

  // `next`: who uses the present weights, if anyone.
  UpdateMetrics update(std::vector<Group>& groups, double lr, std::future<Draw>& next) {
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
    const std::vector<double> totals =
        group_.sum({static_cast<double>(total_completions), static_cast<double>(total_tokens),
                    static_cast<double>(in_loss.size())},
                   "completions in the loss");
    total_completions = static_cast<std::int64_t>(totals[0]);
    total_tokens = static_cast<std::int64_t>(totals[1]);
    if (totals[2] == 0) return metrics;
    if (options_.top_entropy_quantile < 1) total_masked_tokens = mark_top_entropy(scored_in_loss);
    // With split weights the passes run one after the other.
    const auto splits = split(sizes, shards_ ? 1 : train::pass_workers(device_));
    const auto num_micro_batches =
        static_cast<std::int64_t>(group_.sum({static_cast<double>(splits.size())}, "micro-batches").front());
    double tokens_seen = 0;
    for (std::int64_t pass = 0; pass < options_.updates_per_rollout; ++pass) {
      std::vector<UpdateMetrics> parts(splits.size());
      const auto loss_of = [&](std::int64_t i) {
        const auto m = static_cast<std::size_t>(i);
        UpdateMetrics& part = parts[m];
        const std::vector<Group*> some(in_loss.begin() + static_cast<std::ptrdiff_t>(splits[m].first),
                                       in_loss.begin() + static_cast<std::ptrdiff_t>(splits[m].second));
        const UpdateBatch batch = make_update_batch(some, features_of(some), device_, /*all=*/false);
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
        input.num_micro_batches = num_micro_batches;
        const PolicyLoss loss = policy_loss(input, loss_options_);
        part.loss = loss.loss.item<double>();
        part.kl = loss.kl_sum;
        part.clip_low = loss.clipped_low;
        part.clip_high = loss.clipped_high;
        if (pass == 0) {
          part.entropy = policy.entropy.detach().sum().item<double>();
          const at::Tensor& now = drawn_ahead_ ? policy.logprob.detach() : input.old_log_probs;
          const at::Tensor gap = (now - batch.rollout_log_probs).exp().sub(1).abs();
          part.gap_sum = gap.sum().item<double>();
          part.gap_max = gap.max().item<double>();
          part.num_tokens = static_cast<double>(batch.targets.size(0));
        }
        return loss.loss;
      };
      const std::vector<at::Tensor> gradients =
          optimizer_.accumulate(static_cast<std::int64_t>(splits.size()), loss_of);
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
      if (next.valid()) ahead_ = next.get();
      metrics.grad_norm = optimizer_.step(gradients, lr);
      if (!std::isfinite(metrics.grad_norm)) {
        spdlog::warn("step {}: the gradient is not finite; the update was skipped", step_ + 1);
        if (++num_nonfinite_ >= options_.run.max_nonfinite_steps)
          throw_failure("{} updates had a gradient that was not finite; lower optimizer.lr", num_nonfinite_);
      }
    }
    metrics.num_tokens = tokens_seen;
    metrics = over_processes(metrics);
    tokens_seen = metrics.num_tokens;
    const double passes = static_cast<double>(options_.updates_per_rollout) * tokens_seen;
    metrics.kl /= passes;
    metrics.clip_low /= passes;
    metrics.clip_high /= passes;
    metrics.entropy /= tokens_seen;
    metrics.gap_sum /= tokens_seen;
    return metrics;
  }

  UpdateMetrics over_processes(UpdateMetrics metrics) {
    if (group_.size() == 1) return metrics;
    const std::vector<double> sums = group_.sum({metrics.loss, metrics.kl, metrics.clip_low, metrics.clip_high,
                                                 metrics.entropy, metrics.gap_sum, metrics.num_tokens},
                                                "update metrics");
    const at::Tensor largest = at::full({1}, metrics.gap_max, at::kDouble);
    group_.all_reduce(largest, "largest gap", dist::Reduction::max);
    metrics.loss = sums[0];
    metrics.kl = sums[1];
    metrics.clip_low = sums[2];
    metrics.clip_high = sums[3];
    metrics.entropy = sums[4];
    metrics.gap_sum = sums[5];
    metrics.num_tokens = sums[6];
    metrics.gap_max = largest.item<double>();
    return metrics;
  }

  // Sets token_mask of each completion; returns the number of tokens that stay, over all processes.
  std::int64_t mark_top_entropy(const std::vector<ScoredCompletion*>& completions) const {
    std::vector<at::Tensor> entropies;
    std::vector<std::int64_t> lengths;
    for (const ScoredCompletion* scored : completions) {
      entropies.push_back(scored->entropies);
      lengths.push_back(scored->entropies.size(0));
    }
    const at::Tensor own = entropies.empty() ? at::empty({0}, at::kFloat) : at::cat(entropies);
    const auto [all, begin] = joined_over_processes(own);
    const at::Tensor mask = top_entropy_tokens(all, options_.top_entropy_quantile);
    const std::vector<at::Tensor> parts = mask.narrow(0, begin, own.numel()).split_with_sizes(lengths);
    for (std::size_t i = 0; i < parts.size(); ++i) completions[i]->token_mask = parts[i];
    return mask.sum().item<std::int64_t>();
  }

  // Float numbers of all processes in a row, and where this one's begin.
  std::pair<at::Tensor, std::int64_t> joined_over_processes(const at::Tensor& own) const {
    if (group_.size() == 1) return {own, 0};
    const at::Tensor plain = own.to(at::kFloat).contiguous();
    std::string bytes(static_cast<std::size_t>(plain.nbytes()), '\0');
    if (!bytes.empty()) std::memcpy(bytes.data(), plain.const_data_ptr(), bytes.size());
    std::vector<at::Tensor> parts;
    std::int64_t begin = 0;
    const std::vector<std::string> texts = group_.gather_texts(bytes, "entropies");
    for (std::size_t rank = 0; rank < texts.size(); ++rank) {
      const auto numbers = static_cast<std::int64_t>(texts[rank].size() / sizeof(float));
      at::Tensor part = at::empty({numbers}, at::kFloat);
      if (numbers > 0) std::memcpy(part.mutable_data_ptr(), texts[rank].data(), texts[rank].size());
      if (static_cast<std::int64_t>(rank) < group_.rank()) begin += numbers;
      parts.push_back(std::move(part));
    }
    return {at::cat(parts), begin};
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

  void log(const Json& metrics) {
    if (!group_.is_main()) return;
    run_.log(metrics);
    for (const rewards::RunWarning& warning : watch_.add_step(metrics))
      spdlog::warn("step {}: {}", step_, warning.text);
  }

  // Completion g of a group, with what it got; the step is the one that has ended last.
  Json completion_line(const Group& group, std::size_t g) const {
    const ScoredCompletion& scored = group.completions[g];
    const grounding::ImageGeometry geometry = group.question->geometry();
    Json scores = Json::object();
    for (std::size_t k = 0; k < rewards_.size(); ++k) {
      const rewards::RewardScore& score = scored.reward.scores[k];
      scores[rewards_.name(k)] = {{"value", score.applicable ? Json(score.value) : Json()}, {"reason", score.reason}};
    }
    Json line = rewards::rollout_to_json(reward_input(group, g, geometry, step_));
    line["step"] = step_;
    line["reward"] = scored.reward.total;
    line["rewards"] = scores;
    return line;
  }

  void log_samples(const std::vector<Group>& groups) {
    if (!group_.is_main()) return;
    std::int64_t left = options_.samples_per_step;
    for (const Group& group : groups) {
      for (std::size_t g = 0; g < group.completions.size() && left > 0; ++g, --left) {
        Json line = completion_line(group, g);
        line["advantage"] = group.completions[g].advantage;
        run_.log_sample(line);
        watch_.add_completion(line);
      }
    }
  }

  // The same few questions, answered by the present weights with the likeliest tokens.
  void log_watched() {
    if (options_.watch_every == 0 || options_.watched_questions == 0) return;
    group_.set_phase("watched questions", step_);
    train::ParameterShards::Whole whole(shards_.get(), group_.is_main(), by_layer_);
    if (watched_.empty()) return whole.end_passes();  // rank 0 asks them
    Prepared prepared;
    prepared.questions = builder_.build(watched_);
    prepared.features = features_now(prepared.questions);
    prepared.indices.resize(prepared.questions.size());  // nothing is drawn
    generation::SamplingOptions sampling = options_.sampling;
    sampling.temperature = 0;
    std::vector<std::vector<Completion>> completions = roll_out(prepared, step_, 1, sampling);
    whole.end_passes();
    for (const Group& group : scored_groups(std::move(prepared.questions), std::move(completions), step_))
      run_.log_sample(completion_line(group, 0), "watched.jsonl");
  }

  GrpoOptions options_;
  dist::ProcessGroup& group_;
  // The passes of the trainer must add up as the engine's do.
  std::unique_ptr<nn::ExactForward> exact_ = options_.engine.exact ? std::make_unique<nn::ExactForward>() : nullptr;
  std::shared_ptr<const data::Dataset> dataset_;
  at::Device device_;
  rewards::RewardSet rewards_;
  AdvantageScaling scaling_;
  train::RunFolder run_;
  std::filesystem::path checkpoint_;
  train::TrainedModel trained_;
  std::unique_ptr<train::ParameterShards> shards_;  // null: every process has all weights
  bool by_layer_ = false;                           // fetched for rollouts and evaluations
  train::DistributedAdamW optimizer_;
  generation::QuestionBuilder builder_;
  train::Validation validation_;
  train::StepProfile profile_;
  PolicyLossOptions loss_options_;
  nn::HeadOptions head_;
  std::shared_ptr<models::VisionLanguageModel> reference_;
  RolloutCorrectionOptions correction_;
  std::int64_t filter_reward_ = -1;  // of dynamic sampling; -1: the sum
  std::int64_t step_ = 0;
  std::int64_t next_prompt_ = 0;              // place in the order of the questions
  ExpectedLengths lengths_, lengths_in_use_;  // of completions: up to the last step, and up to the one before
  std::optional<Draw> ahead_;                 // what the next step learns from, where that is drawn already
  bool drawn_ahead_ = false;                  // whether this step's is so
  std::int64_t num_nonfinite_ = 0;
  std::vector<data::Sample> watched_;
  rewards::RunWatch watch_;
};

}  // namespace

void run_grpo(const GrpoOptions& options, dist::ProcessGroup& group, const train::Scorer& scorer) {
  try {
    options.check();
    if (options.run.num_threads > 0) at::set_num_threads(static_cast<int>(options.run.num_threads));
    train::explaining_memory(memory_levers(options), [&] { GrpoTrainer(options, group, scorer).run(); });
  } catch (const std::exception& error) {
    group.fail(error);
    throw;
  }
}

void run_grpo(const GrpoOptions& options, const train::Scorer& scorer) {
  dist::ProcessGroup alone;
  run_grpo(options, alone, scorer);
}

}  // namespace thinkvg::rl
