#pragma once

// Python packages as references, where they are installed.

#include <cstdlib>
#include <string>

#include "tests/support/process.h"

namespace thinkvg::test {

struct Oracle {
  std::string python;  // empty: there is none
  std::string reason;  // then why
};

// The Python that THINKVG_ORACLE_PYTHON names, else python3, if it has the packages (names apart by spaces) at the
// versions of tests/parity/requirements.txt.
inline Oracle find_oracle(const std::string& packages) {
  const char* named = std::getenv("THINKVG_ORACLE_PYTHON");
  const std::string python = named != nullptr ? named : "python3";
  const ProcessResult result =
      run_shell(shell_quoted(python) + " " THINKVG_SOURCE_DIR "/tests/parity/check_packages.py " + packages);
  if (result.exit_code == 0) return {python, ""};
  return {"", "THINKVG_ORACLE_PYTHON names no Python with " + packages + ": " + result.err};
}

// Where the tests read reference states from: tests/data, or states that were written a moment ago.
inline std::filesystem::path parity_data() {
  const char* fresh = std::getenv("THINKVG_PARITY_DATA");
  return fresh != nullptr ? fresh : THINKVG_TEST_DATA;
}

}  // namespace thinkvg::test
