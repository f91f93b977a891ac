#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <string>
#include <vector>

#include "tests/support/temporary_folder.h"
#include "thinkvg/core/files.h"

namespace thinkvg::test {

struct ProcessResult {
  int exit_code = -1;  // 128 + signal where a signal ended it
  std::string out;
  std::string err;
  double seconds = 0;
};

inline std::string shell_quoted(const std::string& text) {
  std::string quoted = "'";
  for (const char c : text) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return quoted + "'";
}

// Runs a shell command without standard input and waits for it.
inline ProcessResult run_shell(const std::string& command) {
  const TemporaryFolder folder;
  const std::string line = "(" + command + "\n) </dev/null >" + shell_quoted((folder / "out").string()) + " 2>" +
                           shell_quoted((folder / "err").string());
  const auto start = std::chrono::steady_clock::now();
  const int status = std::system(line.c_str());
  ProcessResult result;
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  result.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  result.out = read_file(folder / "out");
  result.err = read_file(folder / "err");
  return result;
}

// The same for a program and its arguments, given as they are.
inline ProcessResult run_process(const std::vector<std::string>& arguments) {
  std::string line;
  for (const std::string& argument : arguments) line += shell_quoted(argument) + " ";
  return run_shell(line);
}

}  // namespace thinkvg::test
