#include "tools/cli.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cstdio>

#include "thinkvg/core/error.h"

namespace thinkvg::tools {

CommandLine read_command_line(const std::string& command, const Arguments& arguments,
                              const std::vector<SettingInfo>& settings) {
  CommandLine line;
  std::vector<SettingInfo> known = settings;
  for (const char* name : {"config", "help"}) known.push_back({name, "", "", ""});
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    if (argument == "-h" || argument == "--help") {
      line.show_help = true;
      return line;
    }
    if (!argument.starts_with("--") || argument.size() == 2)
      throw_invalid("'{}' is not a setting; settings are --name value, see 'thinkvg {} --help'", argument, command);
    const std::size_t equals = argument.find('=');
    std::string name = argument.substr(2, equals == std::string::npos ? equals : equals - 2);
    const auto find = [&](const std::string& wanted) {
      return std::find_if(settings.begin(), settings.end(),
                          [&](const SettingInfo& info) { return info.name == wanted; });
    };
    // A section's path may be given by the section's own name: --data FILE is --data.path FILE.
    if (find(name) == settings.end() && find(name + ".path") != settings.end()) name += ".path";
    const auto setting = find(name);
    if (setting == settings.end() && name != "config") {
      const std::string near = nearest_setting(name, known);
      throw_invalid("unknown setting --{}{}; 'thinkvg {} --help' lists them", name,
                    near.empty() ? "" : ", did you mean --" + near + "?", command);
    }
    std::string value;
    if (equals != std::string::npos) {
      value = argument.substr(equals + 1);
    } else if (setting != settings.end() && setting->type == "true|false" &&
               (i + 1 == arguments.size() || (arguments[i + 1] != "true" && arguments[i + 1] != "false"))) {
      value = "true";
    } else if (i + 1 < arguments.size()) {
      value = arguments[++i];
    } else {
      throw_invalid("--{} needs a value", name);
    }
    if (name == "config")
      line.config = value;
    else
      line.values.emplace_back(name, value);
  }
  return line;
}

void print_help(const std::string& command, const std::string& summary, const std::vector<SettingInfo>& settings) {
  fmt::print("thinkvg {}: {}\n\nusage: thinkvg {} [--config run.yaml] [--setting value ...]\n\n", command, summary,
             command);
  std::size_t width = 16;
  for (const SettingInfo& info : settings) width = std::max(width, info.name.size() + 2);
  fmt::print("  {:{}}  a YAML file with these settings; flags win over it\n", "--config", width);
  for (const SettingInfo& info : settings) {
    const std::string shown = info.value.empty() ? "" : fmt::format(", default {}", info.value);
    fmt::print("  {:{}}  {} [{}{}]\n", "--" + info.name, width, info.help, info.type, shown);
  }
}

void require_setting(const std::string& command, const std::string& name, const std::string& value,
                     const std::string& what) {
  if (value.empty()) throw_invalid("needs --{} {}; see 'thinkvg {} --help'", name, what, command);
}

}  // namespace thinkvg::tools
