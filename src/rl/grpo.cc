#include "thinkvg/rl/grpo.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <numeric>

#include "thinkvg/core/error.h"
#include "thinkvg/core/log.h"
#include "thinkvg/core/manifest.h"
#include "thinkvg/core/progress.h"
#include "thinkvg/core/random.h"
#include "thinkvg/data/loader.h"
#include "thinkvg/nn/workers.h"
#include "thinkvg/rl/policy_loss.h"
#include "thinkvg/train/example.h"
#include "thinkvg/train/run_folder.h"

namespace thinkvg::rl {
namespace {

using Clock = std::chrono::steady_clock;
using generation::Completion;
using generation::FinishReason;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

struct WeightedReward {
  std::unique_ptr<Reward> reward;
  double weight;
};

std::vector<WeightedReward> parse_rewards(const std::vector<std::string>& texts, const RewardOptions& options) {
  std::vector<WeightedReward> rewards;
  for (const std::string& text : texts) {
    const std::size_t equals = text.find('=');
    double weight = 1;
    if (equals != std::string::npos) {
      const char* end = text.data() + text.size();
      const auto [stop, error] = std::from_chars(text.data() + equals + 1, end, weight);
      if (error != std::errc() || stop != end) throw_invalid("rewards: '{}' must be name or name=weight", text);
    }
    rewards.push_back({make_reward(text.substr(0, equals), options), weight});
  }
  if (rewards.empty()) throw_invalid("rewards is empty; give at least one, such as grounding=1");
  return rewards;
}

// One completion with what it was worth.
struct ScoredCompletion {
  const Completion* completion = nullptr;
  std::string text;
  std::vector<RewardScore> scores;  // one a reward
  double reward = 0;
  double advantage = 0;
  bool in_loss = true;
};

// A question with all of its completions: what an update pass shares the prompt of.
struct Group {
  const generation::Question* question = nullptr;
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
  at::Tensor rows;               // [N] rows of the pack whose hidden state predicts a completion token
  at::Tensor targets;            // [N]
  at::Tensor rollout_log_probs;  // [N]
  at::Tensor sequence;           // [N] completion of the batch
  at::Tensor lengths;            // [B]
  at::Tensor advantages;         // [B]
};

UpdateBatch make_update_batch(generation::QuestionBuilder& builder, const std::vector<Group*>& groups,
                              at::Device device) {
  std::vector<const generation::Question*> questions;
  for (const Group* group : groups) questions.push_back(group->question);
  const std::vector<at::Tensor> features = builder.features(questions);
  models::PackBuilder packer;
  std::vector<std::int64_t> rows, targets, sequence, lengths;
  std::vector<float> rollout;
  std::vector<double> advantages;
  for (std::size_t i = 0; i < groups.size(); ++i) {
    const generation::Question& question = *questions[i];
    const std::int64_t prefix = packer.num_sequences();
    const std::int64_t first =
        packer.add({question.prompt.ids, question.positions.positions, question.prompt.image_rows, {features[i]}, -1});
    const std::int64_t last_of_prompt = first + static_cast<std::int64_t>(question.prompt.ids.size()) - 1;
    for (const ScoredCompletion& scored : groups[i]->completions) {
      if (!scored.in_loss) continue;
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
    }
  }
  UpdateBatch batch;
  batch.pack = packer.build(device);
  batch.rows = at::tensor(rows, at::kLong).to(device);
  batch.targets = at::tensor(targets, at::kLong).to(device);
  batch.rollout_log_probs = at::tensor(rollout, at::kFloat).to(device);
  batch.sequence = at::tensor(sequence, at::kLong).to(device);
  batch.lengths = at::tensor(lengths, at::kLong).to(device);
  batch.advantages = at::tensor(advantages, at::kDouble).to(device);
  return batch;
}

train::TargetLogProbs completion_log_probs(models::VisionLanguageModel& model, const UpdateBatch& batch,
                                           const train::TargetOptions& options) {
  nn::PackedAttention attention(batch.pack.layout);
  const at::Tensor hidden = models::run_pack(model, batch.pack, attention).index_select(0, batch.rows);
  return train::target_log_probs(model, hidden, batch.targets, options);
}

// Means over one step, weighted by tokens.
struct UpdateMetrics {
  double loss = 0, kl = 0, entropy = 0, clip_low = 0, clip_high = 0, gap_sum = 0, gap_max = 0, grad_norm = 0;
  double log_prob_seconds = 0, num_tokens = 0;
};

Json box_list(const std::vector<grounding::Region>& regions) {
  Json list = Json::array();
  for (const grounding::Region& region : regions)
    list.push_back({{"ref", region.name}, {"box", {region.box.x1, region.box.y1, region.box.x2, region.box.y2}}});
  return list;
}

class GrpoTrainer {
 public:
  explicit GrpoTrainer(const GrpoOptions& options)
      : options_(options),
        dataset_(train::open_training_data(options.data, options.images)),
        rewards_(parse_rewards(options.rewards, options.reward)),
        scaling_(parse_advantage_scaling(options.scale_rewards)),
        run_(options.out, options.resume) {
    loss_options_.type = parse_loss_type(options.loss_type);
    loss_options_.ratio_level = parse_ratio_level(options.importance_sampling_level);
    loss_options_.epsilon_low = options.epsilon_low;
    loss_options_.epsilon_high = options.epsilon_high;
    loss_options_.delta = options.delta;
    loss_options_.sapo_temperature_pos = options.sapo_temperature_pos;
    loss_options_.sapo_temperature_neg = options.sapo_temperature_neg;
    loss_options_.beta = options.beta;
    loss_options_.max_completion_length = options.sampling.max_new_tokens;

    const std::filesystem::path start = models::resolve_model_folder(options.model);
    const std::filesystem::path checkpoint = options.resume ? run_.latest_checkpoint() : std::filesystem::path();
    bundle_ = models::load_bundle(checkpoint.empty() ? start : checkpoint);
    parameters_ = train::trainable_parameters(*bundle_.model, options.freeze_vision);
    optimizer_ = std::make_unique<train::AdamW>(parameters_, options.optimizer);
    if (options.beta != 0) {
      reference_ = models::load(start);
      for (const at::Tensor& parameter : reference_->parameters()) parameter.set_requires_grad(false);
    }
    if (!checkpoint.empty()) {
      step_ = run_.load_checkpoint(checkpoint, *optimizer_).step;
      spdlog::info("resuming from {}", checkpoint.string());
    } else {
      run_.write_config(settings_to_json(options));
      run_.write_manifest(make_manifest("grpo", options.seed, {{"data", options.data.path}}));
    }
    builder_ = std::make_unique<generation::QuestionBuilder>(
        bundle_, generation::QuestionBuilder::Options{
                     options.prompt,
                     options.images,
                     options.freeze_vision,
                     {options.run.picture_cache_mb << 20, at::get_num_threads(), options.run.pictures}});
    loader_ = std::make_unique<data::BatchLoader>(
        dataset_, data::LoaderOptions{options.prompts_per_step, static_cast<std::uint64_t>(options.seed), 2, step_},
        [this](const std::vector<data::Sample>& samples) { builder_->prefetch(samples); });
    device_ = bundle_.model->parameters().front().device();
    const std::vector<std::int64_t> banned = models::banned_ids(bundle_.model->special_tokens());
    if (!banned.empty()) banned_ = at::tensor(banned, at::kLong).to(device_);
  }

  void run() {
    const std::int64_t steps = options_.run.steps;
    spdlog::info("grpo: {} questions, {} steps of {} x {}, {} threads", format_count(dataset_->size()),
                 format_count(steps), options_.prompts_per_step, options_.group_size, at::get_num_threads());
    Progress progress("grpo", steps, step_);
    const auto start = Clock::now();
    while (step_ < steps) {
      const Json metrics = step();
      if (step_ % options_.run.log_every == 0 || step_ == steps) run_.log(metrics);
      progress.update(step_, fmt::format("reward {:.3f}, {} tokens/s", metrics.at("reward").get<double>(),
                                         format_count(metrics.at("tokens_per_second").get<std::int64_t>())));
      if (step_ == steps || (options_.run.save_every > 0 && step_ % options_.run.save_every == 0))
        run_.save_checkpoint(bundle_, *optimizer_, {step_, Json::object()}, options_.run.keep_last);
    }
    progress.finish();
    spdlog::info("grpo: {} steps in {}, written to {}", format_count(steps), format_duration(seconds_since(start)),
                 options_.out);
  }

 private:
  Json step() {
    const auto start = Clock::now();
    const data::Batch batch = loader_->next();
    const std::vector<generation::Question> questions = builder_->build(batch.samples);

    const auto rollout_start = Clock::now();
    const std::vector<std::vector<Completion>> completions = roll_out(questions, batch.indices);
    const double rollout_seconds = seconds_since(rollout_start);

    const auto reward_start = Clock::now();
    std::vector<Group> groups(questions.size());
    for (std::size_t i = 0; i < questions.size(); ++i) {
      groups[i].question = &questions[i];
      for (const Completion& completion : completions[i])
        groups[i].completions.push_back(score(questions[i], completion));
    }
    const Advantages advantages = set_advantages(groups);
    const double reward_seconds = seconds_since(reward_start);

    const auto update_start = Clock::now();
    const double lr = train::learning_rate(options_.optimizer, step_, options_.run.steps);
    const UpdateMetrics update_metrics = update(groups, lr);
    const double update_seconds = seconds_since(update_start);
    ++step_;

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
                    {"step_time/rollout", rollout_seconds},
                    {"step_time/reward", reward_seconds},
                    {"step_time/logprob", update_metrics.log_prob_seconds},
                    {"step_time/update", update_seconds - update_metrics.log_prob_seconds},
                    {"num_tokens", num_tokens},
                    {"tokens_per_second", static_cast<double>(num_tokens) / seconds},
                    {"peak_memory", peak_memory_bytes()}});
    return metrics;
  }

  std::vector<std::vector<Completion>> roll_out(const std::vector<generation::Question>& questions,
                                                const std::vector<std::int64_t>& indices) {
    std::vector<const generation::Question*> pointers;
    for (const generation::Question& question : questions) pointers.push_back(&question);
    std::vector<at::Tensor> features;
    {
      const at::NoGradGuard no_grad;
      features = builder_->features(pointers);
    }
    std::vector<generation::GenerationRequest> requests;
    for (std::size_t i = 0; i < questions.size(); ++i)
      requests.push_back({questions[i].prompt,
                          questions[i].grids,
                          {features[i]},
                          options_.group_size,
                          {hash_key("rollout"), static_cast<std::uint64_t>(options_.seed),
                           static_cast<std::uint64_t>(step_), static_cast<std::uint64_t>(indices[i])}});
    generation::RolloutEngine engine(*bundle_.model, options_.engine);
    return engine.generate(requests, options_.sampling);
  }

  ScoredCompletion score(const generation::Question& question, const Completion& completion) const {
    ScoredCompletion scored;
    scored.completion = &completion;
    scored.text = bundle_.tokenizer->decode(completion.ids);
    const grounding::ParsedResponse parsed = grounding::parse_response(scored.text, question.frame, true);
    const grounding::ImageGeometry geometry = question.geometry();
    const bool truncated = completion.finish == FinishReason::length;
    for (const WeightedReward& weighted : rewards_) {
      scored.scores.push_back(weighted.reward->score({question.sample, parsed, geometry, scored.text, truncated}));
      if (scored.scores.back().applicable) scored.reward += weighted.weight * scored.scores.back().value;
    }
    scored.in_loss = !(truncated && options_.mask_truncated);
    return scored;
  }

  Advantages set_advantages(std::vector<Group>& groups) const {
    std::vector<double> rewards;
    for (const Group& group : groups)
      for (const ScoredCompletion& scored : group.completions) rewards.push_back(scored.reward);
    Advantages advantages = group_advantages(rewards, options_.group_size, scaling_);
    std::size_t i = 0;
    for (Group& group : groups)
      for (ScoredCompletion& scored : group.completions) scored.advantage = advantages.values[i++];
    return advantages;
  }

  UpdateMetrics update(std::vector<Group>& groups, double lr) {
    std::vector<std::int64_t> sizes;
    std::int64_t total_tokens = 0, total_completions = 0;
    std::vector<Group*> in_loss;
    for (Group& group : groups) {
      // Without a KL term a group of equal rewards has no gradient: it only counts in the normaliser.
      bool useful = false;
      for (const ScoredCompletion& scored : group.completions) {
        ++total_completions;  // masked ones count, as in TRL: their loss is 0
        if (!scored.in_loss) continue;
        total_tokens += static_cast<std::int64_t>(scored.completion->ids.size());
        useful |= options_.beta != 0 || scored.advantage != 0;
      }
      if (!useful) continue;
      in_loss.push_back(&group);
      sizes.push_back(group.num_tokens());
    }
    UpdateMetrics metrics;
    if (in_loss.empty()) return metrics;
    // Enough passes that every worker has one.
    const std::int64_t num_tokens = std::accumulate(sizes.begin(), sizes.end(), std::int64_t{0});
    const auto splits =
        train::split_by_size(sizes, std::min(options_.run.micro_batch_tokens, num_tokens / nn::num_workers() + 1));
    std::vector<at::Tensor> old_log_probs(splits.size());
    double tokens_seen = 0;
    for (std::int64_t pass = 0; pass < options_.updates_per_rollout; ++pass) {
      std::vector<UpdateMetrics> parts(splits.size());
      train::accumulate_gradients(parameters_, static_cast<std::int64_t>(splits.size()), [&](std::int64_t i) {
        const auto m = static_cast<std::size_t>(i);
        UpdateMetrics& part = parts[m];
        const std::vector<Group*> some(in_loss.begin() + static_cast<std::ptrdiff_t>(splits[m].first),
                                       in_loss.begin() + static_cast<std::ptrdiff_t>(splits[m].second));
        const UpdateBatch batch = make_update_batch(*builder_, some, device_);
        PolicyLossInput input;
        if (reference_) {
          const auto reference_start = Clock::now();
          const at::NoGradGuard no_grad;
          input.ref_log_probs =
              completion_log_probs(*reference_, batch, {options_.sampling.temperature, banned_}).log_probs;
          part.log_prob_seconds = seconds_since(reference_start);
        }
        const train::TargetLogProbs policy =
            completion_log_probs(*bundle_.model, batch, {options_.sampling.temperature, banned_});
        if (pass == 0) old_log_probs[m] = policy.log_probs.detach();
        input.log_probs = policy.log_probs;
        input.old_log_probs = old_log_probs[m];
        input.advantages = batch.advantages;
        input.sequence = batch.sequence;
        input.lengths = batch.lengths;
        input.total_completions = total_completions;
        input.total_tokens = total_tokens;
        input.num_micro_batches = static_cast<std::int64_t>(splits.size());
        const PolicyLoss loss = policy_loss(input, loss_options_);
        part.loss = loss.loss.item<double>();
        part.kl = loss.kl_sum;
        part.clip_low = loss.clipped_low;
        part.clip_high = loss.clipped_high;
        if (pass == 0) {
          part.entropy = policy.entropy.sum().item<double>();
          const at::Tensor gap = (old_log_probs[m] - batch.rollout_log_probs).exp().sub(1).abs();
          part.gap_sum = gap.sum().item<double>();
          part.gap_max = gap.max().item<double>();
          part.num_tokens = static_cast<double>(batch.targets.size(0));
        }
        return loss.loss;
      });
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
      metrics.grad_norm = optimizer_->step(lr);
      if (!std::isfinite(metrics.grad_norm)) {
        spdlog::warn("step {}: the gradient is not finite; the update was skipped", step_ + 1);
        if (++num_skipped_ >= 10) throw_failure("10 updates had a gradient that was not finite; lower optimizer.lr");
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

  Json reward_metrics(const std::vector<Group>& groups, const Advantages& advantages) const {
    std::vector<double> rewards, absolute, lengths, deviations;
    double clipped = 0;
    for (const Group& group : groups) {
      std::vector<double> of_group;
      for (const ScoredCompletion& scored : group.completions) {
        of_group.push_back(scored.reward);
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
          if (scored.scores[k].applicable) values.push_back(scored.scores[k].value);
      metrics["rewards/" + rewards_[k].reward->name() + "/mean"] = mean_of(values);
      metrics["rewards/" + rewards_[k].reward->name() + "/std"] = deviation_of(values);
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
      for (std::size_t g = 0; g < group.completions.size() && left > 0; ++g, --left) {
        const ScoredCompletion& scored = group.completions[g];
        Json scores = Json::object();
        for (std::size_t k = 0; k < rewards_.size(); ++k) {
          const RewardScore& score = scored.scores[k];
          scores[rewards_[k].reward->name()] = {{"value", score.applicable ? Json(score.value) : Json()},
                                                {"reason", score.reason}};
        }
        run_.log_sample({{"step", step_},
                         {"id", group.question->sample.id},
                         {"completion", g},
                         {"question", group.question->sample.prompt()},
                         {"reference", group.question->sample.answer},
                         {"reference_regions", box_list(group.question->sample.regions)},
                         {"response", scored.text},
                         {"frame", group.question->frame.name()},
                         {"finish", scored.completion->finish == FinishReason::stop ? "stop" : "length"},
                         {"reward", scored.reward},
                         {"rewards", scores},
                         {"advantage", scored.advantage}});
      }
    }
  }

  GrpoOptions options_;
  std::shared_ptr<const data::Dataset> dataset_;
  std::vector<WeightedReward> rewards_;
  AdvantageScaling scaling_;
  train::RunFolder run_;
  PolicyLossOptions loss_options_;
  models::ModelBundle bundle_;
  models::NamedTensors parameters_;
  std::unique_ptr<train::AdamW> optimizer_;
  std::shared_ptr<models::VisionLanguageModel> reference_;
  std::unique_ptr<generation::QuestionBuilder> builder_;
  std::unique_ptr<data::BatchLoader> loader_;  // uses the builder
  at::Device device_ = at::kCPU;
  at::Tensor banned_;
  std::int64_t step_ = 0;
  int num_skipped_ = 0;
};

}  // namespace

void run_grpo(const GrpoOptions& options) {
  if (options.prompts_per_step < 1 || options.group_size < 2)
    throw_invalid("prompts_per_step must be at least 1 and group_size at least 2, but they are {} and {}",
                  options.prompts_per_step, options.group_size);
  if (options.updates_per_rollout < 1) throw_invalid("updates_per_rollout must be at least 1");
  if (options.run.steps < 1) throw_invalid("nothing to do: give run.steps");
  options.sampling.check();
  if (options.sampling.temperature == 0)
    throw_invalid("sampling.temperature must be above 0: equal completions have no advantage");
  if (options.run.num_threads > 0) at::set_num_threads(static_cast<int>(options.run.num_threads));
  GrpoTrainer(options).run();
}

}  // namespace thinkvg::rl
