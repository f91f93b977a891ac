#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

namespace thinkvg::serve {

// An answer to a request that cannot be served, as OpenAI's API words them:
// {"error": {"message": .., "type": .., "param": .. or null, "code": .. or null}} with an HTTP status.
class ApiError : public std::runtime_error {
 public:
  ApiError(int status, std::string type, std::string code, const std::string& message, std::string param = {})
      : std::runtime_error(message),
        status_(status),
        type_(std::move(type)),
        code_(std::move(code)),
        param_(std::move(param)) {}

  int status() const { return status_; }
  const std::string& type() const { return type_; }
  const std::string& code() const { return code_; }    // may be empty
  const std::string& param() const { return param_; }  // the request's field, such as "messages[0].content"; or empty
  // The body.
  std::string json() const;

 private:
  int status_;
  std::string type_, code_, param_;
};

// 400, invalid_request_error: the request itself must change.
ApiError invalid_request(const std::string& message, const std::string& param = {},
                         const std::string& code = "invalid_value");
// 429: as many requests run and wait as may.
ApiError too_many_requests(std::int64_t limit);
// 503: the server is shutting down, or holds all that it can.
ApiError unavailable(const std::string& message);
// 504.
ApiError out_of_time(double seconds);
// 500.
ApiError internal_error(const std::string& message);

}  // namespace thinkvg::serve
