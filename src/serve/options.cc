#include "thinkvg/serve/options.h"

#include <cmath>

#include "thinkvg/core/error.h"

namespace thinkvg::serve {

void ChatSampling::check() const {
  if (max_new_tokens < 1) throw_invalid("max_new_tokens must be at least 1, but is {}", max_new_tokens);
  if (min_new_tokens < 0 || min_new_tokens > max_new_tokens)
    throw_invalid("min_new_tokens must be between 0 and max_new_tokens ({}), but is {}", max_new_tokens,
                  min_new_tokens);
  if (!(temperature >= 0 && temperature <= 100))
    throw_invalid("temperature must be between 0 and 100, but is {}", temperature);
  if (top_k < 0) throw_invalid("top_k must be at least 0, but is {}", top_k);
  if (!(top_p > 0 && top_p <= 1)) throw_invalid("top_p must be above 0 and at most 1, but is {}", top_p);
  if (!(min_p >= 0 && min_p <= 1)) throw_invalid("min_p must be between 0 and 1, but is {}", min_p);
  if (!(repetition_penalty > 0 && repetition_penalty <= 100))
    throw_invalid("repetition_penalty must be above 0 and at most 100, but is {}", repetition_penalty);
}

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
