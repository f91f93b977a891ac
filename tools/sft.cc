#include "thinkvg/train/sft.h"

#include "thinkvg/core/interrupt.h"
#include "tools/commands.h"
#include "tools/scorer.h"

namespace thinkvg::tools {

int run_sft(const Arguments& arguments) {
  train::SftOptions options;
  if (!parse_options("sft", "supervised fine-tuning", arguments, options)) return 0;
  require_setting("sft", "model", options.model, "DIR");
  require_setting("sft", "data", options.data.path, "FILE");
  require_setting("sft", "images", options.images, "ROOT");
  require_setting("sft", "out", options.out, "DIR");
  const InterruptGuard guard;
  train::run_sft(options, make_scorer());
  return 0;
}

}  // namespace thinkvg::tools
