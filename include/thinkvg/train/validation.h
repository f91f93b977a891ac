#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "thinkvg/core/json.h"
#include "thinkvg/core/settings.h"
#include "thinkvg/data/options.h"
#include "thinkvg/dist/process_group.h"
#include "thinkvg/generation/question.h"
#include "thinkvg/models/bundle.h"
#include "thinkvg/train/options.h"

namespace thinkvg::train {

// Evaluation while training.
struct ValidationOptions {
  std::int64_t every = 0;
  DataOptions data;
  std::string images;
  std::int64_t loss_questions = 256;
  std::int64_t score_questions = 64;
  std::int64_t max_new_tokens = 512;
  std::int64_t seed = 0;

  void visit(SettingsVisitor& v) {
    v.setting("every", every, "Steps between evaluations, the last step included; 0: none.");
    v.section("data", data, "Held-out questions.");
    v.setting("images", images, "Folder of their pictures; empty: as for training.");
    v.setting("loss_questions", loss_questions,
              "Questions, chosen by seed, whose answers' loss is measured (eval/loss); 0: none.");
    v.setting("score_questions", score_questions,
              "Questions, chosen by seed, that are answered and scored (eval/a_score, eval/v_score, ..); 0: none.");
    v.setting("max_new_tokens", max_new_tokens, "A scored answer is cut behind this many tokens.");
    v.setting("seed", seed, "Seed of the choice of questions.");
  }
  // Throws std::invalid_argument naming the setting.
  void check() const;
};

// What a scorer gets: a model with its present weights, which it must not change, and the questions to ask.
struct ScoringTask {
  const models::ModelBundle& bundle;
  std::shared_ptr<const data::Dataset> questions;
  std::string images;
  models::PictureOptions pictures;
  text::PromptOptions prompt;
  std::int64_t max_new_tokens = 0;
  std::string name;           // of this evaluation, in its files
  std::filesystem::path out;  // folder for its files
};

// Answers the questions and scores the answers: metrics by name, of validation_metrics(). Filled by programs, because
// scores lie above training. Its random numbers must be its own.
using Scorer = std::function<std::map<std::string, double>(const ScoringTask&)>;

// The metrics that a run may keep its best checkpoint by: loss (the lowest is best) and a_score, v_score,
// mean_of_a_and_v, parse_rate, token_f1 (the highest).
const std::vector<std::string>& validation_metrics();
// Throws std::invalid_argument unless `metric` is empty or one that evaluations by `options` measure.
void check_keep_best(const std::string& metric, const ValidationOptions& options);

// What a run evaluates by.
struct ValidationContext {
  models::ModelBundle bundle;
  std::filesystem::path run;  // its folder: scored answers go to <run>/eval/step-N
  std::string images;
  text::PromptOptions prompt;
  bool think = true;            // whether the learned answers hold reasoning
  std::int64_t max_length = 0;  // longer sequences have no part in the loss; 0: no limit
  bool fixed_features = false;  // TrainedModel::fixed_features()
  RunOptions options;
  Scorer scorer;              // may be empty where eval.score_questions is 0
  dist::ProcessGroup& group;  // of the run; must outlive the evaluation
};

// Evaluates a run's model every eval.every steps and knows the best checkpoint so far. Nothing here draws from the
// run's random numbers or moves its place in the data: training goes on to the same bits with and without it. Of
// several processes, which make the same calls, rank 0 measures, and all get what it found. Not thread-safe.
class Validation {
 public:
  // Opens the held-out set. Throws as open_training_data, and std::invalid_argument where scores are wanted and there
  // is no scorer.
  Validation(const ValidationOptions& options, ValidationContext context);

  bool due(std::int64_t step, std::int64_t num_steps) const;
  struct Result {
    Json metrics = Json::object();  // "eval/loss", "eval/a_score", .., "step_time/eval"
    bool is_best = false;           // better than at every step before, by run.keep_best
    std::string summary;            // "eval loss 0.5211, a_score 0.412": for people
  };
  // `measured`: called on every process when rank 0 has measured, before the others are told.
  Result evaluate(std::int64_t step, const std::function<void()>& measured = {});

  // The step whose checkpoint is the best; -1: none yet, or run.keep_best is empty.
  std::int64_t best_step() const { return best_step_; }
  // For the trainer's state.
  Json state() const;
  void load_state(const Json& state);

 private:
  double loss();
  std::map<std::string, double> measure(std::int64_t step);

  ValidationOptions options_;
  ValidationContext context_;
  std::string images_;
  std::shared_ptr<const data::Dataset> loss_set_, score_set_;
  std::unique_ptr<generation::QuestionBuilder> builder_;
  std::int64_t best_step_ = -1;
  std::optional<double> best_value_;
};

}  // namespace thinkvg::train
