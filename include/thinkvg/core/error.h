#pragma once

#include <spdlog/fmt/fmt.h>

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace thinkvg {

// A call or a setting is wrong: std::invalid_argument whose text says what was expected, what came, what to do.
template <class... Args>
[[noreturn]] void throw_invalid(fmt::format_string<Args...> format, Args&&... args) {
  throw std::invalid_argument(fmt::format(format, std::forward<Args>(args)...));
}

// A file, a device or another part of the environment fails: std::runtime_error, with the same three parts.
template <class... Args>
[[noreturn]] void throw_failure(fmt::format_string<Args...> format, Args&&... args) {
  throw std::runtime_error(fmt::format(format, std::forward<Args>(args)...));
}

// The candidate with the smallest edit distance to `name`, or an empty string when none is near
// (distance over a third of the longer name).
std::string nearest_name(const std::string& name, const std::vector<std::string>& candidates);

}  // namespace thinkvg
