#include "thinkvg/eval/report.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <filesystem>

#include "thinkvg/core/error.h"
#include "tools/commands.h"

namespace thinkvg::tools {
namespace {

struct SplitArguments {
  std::vector<std::string> runs;  // arguments that belong to no flag
  Arguments flags;                // the others, each with its value
};

// Every setting of the report takes a value, so that what stands behind "--name" is never a run folder.
SplitArguments split_arguments(const Arguments& arguments) {
  SplitArguments split;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    if (!argument.starts_with("-")) {
      split.runs.push_back(argument);
      continue;
    }
    split.flags.push_back(argument);
    const bool takes_next =
        argument.starts_with("--") && argument != "--help" && argument.find('=') == std::string::npos;
    if (takes_next && i + 1 < arguments.size()) split.flags.push_back(arguments[++i]);
  }
  return split;
}

}  // namespace

int run_report(const Arguments& arguments) {
  const SplitArguments split = split_arguments(arguments);
  eval::ReportOptions options;
  if (!parse_options("report",
                     "write an HTML report: thinkvg report RUN... --out FILE\n"
                     "Each RUN is a folder of eval, sft or grpo, a folder that holds such folders, or LABEL=FOLDER.",
                     split.flags, options))
    return 0;
  options.runs.insert(options.runs.end(), split.runs.begin(), split.runs.end());
  if (options.runs.empty()) throw_invalid("needs one or several run folders: thinkvg report RUN... --out FILE");
  require_setting("report", "out", options.out, "FILE");
  eval::write_report(options);
  fmt::print(stderr, "wrote {} ({:.1f} MB)\n", options.out,
             static_cast<double>(std::filesystem::file_size(options.out)) / 1e6);
  return 0;
}

}  // namespace thinkvg::tools
