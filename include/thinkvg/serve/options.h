#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "thinkvg/core/settings.h"
#include "thinkvg/generation/sampling.h"
#include "thinkvg/image/raster.h"

namespace thinkvg::serve {

// What a request may ask for, and how much may be going on.
struct ServeLimits {
  std::int64_t body_mb = 64;
  std::int64_t uploads_mb = 1024;
  std::int64_t pictures = 8;
  std::int64_t completions = 16;
  std::int64_t new_tokens = 8192;
  std::int64_t requests = 256;
  std::int64_t connections = 512;
  double request_seconds = 600;
  double upload_seconds = 60;
  double write_seconds = 60;
  double idle_seconds = 60;
  double shutdown_seconds = 60;

  void visit(SettingsVisitor& v) {
    v.setting("body_mb", body_mb, "Largest body of a request (413).");
    v.setting("uploads_mb", uploads_mb, "Largest sum of bodies that are held at one time (503).");
    v.setting("pictures", pictures, "Pictures of one request (400).");
    v.setting("completions", completions, "Completions of one request, n (400).");
    v.setting("new_tokens", new_tokens, "Largest max_tokens that a request may ask for (400).");
    v.setting("requests", requests, "Requests that run or wait at one time (429).");
    v.setting("connections", connections, "Connections that are open at one time (503).");
    v.setting("request_seconds", request_seconds, "Time for an answer, from the end of the upload on (504).");
    v.setting("upload_seconds", upload_seconds, "Time for sending a request (408).");
    v.setting("write_seconds", write_seconds, "A client that takes nothing for so long is given up.");
    v.setting("idle_seconds", idle_seconds, "A connection without a request is closed after this time.");
    v.setting("shutdown_seconds", shutdown_seconds, "Time that a stopping server gives to the requests it has begun.");
  }
  // Throws std::invalid_argument naming the setting.
  void check() const;
};

struct ServeOptions {
  std::string host = "127.0.0.1";
  std::int64_t port = 8000;
  std::string name;
  std::string api_key;
  std::string api_key_env = "THINKVG_API_KEY";
  std::vector<std::string> allowed_origins;
  std::string system;
  std::string instruction;
  bool page = true;
  generation::SamplingOptions sampling = {.max_new_tokens = 1024};
  image::ReadOptions pictures = {.max_pixels = 50'000'000};
  ServeLimits limits;

  void visit(SettingsVisitor& v) {
    v.setting("host", host, "Address to listen on. Anything but a loopback address is open to the network.");
    v.setting("port", port, "Port to listen on; 0: any free one.");
    v.setting("name", name, "Name of the model in the API; empty: that of its folder.");
    v.setting("api_key", api_key,
              "Key that requests must carry (Authorization: Bearer KEY). Visible to others on this machine: prefer the "
              "variable.");
    v.setting("api_key_env", api_key_env, "Environment variable that holds the key, where api_key is empty.");
    v.setting("allowed_origins", allowed_origins,
              "Web pages of other origins (https://host:port) that may call; '*': all.");
    v.setting("system", system, "System line of conversations that have none; empty: none.");
    v.setting("instruction", instruction, "Text behind the last question of a conversation; empty: none.");
    v.setting("page", page, "Serve the page at /.");
    v.section("sampling", sampling, "What a request gets where it does not say.");
    v.section("pictures", pictures, "How the pictures of requests are read.");
    v.section("limits", limits, "Limits, with the status that a request beyond them gets.");
  }
  // Throws std::invalid_argument naming the setting.
  void check() const;
};

}  // namespace thinkvg::serve
