#include <spdlog/fmt/fmt.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

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

// Replaces this process by the program that can run the command; it lies beside this one or in ../libexec/thinkvg.
int replace_process(const std::string& program, char** argv) {
  std::error_code ignored;  // without /proc the programs are looked for in the working directory, and reported missing
  const std::filesystem::path here = std::filesystem::read_symlink("/proc/self/exe", ignored).parent_path();
  for (const auto& folder : {here, here.parent_path() / "libexec" / "thinkvg"}) {
    const std::string file = (folder / program).string();
    if (!std::filesystem::exists(file)) continue;
    execv(file.c_str(), argv);
    fmt::print(stderr, "thinkvg: cannot start {}: {}\n", file, std::strerror(errno));
    return 1;
  }
  fmt::print(stderr, "thinkvg: the program {} is missing beside {}; install or build it again\n", program,
             (here / "thinkvg").string());
  return 1;
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
    if (command.program == Program::pictures) return replace_process("thinkvg-pictures", argv);
    if (command.program == Program::tensors) return replace_process("thinkvg-tensors", argv);
    return dispatch({{"score", run_score}}, argc, argv);
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
