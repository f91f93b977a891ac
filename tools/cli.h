#pragma once

#include <string>
#include <vector>

#include "thinkvg/core/settings.h"

namespace thinkvg::tools {

using Arguments = std::vector<std::string>;  // behind the command's name

// What a command line may hold besides the settings of its options struct.
struct CommandLine {
  bool show_help = false;
  std::string config;                                       // --config FILE
  std::vector<std::pair<std::string, std::string>> values;  // --dotted.name value, in order
};

CommandLine read_command_line(const std::string& command, const Arguments& arguments,
                              const std::vector<SettingInfo>& settings);
void print_help(const std::string& command, const std::string& summary, const std::vector<SettingInfo>& settings);

// Fills `options` from --config and then the flags. Returns false when --help was asked for and printed.
// Wrong use throws std::invalid_argument, which main turns into exit code 2.
template <class Options>
bool parse_options(const std::string& command, const std::string& summary, const Arguments& arguments,
                   Options& options) {
  const CommandLine line = read_command_line(command, arguments, list_settings(options));
  if (line.show_help) {
    print_help(command, summary, list_settings(options));
    return false;
  }
  if (!line.config.empty()) read_settings(options, read_yaml_file(line.config), line.config);
  for (const auto& [name, value] : line.values) assign_setting(options, name, value);
  return true;
}

// Throws std::invalid_argument ("needs --data FILE") when a text setting that a command cannot do without is empty.
void require_setting(const std::string& command, const std::string& name, const std::string& value,
                     const std::string& what);

}  // namespace thinkvg::tools
