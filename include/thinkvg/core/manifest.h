#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>

#include "thinkvg/core/json.h"

namespace thinkvg {

// The program's version, "0.1.0".
std::string version();

// What manifest.json of a run folder says: command, version, seed, start time, machine (cpu, cores, memory),
// and path, size and SHA-256 of each input file.
Json make_manifest(const std::string& command, std::int64_t seed,
                   const std::map<std::string, std::filesystem::path>& input_files);

}  // namespace thinkvg
