#include "tools/scorer.h"

#include "thinkvg/eval/evaluator.h"

namespace thinkvg::tools {

train::Scorer make_scorer() {
  return [](const train::ScoringTask& task) {
    eval::EvalOptions options;
    options.images = task.images;
    options.pictures = task.pictures;
    options.prompt = task.prompt;
    options.out = task.out.string();
    options.name = task.name;
    options.baselines = false;
    options.engine.max_rows = 64;  // the trainer's own memory stays taken meanwhile
    options.sampling.max_new_tokens = task.max_new_tokens;
    const eval::Evaluation evaluation = eval::evaluate(task.bundle, *task.questions, options);
    std::map<std::string, double> values;
    for (const std::string& name : train::validation_metrics()) {
      const auto& estimate = name == "mean_of_a_and_v" ? evaluation.scores.mean_of_a_and_v
                             : name == "loss"          ? std::optional<eval::Estimate>()
                                                       : evaluation.scores.metric(name).overall;
      if (estimate) values[name] = estimate->mean;
    }
    return values;
  };
}

}  // namespace thinkvg::tools
