#include "thinkvg/core/manifest.h"

#include <spdlog/fmt/chrono.h>
#include <unistd.h>

#include <ctime>
#include <fstream>
#include <thread>

#include "thinkvg/core/files.h"

namespace thinkvg {
namespace {

std::string cpu_model() {
  std::ifstream stream("/proc/cpuinfo");
  for (std::string line; std::getline(stream, line);)
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  return "unknown";
}

}  // namespace

std::string version() { return "0.1.0"; }

Json make_manifest(const std::string& command, std::int64_t seed,
                   const std::map<std::string, std::filesystem::path>& input_files) {
  Json inputs = Json::object();
  for (const auto& [name, file] : input_files) {
    if (!std::filesystem::is_regular_file(file)) {
      inputs[name] = {{"path", file.string()}};
      continue;
    }
    inputs[name] = {
        {"path", file.string()}, {"bytes", std::filesystem::file_size(file)}, {"sha256", sha256_file(file)}};
  }
  return {{"command", command},
          {"version", version()},
          {"seed", seed},
          {"started", fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr)))},
          {"machine",
           {{"cpu", cpu_model()},
            {"cores", std::thread::hardware_concurrency()},
            {"memory_bytes", sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE)}}},
          {"inputs", inputs}};
}

}  // namespace thinkvg
