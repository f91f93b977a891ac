#include "tools/processes.h"

#include <unistd.h>

#include <cstdio>
#include <filesystem>

#include "thinkvg/core/error.h"
#include "thinkvg/core/log.h"

namespace thinkvg::tools {

std::optional<int> run_processes(const std::string& command, const Arguments& arguments, std::int64_t processes) {
  if (processes < 1) throw_invalid("processes must be at least 1, but is {}", processes);
  if (processes == 1 || dist::environment_variable("WORLD_SIZE") || dist::read_launch_environment().world_size > 1)
    return std::nullopt;
  dist::LocalLaunch launch;
  launch.processes = processes;
  launch.command = {std::filesystem::read_symlink("/proc/self/exe").string(), command};
  launch.command.insert(launch.command.end(), arguments.begin(), arguments.end());
  const dist::LocalLaunchResult result = dist::launch_local(launch);
  if (!result.failed) return 0;
  const int code = result.exit_codes[static_cast<std::size_t>(*result.failed)];
  if (code > 128) spdlog::error("{}: rank {} was ended by signal {}", command, *result.failed, code - 128);
  return code > 128 ? 1 : code;
}

std::unique_ptr<dist::ProcessGroup> join_processes(const dist::DistOptions& options) {
  const dist::LaunchEnvironment environment = dist::read_launch_environment();
  if (environment.world_size == 1) return std::make_unique<dist::ProcessGroup>();
  if (environment.rank > 0) {
    spdlog::default_logger()->set_pattern(fmt::format("%H:%M:%S %^%l%$ [rank {}] %v", environment.rank));
    if (spdlog::get_level() == spdlog::level::info) spdlog::set_level(spdlog::level::warn);
  }
  const auto end = [](const std::string& failure) {
    std::fprintf(stderr, "thinkvg: %s\n", failure.c_str());
    _exit(1);
  };
  return std::make_unique<dist::ProcessGroup>(environment, options, dist::ProcessGroup::Hooks{end});
}

}  // namespace thinkvg::tools
