#pragma once

#include <string>
#include <vector>

#include "thinkvg/core/settings.h"
#include "thinkvg/dist/process_group.h"
#include "thinkvg/generation/rollout_engine.h"
#include "thinkvg/rewards/reward.h"
#include "thinkvg/text/chat.h"
#include "thinkvg/train/memory_plan.h"
#include "thinkvg/train/options.h"
#include "thinkvg/train/trained_model.h"
#include "thinkvg/train/validation.h"

namespace thinkvg::rl {

struct GrpoOptions {
  std::string model;
  train::DataOptions data;
  std::string images;
  std::string out;
  bool resume = false;
  std::int64_t seed = 0;
  std::int64_t prompts_per_step = 16;
  std::int64_t group_size = 8;
  std::int64_t updates_per_rollout = 1;
  std::string loss_type = "dapo";
  std::string importance_sampling_level = "token";
  std::string scale_rewards = "group";
  std::string multi_objective_aggregation = "sum_then_normalize";
  double beta = 0.04;
  std::string kl_estimator = "k3";
  bool kl_in_reward = false;
  bool use_bias_correction_kl = true;  // as in TRL, from 1.16 on
  bool sync_ref_model = false;
  double ref_model_mixup_alpha = 0.6;
  std::int64_t ref_model_sync_steps = 512;
  double epsilon_low = 0.2;
  double epsilon_high = 0.28;
  double delta = 0;
  double sapo_temperature_pos = 1.0;
  double sapo_temperature_neg = 1.05;
  double entropy_coef = 0;
  double top_entropy_quantile = 1.0;
  double off_policy_mask_threshold = 0;
  std::string rollout_correction = "none";
  double rollout_correction_min = 0;
  double rollout_correction_max = 3;
  bool mask_truncated = false;
  bool overlap_rollout = false;
  bool dynamic_sampling = false;
  std::string dynamic_sampling_reward;
  std::int64_t max_refill = 3;
  train::TuningOptions tuning;
  std::int64_t samples_per_step = 8;
  std::int64_t watched_questions = 4;
  std::int64_t watch_every = 20;
  std::vector<std::string> rewards = thinkvg::rewards::default_rewards();
  thinkvg::rewards::RewardOptions reward;
  generation::SamplingOptions sampling;
  generation::EngineOptions engine;
  text::PromptOptions prompt;
  train::OptimizerOptions optimizer{.lr = 1e-6, .schedule = "constant"};
  train::ValidationOptions eval;
  train::RunOptions run;
  std::int64_t processes = 1;
  dist::DistOptions dist;

  void visit(SettingsVisitor& v) {
    v.setting("model", model, "Model folder, or run folder (its newest checkpoint).");
    v.section("data", data, "Questions to learn from; only their answers and boxes are used.");
    v.setting("images", images, "Folder of the pictures, or several separated by commas.");
    v.setting("out", out, "Run folder to write.");
    v.setting("resume", resume, "Go on from the newest checkpoint in the run folder.");
    v.setting("seed", seed, "Seed of the order of the questions and of sampling.");
    v.setting("prompts_per_step", prompts_per_step, "Questions a step.");
    v.setting("group_size", group_size, "Completions of each question (G).");
    v.setting("updates_per_rollout", updates_per_rollout, "Optimizer steps on the same completions.");
    v.setting("loss_type", loss_type, "grpo, bnpo, dr_grpo, dapo, luspo, cispo or sapo.");
    v.setting("importance_sampling_level", importance_sampling_level,
              "Whose ratio: token, or sequence (GSPO with loss_type grpo; meant for luspo).");
    v.setting("scale_rewards", scale_rewards, "What advantages are divided by: group, batch or none.");
    v.setting(
        "multi_objective_aggregation", multi_objective_aggregation,
        "sum_then_normalize, or normalize_then_sum (GDPO: each reward is normalised in its group, then the sum in "
        "the batch; scale_rewards is not used).");
    v.setting("beta", beta, "Weight of the KL to the starting model; 0: no reference is kept.");
    v.setting("kl_estimator", kl_estimator, "k1, k2 or k3.");
    v.setting("kl_in_reward", kl_in_reward,
              "Take beta times the KL of a whole completion off its reward, in place of a term of the loss.");
    v.setting("use_bias_correction_kl", use_bias_correction_kl, "Weight the KL by the importance ratio.");
    v.setting("sync_ref_model", sync_ref_model, "Move the reference towards the policy now and then.");
    v.setting("ref_model_mixup_alpha", ref_model_mixup_alpha, "reference = alpha * policy + (1 - alpha) * reference.");
    v.setting("ref_model_sync_steps", ref_model_sync_steps, "Steps between two such moves.");
    v.setting("epsilon_low", epsilon_low, "The ratio is clipped below 1 - this.");
    v.setting("epsilon_high", epsilon_high, "The ratio is clipped above 1 + this; cispo: above this, such as 5.");
    v.setting("delta", delta, "Dual clip: bound of the ratio; 0: none.");
    v.setting("sapo_temperature_pos", sapo_temperature_pos, "sapo: steepness where the advantage is above 0.");
    v.setting("sapo_temperature_neg", sapo_temperature_neg, "sapo: steepness elsewhere.");
    v.setting("entropy_coef", entropy_coef, "Weight of the mean entropy of the tokens, which is taken off the loss.");
    v.setting("top_entropy_quantile", top_entropy_quantile,
              "Share of the step's tokens, those of highest entropy, that carry policy loss.");
    v.setting(
        "off_policy_mask_threshold", off_policy_mask_threshold,
        "Completions with a negative advantage whose mean log(p_rollout / p) is above it carry no policy loss; 0: "
        "off.");
    v.setting("rollout_correction", rollout_correction,
              "Weights for the gap between rollout and trainer: none, token_truncate, token_mask, sequence_truncate, "
              "sequence_mask.");
    v.setting("rollout_correction_min", rollout_correction_min, "Smallest weight; below: truncated or masked.");
    v.setting("rollout_correction_max", rollout_correction_max, "Largest weight; above: truncated or masked.");
    v.setting("mask_truncated", mask_truncated, "Leave completions that were cut by the length limit out of the loss.");
    v.setting("overlap_rollout", overlap_rollout,
              "Draw and reward the next step's completions while this step's update is computed: by the weights before "
              "it, one step off policy, with the rollout's log-probabilities as the old ones. Worth it where rewards "
              "wait (a judge, a program) or cores idle.");
    v.setting("dynamic_sampling", dynamic_sampling,
              "Drop groups without signal (all of equal reward) and draw other questions in their place (DAPO).");
    v.setting("dynamic_sampling_reward", dynamic_sampling_reward,
              "The reward whose spread counts, such as answer; empty: their weighted sum.");
    v.setting("max_refill", max_refill, "Rounds of drawing anew in one step; what is missing then stays missing.");
    tuning.visit(v);
    v.setting("samples_per_step", samples_per_step,
              "Completions a step that are written to samples/completions.jsonl.");
    v.setting("watched_questions", watched_questions,
              "The same few questions, answered with the likeliest tokens now and then, for samples/watched.jsonl and "
              "the report.");
    v.setting("watch_every", watch_every, "Steps between two such rounds, the first before training; 0: none.");
    v.setting("rewards", rewards,
              "Rewards with their weights, such as answer=1: answer, grounding, format, region, think_grounding, "
              "consistency, length, cosine, repetition, judge, program:COMMAND.");
    v.section("reward", reward, "How rewards judge.");
    v.section("sampling", sampling, "How completions are drawn.");
    v.section("engine", engine, "The rollout engine.");
    v.section("prompt", prompt, "How a question is put.");
    v.section("optimizer", optimizer, "How weights are updated.");
    v.section("eval", eval, "Evaluation while training.");
    v.section("run", run, "Length, memory, checkpoints.");
    v.setting(
        "processes", processes,
        "Processes on this machine that share the work, each with its part of the cores. Jobs that torchrun or srun "
        "start bring their own.");
    v.section("dist", dist, "How several processes work together.");
  }
  // Throws std::invalid_argument naming the setting.
  void check() const;
};

// Group-relative policy optimisation (DeepSeekMath, arXiv 2402.03300) on a run folder: sample G completions a question
// from the present weights, reward them by rule, update. Metrics go to metrics.jsonl under TRL's names, completions
// with their rewards and reasons to samples/completions.jsonl; what looks wrong is warned of once (rewards::RunWatch).
// `scorer` and exceptions as in train::run_sft.
//
// With overlap_rollout completions of the next step are drawn from the present weights while their gradient is
// computed; the update waits for them. No weights are copied. Completions are then drawn one update before they are
// learned from; the first step's and those behind a `resume` without drawn ones are not. step_time's parts overlap, and
// rollout_gap holds the change of that update, too. Checkpoints keep what is drawn, so that a resumed run gives the
// same bits.
//
// With several processes all of them call it; the questions of a step are shared out, and completions, rewards,
// statistics over the batch and steps are those of one process, within rounding (loss_type bnpo means micro-batches, so
// that it depends on the split). Rank 0 writes the run folder, which all must see, and evaluates.
void run_grpo(const GrpoOptions& options, dist::ProcessGroup& group, const train::Scorer& scorer = {});
void run_grpo(const GrpoOptions& options, const train::Scorer& scorer = {});  // this process alone

train::MemoryLevers memory_levers(const GrpoOptions& options);

}  // namespace thinkvg::rl
