#pragma once

#include <string>

#include "tools/cli.h"

namespace thinkvg::tools {

// What `check` has beside the settings of the command that it looks at.
struct CheckOptions {
  std::int64_t world_size = 1;
  std::string device_memory;
  std::int64_t check_questions = 200;
  bool json = false;

  void visit(SettingsVisitor& v) {
    v.setting("world_size", world_size, "Devices of the planned run; each takes its share of every step.");
    v.setting("device_memory", device_memory,
              "Memory of one accelerator, such as 80G; empty: the run is planned for this machine's processor.");
    v.setting("check_questions", check_questions,
              "Questions, chosen by seed, whose pictures are read and whose tokens are counted; 0: all.");
    v.setting("json", json, "Print one JSON document.");
  }
};

// The settings of a command and of the check, side by side.
template <class Options>
struct Checked {
  Options run;
  CheckOptions check;

  void visit(SettingsVisitor& v) {
    run.visit(v);
    check.visit(v);
  }
};

// What `arguments` begin with: "sft" or "grpo", which is taken away.
std::string take_checked_command(Arguments& arguments);

// Bytes of "80G", "80GiB", "512M"; a number alone counts GiB. Throws std::invalid_argument.
std::int64_t parse_bytes(const std::string& text);

}  // namespace thinkvg::tools
