#include "thinkvg/data/phantom.h"

#include <cstdio>

#include "thinkvg/core/progress.h"
#include "tools/commands.h"

namespace thinkvg::tools {

int run_phantom(const Arguments& arguments) {
  data::PhantomOptions options;
  if (!parse_options("phantom", "Write a synthetic data set.", arguments, options)) return 0;
  require_setting("phantom", "out", options.out, "DIR");
  Progress progress("phantom", options.num_images);
  const data::PhantomReport report =
      data::write_phantom(options, [&](std::int64_t done, std::int64_t) { progress.update(done, "pictures"); });
  progress.finish();
  std::fputs(report.table().c_str(), stdout);
  return 0;
}

}  // namespace thinkvg::tools
