#include "thinkvg/rl/grpo.h"

#include "thinkvg/core/interrupt.h"
#include "tools/commands.h"
#include "tools/processes.h"
#include "tools/scorer.h"

namespace thinkvg::tools {

int run_grpo(const Arguments& arguments) {
  rl::GrpoOptions options;
  if (!parse_options("grpo", "reinforcement with verifiable grounding and answer rewards", arguments, options))
    return 0;
  require_setting("grpo", "model", options.model, "DIR");
  require_setting("grpo", "data", options.data.path, "FILE");
  require_setting("grpo", "images", options.images, "ROOT");
  require_setting("grpo", "out", options.out, "DIR");
  if (const auto code = run_processes("grpo", arguments, options.processes)) return *code;
  const InterruptGuard guard;
  const auto group = join_processes(options.dist);
  rl::run_grpo(options, *group, make_scorer());
  return 0;
}

}  // namespace thinkvg::tools
