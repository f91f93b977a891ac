#pragma once

#include <memory>
#include <string>

#include "thinkvg/serve/backend.h"
#include "thinkvg/serve/options.h"

namespace thinkvg::serve {

// An OpenAI-compatible HTTP server in front of a backend.
//
//   POST /v1/chat/completions   JSON or multipart/form-data, see chat_request.h; streams server-sent events. Each
//   choice
//                               carries a `thinkvg` object: reasoning, answer and boxes in pixels of the original
//                               picture (streams: sentences as they end, the whole with the finish reason)
//   GET  /v1/models, /v1/models/NAME
//   POST /v1/pictures/preview   a picture file as the body -> PNG, ?max_side=N; size in X-Picture-Width,
//   X-Picture-Height GET  /health                200, or 503 while the server stops GET  /metrics Prometheus' text
//   format GET  /                      a page to ask questions on
//
// Errors are OpenAI's error objects. Requests of /v1 need the key where one is set. A web page of another origin may
// only call where allowed_origins says so; a server on a loopback address without a key answers only to a loopback
// name, so that no page can reach it under a name of its own.
class Server {
 public:
  // `name`: the model's in the API. Throws std::invalid_argument naming a wrong setting.
  Server(const ServeOptions& options, const std::string& name, std::shared_ptr<ChatBackend> backend);
  // stop().
  ~Server();

  // Listens and answers, on threads of its own, and returns. Throws std::runtime_error where it cannot listen.
  void start();
  int port() const;
  // "http://127.0.0.1:8000".
  std::string url() const;
  // Takes no more requests, finishes those that have come within limits.shutdown_seconds, ends the others with an
  // error, and returns when all connections are closed.
  void stop();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace thinkvg::serve
