#pragma once

#include "tools/cli.h"

namespace thinkvg::tools {

// Which program a command lives in, by what it has to load: none of the two, OpenCV, or OpenCV and LibTorch.
// `thinkvg` itself is light; it replaces itself by thinkvg-pictures or thinkvg-tensors for the other commands.
enum class Program { light, pictures, tensors };

struct CommandInfo {
  const char* name;
  const char* summary;
  Program program;
};
const std::vector<CommandInfo>& command_list();

// One function a command, in tools/<command>.cc. Returns the exit code; errors are exceptions.
int run_score(const Arguments& arguments);
int run_score_rollouts(const Arguments& arguments);  // score --rollouts
int run_phantom(const Arguments& arguments);
int run_inspect(const Arguments& arguments);
int run_report(const Arguments& arguments);
int run_check_settings(const Arguments& arguments);  // check, as far as it goes without tensors
int run_check(const Arguments& arguments);
int run_init(const Arguments& arguments);
int run_warmup(const Arguments& arguments);
int run_sft(const Arguments& arguments);
int run_grpo(const Arguments& arguments);
int run_generate(const Arguments& arguments);
int run_eval(const Arguments& arguments);
int run_serve(const Arguments& arguments);
int run_export(const Arguments& arguments);
int run_bench(const Arguments& arguments);

// Replaces this process by another of the programs, which lies beside this one or in ../libexec/thinkvg. Returns an
// exit code, after a message, only where that fails. `arguments`: the command's name and what follows it.
int replace_process(const std::string& program, const Arguments& arguments);

// Shared by the three programs: looks the command up, runs it, and turns exceptions into one message on stderr and
// exit code 2 (wrong use) or 1 (failure).
using CommandFunction = int (*)(const Arguments&);
int dispatch(const std::vector<std::pair<std::string, CommandFunction>>& functions, int argc, char** argv);

}  // namespace thinkvg::tools
