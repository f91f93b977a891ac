#pragma once

#include <string>

#include "thinkvg/core/settings.h"
#include "thinkvg/dist/process_group.h"
#include "thinkvg/text/chat.h"
#include "thinkvg/train/options.h"
#include "thinkvg/train/trained_model.h"
#include "thinkvg/train/validation.h"

namespace thinkvg::train {

struct SftOptions {
  std::string model;
  DataOptions data;
  std::string images;
  std::string out;
  bool resume = false;
  std::int64_t seed = 0;
  std::int64_t batch_size = 16;
  double epochs = 0;
  std::int64_t max_length = 0;
  std::string overlong = "refuse";
  bool think = true;
  std::string turns = "joined";
  std::string packing = "by_length";
  double neftune_noise_alpha = 0;
  TuningOptions tuning;
  text::PromptOptions prompt;
  OptimizerOptions optimizer;
  ValidationOptions eval;
  RunOptions run;
  std::int64_t processes = 1;
  dist::DistOptions dist;

  void visit(SettingsVisitor& v) {
    v.setting("model", model, "Model folder, or run folder (its newest checkpoint).");
    v.section("data", data, "Questions to learn from.");
    v.setting("images", images, "Folder of the pictures, or several separated by commas.");
    v.setting("out", out, "Run folder to write.");
    v.setting("resume", resume, "Go on from the newest checkpoint in the run folder.");
    v.setting("seed", seed, "Seed of the order of the questions, of new adapters and of dropout.");
    v.setting("batch_size", batch_size, "Questions an optimizer step.");
    v.setting("epochs", epochs, "Passes over the data; used where run.steps is 0.");
    v.setting("max_length", max_length,
              "Longest sequence in tokens, picture included; 0: no limit. Nothing is ever cut.");
    v.setting("overlong", overlong,
              "What happens to a longer one: refuse (the run stops and names it) or skip (it is left out, counted and "
              "listed in samples/skipped.jsonl).");
    v.setting("think", think, "Teach the reasoning before the answer; false: the answer alone.");
    v.setting("turns", turns,
              "Conversations of several turns: joined (one sequence, every answer is learned behind the turns before "
              "it) or apart (each turn is a question of its own, asked without the others).");
    v.setting("packing", packing,
              "Which sequences of a step share a pass: by_length (fewest passes) or in_order (neighbours of the seeded "
              "order). The questions of a step are the same with both, and so is its gradient.");
    v.setting("neftune_noise_alpha", neftune_noise_alpha,
              "Noise on the embeddings (NEFTune, arXiv 2310.05914), such as 5; 0: none.");
    tuning.visit(v);
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

// Supervised fine-tuning on a run folder; loss on the answers' tokens only, normalised by their number in the step.
// `scorer` answers and scores held-out questions where eval.score_questions asks for it. Ends early, with a checkpoint,
// where interrupt_requested(). Throws std::invalid_argument for wrong settings, std::runtime_error for unusable data,
// models or disks, and where memory runs out: it then names the settings that lower the need.
//
// With several processes all of them call it; the batch is shared out, and losses, steps and weights are those of one
// process, within rounding (with lora.dropout the masks differ). Rank 0 writes the run folder, which all must see, and
// evaluates.
void run_sft(const SftOptions& options, dist::ProcessGroup& group, const Scorer& scorer = {});
void run_sft(const SftOptions& options, const Scorer& scorer = {});  // this process alone

// The questions of a run: data, with the pictures that are there, and conversations joined or not.
std::shared_ptr<const data::Dataset> open_sft_data(const SftOptions& options);
// Optimizer steps of a run over so many questions. Throws std::invalid_argument where that is none.
std::int64_t num_sft_steps(const SftOptions& options, std::int64_t num_questions);

}  // namespace thinkvg::train
