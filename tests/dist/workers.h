#pragma once

#include <gmock/gmock.h>

#include <fstream>

#include "tests/support/temporary_folder.h"
#include "thinkvg/core/files.h"
#include "thinkvg/core/json.h"
#include "thinkvg/dist/launch.h"

namespace thinkvg::dist {

struct WorkersResult {
  LocalLaunchResult launch;
  std::vector<Json> ranks;  // null where a process left nothing

  std::string error(std::size_t rank) const {
    return ranks[rank].is_object() ? ranks[rank].value("error", std::string()) : "";
  }
};

// Runs tests/dist/worker.cc in several processes; `wrapper` is the program that starts each, with its first arguments.
inline WorkersResult run_workers(const std::string& mode, std::int64_t processes, const Json& settings,
                                 double grace_seconds = 20, std::vector<std::string> wrapper = {}) {
  const test::TemporaryFolder folder;
  write_file_atomically(folder / "settings.json", settings.dump());
  WorkersResult result;
  for (const std::string& part : {std::string(THINKVG_DIST_WORKER), mode, folder.path().string()})
    wrapper.push_back(part);
  result.launch = launch_local({wrapper, processes, grace_seconds});
  for (std::int64_t rank = 0; rank < processes; ++rank) {
    const auto file = folder / ("rank-" + std::to_string(rank) + ".json");
    result.ranks.push_back(std::filesystem::exists(file) ? read_json_file(file) : Json());
  }
  return result;
}

inline void expect_success(const WorkersResult& result) {
  for (std::size_t rank = 0; rank < result.ranks.size(); ++rank) {
    EXPECT_EQ(result.launch.exit_codes[rank], 0) << "rank " << rank << ": " << result.ranks[rank].dump();
  }
}

inline std::vector<Json> json_lines(const std::filesystem::path& file) {
  std::vector<Json> lines;
  std::ifstream stream(file);
  for (std::string line; std::getline(stream, line);) lines.push_back(Json::parse(line));
  return lines;
}

}  // namespace thinkvg::dist
