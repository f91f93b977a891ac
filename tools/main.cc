#include <spdlog/fmt/fmt.h>

#include "thinkvg/core/error.h"
#include "thinkvg/core/manifest.h"
#include "tools/commands.h"

namespace {

using namespace thinkvg;
using namespace thinkvg::tools;

void print_usage(std::FILE* stream) {
  fmt::print(stream,
             "thinkvg {}: vision-language models that think with visual grounding\n\n"
             "usage: thinkvg <command> [--config run.yaml] [--setting value ...]\n\n",
             version());
  for (const CommandInfo& command : command_list()) fmt::print(stream, "  {:10} {}\n", command.name, command.summary);
  fmt::print(stream, "\n'thinkvg <command> --help' lists the settings of a command.\n");
}

}  // namespace

int main(int argc, char** argv) {
  const std::string name = argc > 1 ? argv[1] : "";
  if (name == "--help" || name == "-h" || name == "help") {
    print_usage(stdout);
    return 0;
  }
  if (name == "--version") {
    fmt::print("thinkvg {}\n", version());
    return 0;
  }
  std::vector<std::string> names;
  for (const CommandInfo& command : command_list()) {
    names.emplace_back(command.name);
    if (name != command.name) continue;
    if (command.program == Program::pictures) return replace_process("thinkvg-pictures", {argv + 1, argv + argc});
    if (command.program == Program::tensors) return replace_process("thinkvg-tensors", {argv + 1, argv + argc});
    return dispatch({{"score", run_score}, {"check", run_check_settings}}, argc, argv);
  }
  if (name.empty()) {
    print_usage(stderr);
  } else {
    const std::string near = nearest_name(name, names);
    fmt::print(stderr, "thinkvg: unknown command '{}'{}; 'thinkvg --help' lists them\n", name,
               near.empty() ? "" : fmt::format(", did you mean '{}'?", near));
  }
  return 2;
}
