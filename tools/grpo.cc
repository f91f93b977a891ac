#include "thinkvg/rl/grpo.h"

#include "thinkvg/core/interrupt.h"
#include "tools/commands.h"
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
  const InterruptGuard guard;
  rl::run_grpo(options, make_scorer());
  return 0;
}

}  // namespace thinkvg::tools
