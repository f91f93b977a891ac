#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "thinkvg/eval/metrics.h"
#include "thinkvg/generation/question.h"
#include "thinkvg/generation/rollout_engine.h"

namespace thinkvg::eval {

struct EvalOptions {
  std::string model;
  std::string data;
  std::string images;
  double min_hit_rate = 1.0;
  models::PictureOptions pictures;
  std::string out;
  std::string name;
  bool json = false;
  bool blind = false;
  std::int64_t limit = 0;
  std::int64_t seed = 0;
  std::int64_t batch_questions = 256;
  std::int64_t num_threads = 0;
  text::PromptOptions prompt;
  generation::SamplingOptions sampling{.max_new_tokens = 512, .temperature = 0};
  generation::EngineOptions engine{.max_rows = 64};
  MetricOptions metrics;

  void visit(SettingsVisitor& v) {
    v.setting("model", model, "Model folder, or run folder (its newest checkpoint).");
    v.setting("data", data, "Questions with their references.");
    v.setting("images", images, "Folder of the pictures, or several separated by commas.");
    v.setting("min_hit_rate", min_hit_rate,
              "Share of the questions whose picture must be there; where it is below 1 the questions without are left "
              "out of the scores.");
    v.section("pictures", pictures, "How pictures are read and kept.");
    v.setting("out", out, "Folder to write metrics.json and predictions.jsonl to.");
    v.setting("name", name, "Name of this evaluation in reports.");
    v.setting("json", json, "Print the scores as one JSON document instead of a table.");
    v.setting("blind", blind, "Show the model a grey picture in place of each picture: what it scores without seeing.");
    v.setting("limit", limit, "Ask only the first questions; 0: all.");
    v.setting("seed", seed, "Seed of sampling, where sampling.temperature is above 0.");
    v.setting("batch_questions", batch_questions, "Questions that are prepared together.");
    v.setting("num_threads", num_threads, "CPU threads; 0: one a core.");
    v.section("prompt", prompt, "How a question is put.");
    v.section("sampling", sampling, "How answers are drawn; the default takes the likeliest token.");
    v.section("engine", engine, "The rollout engine.");
    v.section("metrics", metrics, "How answers are scored.");
  }
};

struct Evaluation {
  Scores scores;
  std::vector<QuestionScore> questions;
};

// Asks the model every question of the set and writes, where `out` is given, config.yaml, manifest.json, metrics.json
// (scores_to_json with name, model and data hashes) and predictions.jsonl (one line a question: picture, question,
// reference, response with its boxes converted to the reference's frame, what was parsed, scores).
Evaluation evaluate(const EvalOptions& options);

}  // namespace thinkvg::eval
