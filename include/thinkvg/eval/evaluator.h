#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "thinkvg/data/options.h"
#include "thinkvg/dist/process_group.h"
#include "thinkvg/eval/detection.h"
#include "thinkvg/eval/judge.h"
#include "thinkvg/eval/metrics.h"
#include "thinkvg/eval/results.h"
#include "thinkvg/generation/question.h"
#include "thinkvg/generation/rollout_engine.h"
#include "thinkvg/nn/device.h"

namespace thinkvg::eval {

struct EvalOptions {
  std::string model;
  std::string dtype;
  std::string device = "auto";
  data::DataOptions data = scored_data();
  std::string images;
  models::PictureOptions pictures;
  std::string out;
  std::string name;
  bool json = false;
  bool blind = false;
  bool shuffle_pictures = false;
  bool resume = true;
  bool baselines = true;
  bool fuse_readers = false;
  bool detection = false;
  std::string judge_scores;
  rewards::JudgeOptions judge = answer_judge_options();
  std::int64_t limit = 0;
  std::int64_t seed = 0;
  std::int64_t batch_questions = 512;
  std::int64_t num_threads = 0;
  text::PromptOptions prompt;
  generation::SamplingOptions sampling{.max_new_tokens = 512, .temperature = 0};
  generation::EngineOptions engine;
  MetricOptions metrics;
  std::int64_t processes = 1;
  dist::DistOptions dist;

  void visit(SettingsVisitor& v) {
    v.setting("model", model, "Model folder, or run folder (its newest checkpoint).");
    v.setting("dtype", dtype, models::kDtypeHelp);
    v.setting("device", device, nn::kDeviceHelp);
    v.section("data", data, "Questions with their references.");
    v.setting("images", images, "Folder of the pictures, or several separated by commas.");
    v.section("pictures", pictures, "How pictures are read and kept.");
    v.setting("out", out, "Folder to write metrics.json and predictions.jsonl to.");
    v.setting("name", name, "Name of this evaluation in reports.");
    v.setting("json", json, "Print the scores as one JSON document instead of a table.");
    v.setting("blind", blind, "Show the model a grey picture in place of each picture: what it scores without seeing.");
    v.setting("shuffle_pictures", shuffle_pictures,
              "Show the model another question's picture in place of each picture.");
    v.setting("resume", resume, "Go on where a killed evaluation of the same model and data stopped in `out`.");
    v.setting("baselines", baselines, "Score the most frequent answer and random boxes, too.");
    v.setting("fuse_readers", fuse_readers, "Fuse the boxes of several readers of a picture (VinDr-CXR) first.");
    v.setting("detection", detection, "Average precision of the boxes by the names of their regions, too.");
    v.setting("judge_scores", judge_scores, "JSON lines of a judge's grades, for the AR-score.");
    v.section("judge", judge, "A judge to ask now, for the AR-score.");
    v.setting("limit", limit, "Ask only the first questions; 0: all.");
    v.setting("seed", seed, "Seed of sampling, where sampling.temperature is above 0.");
    v.setting("batch_questions", batch_questions, "Questions that are prepared together.");
    v.setting("num_threads", num_threads, "CPU threads; 0: one a core.");
    v.section("prompt", prompt, "How a question is put.");
    v.section("sampling", sampling, "How answers are drawn; the default takes the likeliest token.");
    v.section("engine", engine, "The rollout engine.");
    v.section("metrics", metrics, "How answers are scored.");
    v.setting("processes", processes,
              "Processes on this machine that share the questions, each with its part of the cores. Jobs that torchrun "
              "or srun start bring their own.");
    v.section("dist", dist, "How several processes work together.");
  }
};

struct Evaluation {
  Scores scores;
  std::vector<QuestionScore> questions;
  Provenance provenance;
  std::optional<AveragePrecision> detection;  // where options.detection asks for it
  Json document;                              // what metrics.json holds
};

// Asks the model every question of the set, those about one picture one after the other, and writes, where `out` is
// given, config.yaml, manifest.json, metrics.json (scores_to_json with name, provenance and baselines) and
// predictions.jsonl (prediction_line of each question, with the probability that the model gave its answer as its
// confidence).
//
// Each answer is kept in `out`/answers.partial.jsonl as it ends (those of other processes: as their batch ends), so
// that a killed evaluation asks only what has no answer yet; with the same settings, model and data the result is the
// same as without the kill. Settings that answers do not depend on may change between: metrics, judge, batches, the
// engine's but exact and quantization.
// `judge`: grades answers where it is given (make_answer_judge(options.judge) makes the one that the options describe;
// nothing here does by itself); its grades are kept in `out`/judge.jsonl.
Evaluation evaluate(const EvalOptions& options, const Judge& judge = {});

// The same in several processes: all of them call it, each asks its part of every batch, and rank 0 writes and returns
// what one process would (the others' results are empty).
Evaluation evaluate(const EvalOptions& options, dist::ProcessGroup& group, const Judge& judge = {});

// The same with a model at hand, whose present weights are used and not changed: for scoring while training. The
// answers of a batch are computed without gradient. `options.model` is only a name here, `options.dtype` is
// not used, and nothing is resumed.
Evaluation evaluate(const models::ModelBundle& bundle, const EvalOptions& options, const Judge& judge = {});

// The same with questions at hand, whose pictures are below options.images; options.data, options.limit and
// options.fuse_readers are not used.
Evaluation evaluate(const models::ModelBundle& bundle, const data::Dataset& questions, const EvalOptions& options);

}  // namespace thinkvg::eval
