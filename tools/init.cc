#include "thinkvg/train/new_model.h"
#include "tools/commands.h"

namespace thinkvg::tools {

int run_init(const Arguments& arguments) {
  train::NewModelOptions options;
  if (!parse_options("init", "make a new small model with its tokenizer", arguments, options)) return 0;
  require_setting("init", "out", options.out, "DIR");
  require_setting("init", "data", options.data, "FILE");
  train::make_new_model(options);
  return 0;
}

}  // namespace thinkvg::tools
