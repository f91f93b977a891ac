#pragma once

#include <spdlog/spdlog.h>

namespace thinkvg {

// Messages go through spdlog's default logger. Programs call this once: messages to stderr, "HH:MM:SS level text",
// level from THINKVG_LOG (trace, debug, info, warn, error, off; default info). A second call starts afresh.
void set_up_logging();

}  // namespace thinkvg
