#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string_view>

namespace thinkvg {

// Keeps the order in which keys were written, so that files and `--json` output are stable.
using Json = nlohmann::ordered_json;

// Parses the file as JSON. Throws std::runtime_error naming the file, and the position where the text is not JSON.
Json read_json_file(const std::filesystem::path& file);

// Reads a YAML file and returns it as JSON: scalars become null, bool, integer, number or text by YAML's core rules;
// quoted scalars stay text. Throws std::runtime_error naming file and line.
Json read_yaml_file(const std::filesystem::path& file);

// Writes block-style YAML that read_yaml_file reads back to an equal value.
std::string to_yaml(const Json& value);

}  // namespace thinkvg
