#include "thinkvg/serve/options.h"

#include <utility>

#include "thinkvg/core/error.h"

namespace thinkvg::serve {

void ServeLimits::check() const {
  const auto at_least = [](const char* name, double value, double least) {
    if (!(value >= least)) throw_invalid("limits.{} must be at least {}, but is {}", name, least, value);
  };
  at_least("body_mb", static_cast<double>(body_mb), 1);
  at_least("uploads_mb", static_cast<double>(uploads_mb), static_cast<double>(body_mb));
  at_least("pictures", static_cast<double>(pictures), 0);
  at_least("completions", static_cast<double>(completions), 1);
  at_least("new_tokens", static_cast<double>(new_tokens), 1);
  at_least("requests", static_cast<double>(requests), 1);
  at_least("connections", static_cast<double>(connections), 1);
  for (const auto& [name, value] :
       {std::pair("request_seconds", request_seconds), std::pair("upload_seconds", upload_seconds),
        std::pair("write_seconds", write_seconds), std::pair("idle_seconds", idle_seconds)})
    if (!(value > 0 && value <= 1e6))
      throw_invalid("limits.{} must be above 0 and at most 1e6, but is {}", name, value);
  at_least("shutdown_seconds", shutdown_seconds, 0);
}

void ServeOptions::check() const {
  if (host.empty()) throw_invalid("host must name an address, such as 127.0.0.1");
  if (port < 0 || port > 65535) throw_invalid("port must be between 0 and 65535, but is {}", port);
  sampling.check();
  pictures.check();
  limits.check();
  if (sampling.max_new_tokens > limits.new_tokens)
    throw_invalid("sampling.max_new_tokens ({}) must not be above limits.new_tokens ({})", sampling.max_new_tokens,
                  limits.new_tokens);
}

}  // namespace thinkvg::serve
