#include <spdlog/fmt/fmt.h>

#include "thinkvg/eval/evaluator.h"
#include "thinkvg/rl/local_judge.h"
#include "tools/commands.h"
#include "tools/processes.h"

namespace thinkvg::tools {

int run_eval(const Arguments& arguments) {
  eval::EvalOptions options;
  if (!parse_options("eval", "score a model on a data set", arguments, options)) return 0;
  require_setting("eval", "model", options.model, "DIR");
  require_setting("eval", "data", options.data.path, "FILE");
  require_setting("eval", "images", options.images, "ROOT");
  if (const auto code = run_processes("eval", arguments, options.processes)) return *code;
  const auto group = join_processes(options.dist);
  eval::Judge judge;
  if (options.judge.is_given()) {
    generation::EngineOptions judging = options.engine;
    judging.quantization = "none";  // grades must not change with the setting of the model that is graded
    judge = eval::make_answer_judge(
        options.judge,
        rl::reward_resources(judging, nn::device_setting(options.device, group->local_rank())).local_judge);
  }
  const eval::Evaluation evaluation = eval::evaluate(options, *group, judge);
  if (!group->is_main()) return 0;
  if (options.json)
    fmt::print("{}\n", evaluation.document.dump(2, ' ', false, Json::error_handler_t::replace));
  else
    fmt::print("{}{}{}", eval::scores_to_table(evaluation.scores),
               evaluation.detection ? eval::detection_to_table(*evaluation.detection) : "",
               eval::provenance_text(evaluation.provenance));
  return 0;
}

}  // namespace thinkvg::tools
