#pragma once

#include <string>
#include <vector>

#include "thinkvg/core/settings.h"
#include "thinkvg/generation/rollout_engine.h"
#include "thinkvg/rl/rewards.h"
#include "thinkvg/text/chat.h"
#include "thinkvg/train/options.h"

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
  double beta = 0.04;
  double epsilon_low = 0.2;
  double epsilon_high = 0.28;
  double delta = 0;
  double sapo_temperature_pos = 1.0;
  double sapo_temperature_neg = 1.05;
  bool mask_truncated = false;
  bool freeze_vision = false;
  std::int64_t samples_per_step = 8;
  std::vector<std::string> rewards = {"answer=1", "grounding=1", "format=1"};
  RewardOptions reward;
  generation::SamplingOptions sampling;
  generation::EngineOptions engine;
  text::PromptOptions prompt;
  train::OptimizerOptions optimizer{.lr = 1e-6, .schedule = "constant"};
  train::RunOptions run;

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
    v.setting("beta", beta, "Weight of the KL to the starting model (k3); 0: no reference is kept.");
    v.setting("epsilon_low", epsilon_low, "The ratio is clipped below 1 - this.");
    v.setting("epsilon_high", epsilon_high, "The ratio is clipped above 1 + this; cispo: above this, such as 5.");
    v.setting("delta", delta, "Dual clip: bound of the ratio; 0: none.");
    v.setting("sapo_temperature_pos", sapo_temperature_pos, "sapo: steepness where the advantage is above 0.");
    v.setting("sapo_temperature_neg", sapo_temperature_neg, "sapo: steepness elsewhere.");
    v.setting("mask_truncated", mask_truncated, "Leave completions that were cut by the length limit out of the loss.");
    v.setting("freeze_vision", freeze_vision, "Leave the vision tower as it is and compute each picture once.");
    v.setting("samples_per_step", samples_per_step,
              "Completions a step that are written to samples/completions.jsonl.");
    v.setting("rewards", rewards, "Rewards with their weights: answer, grounding, format.");
    v.section("reward", reward, "How rewards judge.");
    v.section("sampling", sampling, "How completions are drawn.");
    v.section("engine", engine, "The rollout engine.");
    v.section("prompt", prompt, "How a question is put.");
    v.section("optimizer", optimizer, "How weights are updated.");
    v.section("run", run, "Length, memory, checkpoints.");
  }
};

// Group-relative policy optimisation (DeepSeekMath, arXiv 2402.03300) on a run folder: sample G completions a question
// from the present weights, reward them by rule, update. Metrics go to metrics.jsonl under TRL's names, completions
// with their rewards and reasons to samples/completions.jsonl. Throws as train::run_sft.
void run_grpo(const GrpoOptions& options);

}  // namespace thinkvg::rl
