#include "thinkvg/train/new_model.h"
#include "tools/commands.h"

namespace thinkvg::tools {

int run_warmup(const Arguments& arguments) {
  train::WarmupOptions options;
  if (!parse_options("warmup", "teach a new vision tower what is where, from region labels", arguments, options))
    return 0;
  require_setting("warmup", "model", options.model, "DIR");
  require_setting("warmup", "annotations", options.annotations, "FILE");
  require_setting("warmup", "images", options.images, "ROOT");
  require_setting("warmup", "out", options.out, "DIR");
  train::run_warmup(options);
  return 0;
}

}  // namespace thinkvg::tools
