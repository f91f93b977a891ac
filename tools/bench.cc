#include <cstdio>

#include "thinkvg/core/log.h"
#include "thinkvg/generation/benchmark.h"
#include "tools/commands.h"

namespace thinkvg::tools {

int run_bench(const Arguments& arguments) {
  generation::BenchmarkOptions options;
  if (!parse_options("bench", "measure how fast a model reads, writes and trains on this machine", arguments, options))
    return 0;
  require_setting("bench", "model", options.model, "DIR");
  const generation::BenchmarkResult result = generation::run_benchmark(options);
  if (options.json)
    std::printf("%s\n", generation::benchmark_json(result).dump(2).c_str());
  else
    std::fputs(generation::benchmark_table(result).c_str(), stdout);
  if (result.machine.load > 0.3)
    spdlog::warn("the machine had other work (load {:.2f}); figures are lower than on an idle one",
                 result.machine.load);
  return 0;
}

}  // namespace thinkvg::tools
