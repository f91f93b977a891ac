#include "thinkvg/train/sft.h"

#include "thinkvg/core/interrupt.h"
#include "tools/commands.h"
#include "tools/processes.h"
#include "tools/scorer.h"

namespace thinkvg::tools {

int run_sft(const Arguments& arguments) {
  train::SftOptions options;
  if (!parse_options("sft", "supervised fine-tuning", arguments, options)) return 0;
  require_setting("sft", "model", options.model, "DIR");
  require_setting("sft", "data", options.data.path, "FILE");
  require_setting("sft", "images", options.images, "ROOT");
  require_setting("sft", "out", options.out, "DIR");
  if (const auto code = run_processes("sft", arguments, options.processes)) return *code;
  const InterruptGuard guard;
  const auto group = join_processes(options.dist);
  train::run_sft(options, *group, make_scorer());
  return 0;
}

}  // namespace thinkvg::tools
