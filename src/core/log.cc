#include "thinkvg/core/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>

#include <cstdlib>

namespace thinkvg {

void set_up_logging() {
  auto logger = spdlog::stderr_color_mt("thinkvg");
  logger->set_pattern("%H:%M:%S %^%l%$ %v");
  if (const char* level = std::getenv("THINKVG_LOG")) logger->set_level(spdlog::level::from_str(level));
  spdlog::set_default_logger(std::move(logger));
}

}  // namespace thinkvg
