#include "thinkvg/serve/api_error.h"

#include "thinkvg/core/error.h"
#include "thinkvg/core/json.h"

namespace thinkvg::serve {

std::string ApiError::json() const {
  const auto text_or_null = [](const std::string& text) { return text.empty() ? Json() : Json(text); };
  const Json body = {
      {"error",
       {{"message", what()}, {"type", type_}, {"param", text_or_null(param_)}, {"code", text_or_null(code_)}}}};
  return body.dump(-1, ' ', false, Json::error_handler_t::replace);
}

ApiError invalid_request(const std::string& message, const std::string& param, const std::string& code) {
  return {400, "invalid_request_error", code, message, param};
}

ApiError too_many_requests(std::int64_t limit) {
  return {429, "rate_limit_error", "server_busy",
          fmt::format("the server already has {} requests running and waiting, as many as it takes; try again soon",
                      limit)};
}

ApiError unavailable(const std::string& message) { return {503, "server_error", "service_unavailable", message}; }

ApiError out_of_time(double seconds) {
  return {504, "server_error", "timeout", fmt::format("the answer was not ready within {:g} s", seconds)};
}

ApiError internal_error(const std::string& message) { return {500, "server_error", "internal_error", message}; }

}  // namespace thinkvg::serve
