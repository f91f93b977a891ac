#include "thinkvg/core/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>

#include <cstdlib>
#include <memory>
#include <string>

namespace thinkvg {

void set_up_logging() {
  auto logger = std::make_shared<spdlog::logger>("thinkvg", std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
  logger->set_pattern("%H:%M:%S %^%l%$ %v");
  const char* name = std::getenv("THINKVG_LOG");
  const auto level = name == nullptr ? spdlog::level::info : spdlog::level::from_str(name);
  // from_str turns an unknown name into `off`, which would hide every message.
  const bool unknown = level == spdlog::level::off && std::string(name) != "off";
  logger->set_level(unknown ? spdlog::level::info : level);
  if (unknown) logger->warn("THINKVG_LOG must be trace, debug, info, warn, error or off, but is '{}'", name);
  spdlog::set_default_logger(std::move(logger));
}

}  // namespace thinkvg
