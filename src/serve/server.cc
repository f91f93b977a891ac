#include "thinkvg/serve/server.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cstdlib>
#include <ctime>
#include <random>
#include <semaphore>
#include <thread>

#include "serve/chat_session.h"
#include "serve/http_listener.h"
#include "serve/page.h"
#include "thinkvg/core/error.h"
#include "thinkvg/core/manifest.h"
#include "thinkvg/core/random.h"
#include "thinkvg/image/picture.h"

namespace thinkvg::serve {
namespace {

constexpr const char* kJson = "application/json; charset=utf-8";  // httplib compresses it without the charset: slowly
constexpr const char* kChatRoute = "/v1/chat/completions";
constexpr const char* kPreviewRoute = "/v1/pictures/preview";
constexpr std::int64_t kPreviewSide = 1600;
// Only what the page itself holds may run, and it may only talk to this server.
constexpr const char* kPagePolicy =
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:; connect-src "
    "'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

// "127.0.0.1" out of "127.0.0.1:8000", "::1" out of "[::1]:8000".
std::string host_of(const std::string& authority) {
  if (authority.starts_with('[')) return authority.substr(1, authority.find(']') - 1);
  return authority.substr(0, authority.find(':'));
}

bool is_loopback(std::string host) {
  std::transform(host.begin(), host.end(), host.begin(), [](unsigned char c) { return std::tolower(c); });
  return host == "localhost" || host.starts_with("127.") || host == "::1";
}

// In a time that does not tell how much of it is right.
bool same_secret(const std::string& a, const std::string& b) {
  unsigned difference = a.size() == b.size() ? 0 : 1;
  for (std::size_t i = 0; i < a.size(); ++i)
    difference |= static_cast<unsigned char>(a[i]) ^ static_cast<unsigned char>(b[b.empty() ? 0 : i % b.size()]);
  return difference == 0 && !b.empty();
}

std::string key_of(const ServeOptions& options) {
  if (!options.api_key.empty()) return options.api_key;
  const char* key = options.api_key_env.empty() ? nullptr : std::getenv(options.api_key_env.c_str());
  return key != nullptr ? key : "";
}

// Bytes of bodies that are held at one time.
class UploadBudget {
 public:
  explicit UploadBudget(std::int64_t limit) : limit_(limit) {}

  class Share {
   public:
    explicit Share(UploadBudget& budget) : budget_(budget) {}
    ~Share() { budget_.used_ -= bytes_; }
    Share(const Share&) = delete;
    Share& operator=(const Share&) = delete;
    void add(std::size_t size) {
      const auto bytes = static_cast<std::int64_t>(size);
      bytes_ += bytes;
      if (budget_.used_.fetch_add(bytes) + bytes > budget_.limit_)
        throw unavailable("the server holds as many uploads as it can; try again soon");
    }
    std::int64_t bytes() const { return bytes_; }

   private:
    UploadBudget& budget_;
    std::int64_t bytes_ = 0;
  };

 private:
  std::int64_t limit_;
  std::atomic<std::int64_t> used_{0};
};

void reply_with(const ApiError& error, httplib::Response& response) {
  response.status = error.status();
  response.set_content(error.json(), kJson);
  if (error.status() == 429 || error.status() == 503) response.set_header("Retry-After", "1");
  if (error.status() == 401) response.set_header("WWW-Authenticate", "Bearer");
}

}  // namespace

class Server::Impl {
 public:
  Impl(const ServeOptions& options, const std::string& name, std::shared_ptr<ChatBackend> backend)
      : options_(options),
        name_(name),
        backend_(std::move(backend)),
        key_(key_of(options)),
        created_(std::time(nullptr)),
        uploads_(options.limits.uploads_mb << 20),
        decoders_(std::max(2, static_cast<int>(std::thread::hardware_concurrency()))),
        listener_({options.limits.connections, options.limits.upload_seconds, options.limits.write_seconds,
                   options.limits.idle_seconds}) {
    options_.check();
    std::random_device device;
    nonce_ = static_cast<std::uint64_t>(device()) << 32 | device();
    set_routes();
  }

  void start() {
    if (!is_loopback(options_.host) && key_.empty())
      spdlog::warn(
          "listening on {} without a key: anyone who reaches this machine can ask and read answers. Set {} or "
          "--api_key, "
          "or listen on 127.0.0.1",
          options_.host, options_.api_key_env.empty() ? "--api_key_env" : options_.api_key_env);
    listener_.start(options_.host, static_cast<int>(options_.port));
  }
  int port() const { return listener_.port(); }
  std::string url() const {
    const bool v6 = options_.host.find(':') != std::string::npos;
    return fmt::format("http://{}{}{}:{}", v6 ? "[" : "", options_.host, v6 ? "]" : "", port());
  }
  void stop() {
    listener_.stop(options_.limits.shutdown_seconds, [this] { out_of_patience_ = true; });
  }

 private:
  void set_routes() {
    listener_.set_default_headers(
        {{"X-Content-Type-Options", "nosniff"}, {"Referrer-Policy", "no-referrer"}, {"Cache-Control", "no-store"}});
    listener_.set_pre_routing_handler(
        [this](const httplib::Request& request, httplib::Response& response) { return before(request, response); });
    listener_.set_post_routing_handler([](const httplib::Request&, httplib::Response& response) {
      response.headers.erase("Keep-Alive");  // httplib's numbers are not those of this listener
      if (!HttpListener::current().closes_after_reply()) return;
      response.headers.erase("Connection");
      response.set_header("Connection", "close");
    });
    listener_.set_exception_handler(
        [](const httplib::Request&, httplib::Response& response, std::exception_ptr exception) {
          try {
            std::rethrow_exception(exception);
          } catch (const ApiError& error) {
            reply_with(error, response);
          } catch (const std::bad_alloc&) {
            spdlog::error("a request was refused: out of memory");
            reply_with(unavailable("the server is out of memory; try again with less"), response);
          } catch (const std::exception& error) {
            spdlog::error("a request failed: {}", error.what());
            reply_with(internal_error("the server failed; its log says why"), response);
          }
        });
    listener_.set_error_handler(httplib::Server::HandlerWithResponse(
        [this](const httplib::Request& request, httplib::Response& response) { return explain(request, response); }));
    listener_.set_logger([this](const httplib::Request& request, const httplib::Response& response) {
      const double seconds = HttpListener::current().request_seconds();
      metrics_.count_response(route_of(request), response.status, seconds);
      spdlog::debug("{} {} {} {:.3f} s", request.method, request.path, response.status, seconds);
    });

    listener_.Get("/health", [this](const httplib::Request&, httplib::Response& response) {
      const bool stopping = listener_.stopping();
      response.status = stopping ? 503 : 200;
      response.set_content(stopping ? R"({"status":"stopping"})" : R"({"status":"ok"})", kJson);
    });
    listener_.Get("/metrics", [this](const httplib::Request&, httplib::Response& response) {
      response.set_content(metrics_.text({backend_->load(), in_progress_->load(), listener_.num_connections()}),
                           "text/plain; version=0.0.4; charset=utf-8");
    });
    listener_.Get("/v1/models", [this](const httplib::Request&, httplib::Response& response) {
      response.set_content(dump({{"object", "list"}, {"data", Json::array({model_card()})}}), kJson);
    });
    listener_.Get(R"(/v1/models/(.+))", [this](const httplib::Request& request, httplib::Response& response) {
      check_model(request.matches[1]);
      response.set_content(dump(model_card()), kJson);
    });
    listener_.Post(kChatRoute, [this](const httplib::Request& request, httplib::Response& response,
                                      const httplib::ContentReader& reader) { chat(request, response, reader); });
    listener_.Post(kPreviewRoute, [this](const httplib::Request& request, httplib::Response& response,
                                         const httplib::ContentReader& reader) { preview(request, response, reader); });
    if (options_.page) {
      listener_.Get("/", [](const httplib::Request&, httplib::Response& response) {
        response.set_header("Content-Security-Policy", kPagePolicy);
        response.set_content(std::string(page_html()), "text/html; charset=utf-8");
      });
      listener_.Get("/favicon.ico",
                    [](const httplib::Request&, httplib::Response& response) { response.status = 204; });
    }
  }

  static std::string route_of(const httplib::Request& request) {
    for (const char* route : {"/", "/health", "/metrics", "/v1/models", kChatRoute, kPreviewRoute})
      if (request.path == route) return route;
    return request.path.starts_with("/v1/models/") ? "/v1/models" : "other";
  }

  Json model_card() const {
    return {{"id", name_},
            {"object", "model"},
            {"created", created_},
            {"owned_by", "thinkvg"},
            {"max_model_len", backend_->context_length()}};
  }

  void check_model(const std::string& name) const {
    if (!name.empty() && name != name_)
      throw ApiError(404, "invalid_request_error", "model_not_found",
                     fmt::format("the model '{}' is not served here; this server has '{}'", name, name_), "model");
  }

  // What holds for all requests, before anything of a body is read.
  httplib::Server::HandlerResponse before(const httplib::Request& request, httplib::Response& response) {
    const bool has_body = request.method != "GET" && request.method != "HEAD" && request.method != "OPTIONS";
    HttpListener::current().close_after_reply(has_body);
    const std::string host = request.get_header_value("Host");
    if (key_.empty() && is_loopback(options_.host) && !is_loopback(host_of(host)))
      throw ApiError(403, "permission_error", "wrong_host",
                     fmt::format("this server answers only under a loopback name, not '{}'", host));
    const std::string origin = request.get_header_value("Origin");
    if (!origin.empty() && origin != "http://" + host && origin != "https://" + host) {
      const std::vector<std::string>& allowed = options_.allowed_origins;
      if (std::find(allowed.begin(), allowed.end(), origin) == allowed.end() &&
          std::find(allowed.begin(), allowed.end(), "*") == allowed.end())
        throw ApiError(403, "permission_error", "origin_not_allowed",
                       fmt::format("pages of {} may not call this server (allowed_origins)", origin));
      response.set_header("Access-Control-Allow-Origin", origin);
      response.set_header("Vary", "Origin");
      if (request.method == "OPTIONS") {
        response.set_header("Access-Control-Allow-Methods", "GET, POST");
        response.set_header("Access-Control-Allow-Headers", "Authorization, Content-Type");
        response.set_header("Access-Control-Max-Age", "600");
        response.status = 204;
        return httplib::Server::HandlerResponse::Handled;
      }
    }
    if (request.path.starts_with("/v1/") && !key_.empty() &&
        !same_secret(request.get_header_value("Authorization"), "Bearer " + key_))
      throw ApiError(401, "authentication_error", "invalid_api_key",
                     "a key is needed: send the header 'Authorization: Bearer KEY'");
    if (!has_body) return httplib::Server::HandlerResponse::Unhandled;
    if (listener_.stopping()) throw unavailable("the server is stopping");
    if (!request.has_header("Content-Length") && !request.has_header("Transfer-Encoding"))
      throw ApiError(411, "invalid_request_error", "length_required", "the request needs a Content-Length");
    const std::string length = request.get_header_value("Content-Length");
    if (!length.empty()) {
      std::int64_t bytes = 0;
      const auto [end, error] = std::from_chars(length.data(), length.data() + length.size(), bytes);
      if (end != length.data() + length.size() || bytes < 0 ||
          (error != std::errc() && error != std::errc::result_out_of_range))
        throw invalid_request("Content-Length is not a number", {}, "invalid_length");
      if (error == std::errc::result_out_of_range || bytes > options_.limits.body_mb << 20) throw too_large();
    }
    return httplib::Server::HandlerResponse::Unhandled;
  }

  ApiError too_large() const {
    return {413, "invalid_request_error", "request_too_large",
            fmt::format("the request's body is larger than {} MB (limits.body_mb)", options_.limits.body_mb)};
  }

  // Words for what httplib refuses itself, with a number alone.
  httplib::Server::HandlerResponse explain(const httplib::Request& request, httplib::Response& response) {
    if (!response.body.empty()) return httplib::Server::HandlerResponse::Unhandled;
    const std::string route = route_of(request);
    if (HttpListener::current().timed_out()) {
      reply_with(body_too_slow(), response);
    } else if (response.status == 404 && route != "other") {
      reply_with({405, "invalid_request_error", "method_not_allowed",
                  fmt::format("{} does not take {}", route, request.method)},
                 response);
    } else if (response.status == 404) {
      reply_with({404, "invalid_request_error", "not_found",
                  fmt::format("there is no {}; the API is {}, /v1/models, {}, /health and /metrics", request.path,
                              kChatRoute, kPreviewRoute)},
                 response);
    } else {
      reply_with({response.status, "invalid_request_error", "bad_request", "the request is no valid HTTP"}, response);
    }
    return httplib::Server::HandlerResponse::Handled;
  }

  ApiError body_too_slow() const {
    return {408, "invalid_request_error", "timeout",
            fmt::format("the request did not come within {:g} s", options_.limits.upload_seconds)};
  }

  // Throws unless the whole body came.
  void check_read(bool complete) const {
    if (HttpListener::current().timed_out()) throw body_too_slow();
    if (!complete)
      throw invalid_request("the request's body broke off, or is not what its headers say", {}, "incomplete_body");
    HttpListener::current().close_after_reply(false);
  }

  void add_bytes(UploadBudget::Share& share, std::size_t size) const {
    share.add(size);
    if (share.bytes() > options_.limits.body_mb << 20) throw too_large();
  }

  std::string read_body(const httplib::ContentReader& reader, UploadBudget::Share& share) const {
    std::string body;
    check_read(reader([&](const char* data, std::size_t size) {
      add_bytes(share, size);
      body.append(data, size);
      return true;
    }));
    return body;
  }

  ChatRequest read_chat(const httplib::Request& request, const httplib::ContentReader& reader,
                        UploadBudget::Share& share) const {
    std::string type = request.get_header_value("Content-Type");
    std::transform(type.begin(), type.end(), type.begin(), [](unsigned char c) { return std::tolower(c); });
    if (request.is_multipart_form_data()) {
      std::vector<FormPart> parts;
      check_read(reader(
          [&](const httplib::MultipartFormData& head) {
            if (parts.size() >= 256) throw invalid_request("the form has more than 256 parts");
            parts.push_back({head.name, head.filename, {}});
            return true;
          },
          [&](const char* data, std::size_t size) {
            add_bytes(share, size);
            parts.back().content.append(data, size);
            return true;
          }));
      return parse_chat_form(parts, options_);
    }
    if (!type.starts_with("application/json"))
      throw ApiError(415, "invalid_request_error", "unsupported_media_type",
                     "the body must be application/json or multipart/form-data");
    return parse_chat_request(read_body(reader, share), options_);
  }

  std::shared_ptr<void> take_place() {
    const auto counter = in_progress_;
    if (counter->fetch_add(1) >= options_.limits.requests) {
      --*counter;
      throw too_many_requests(options_.limits.requests);
    }
    return {static_cast<void*>(counter.get()), [counter](void*) { --*counter; }};
  }

  // Pictures are decoded by few at a time: each may take much memory.
  class DecoderTurn {
   public:
    DecoderTurn(std::counting_semaphore<>& decoders, double seconds) : decoders_(decoders) {
      if (!decoders_.try_acquire_for(std::chrono::duration<double>(seconds))) throw out_of_time(seconds);
    }
    ~DecoderTurn() { decoders_.release(); }
    DecoderTurn(const DecoderTurn&) = delete;
    DecoderTurn& operator=(const DecoderTurn&) = delete;

   private:
    std::counting_semaphore<>& decoders_;
  };

  std::shared_ptr<ChatSession> begin(ChatRequest request) {
    check_model(request.model);
    auto place = take_place();
    RandomStream random({hash_key("request"), nonce_, num_requests_++});
    ReplyHead head{fmt::format("chatcmpl-{:016x}{:08x}", random.next_u64(), random.next_u32()), std::time(nullptr),
                   name_};
    const std::uint64_t seed = request.seed.value_or(random.next_u64());
    // The connection outlives its session.
    Connection& connection = HttpListener::current();
    const DecoderTurn turn(decoders_, options_.limits.request_seconds);
    return std::make_shared<ChatSession>(
        std::move(request), seed,
        ChatSession::Context{*backend_, metrics_, std::move(head), options_.limits.request_seconds,
                             [&connection] { return connection.client_gone(); },
                             [this] { return out_of_patience_.load(); }, std::move(place)});
  }

  void chat(const httplib::Request& request, httplib::Response& response, const httplib::ContentReader& reader) {
    bool streams = false;
    std::shared_ptr<ChatSession> session;
    {
      UploadBudget::Share share(uploads_);
      ChatRequest asked = read_chat(request, reader, share);
      streams = asked.stream;
      session = begin(std::move(asked));
    }
    if (!streams) {
      response.set_content(session->whole_reply(), kJson);
      return;
    }
    response.set_header("X-Accel-Buffering", "no");
    response.set_chunked_content_provider("text/event-stream", [session](std::size_t, httplib::DataSink& sink) {
      const std::optional<std::string> part = session->next_part();
      if (!part || !sink.write(part->data(), part->size())) return false;
      if (session->stream_over()) sink.done();
      return true;
    });
  }

  void preview(const httplib::Request& request, httplib::Response& response, const httplib::ContentReader& reader) {
    std::int64_t side = kPreviewSide;
    if (request.has_param("max_side")) {
      const std::string text = request.get_param_value("max_side");
      const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), side);
      if (error != std::errc() || end != text.data() + text.size() || side < 16 || side > 8192)
        throw invalid_request("max_side must be between 16 and 8192", "max_side");
    }
    if (request.is_multipart_form_data())
      throw ApiError(415, "invalid_request_error", "unsupported_media_type",
                     "the body must be the picture's file itself");
    UploadBudget::Share share(uploads_);
    const std::string bytes = read_body(reader, share);
    const DecoderTurn turn(decoders_, options_.limits.request_seconds);
    image::Picture picture;
    try {
      picture = image::decode_picture(bytes, "the picture", options_.pictures);
    } catch (const std::bad_alloc&) {
      throw;
    } catch (const std::exception& error) {
      throw invalid_request(error.what(), {}, "invalid_image");
    }
    response.set_header("X-Picture-Width", std::to_string(picture.width));
    response.set_header("X-Picture-Height", std::to_string(picture.height));
    response.set_content(image::encode_png(image::thumbnail(picture, side)), "image/png");
  }

  ServeOptions options_;
  std::string name_;
  std::shared_ptr<ChatBackend> backend_;
  std::string key_;  // never logged
  std::time_t created_;
  std::uint64_t nonce_ = 0;
  std::atomic<std::uint64_t> num_requests_{0};
  // Of requests whose answer the backend still works on; places may outlive the server.
  std::shared_ptr<std::atomic<std::int64_t>> in_progress_ = std::make_shared<std::atomic<std::int64_t>>(0);
  std::atomic<bool> out_of_patience_{false};
  Metrics metrics_;
  UploadBudget uploads_;
  std::counting_semaphore<> decoders_;
  HttpListener listener_;  // ends first
};

Server::Server(const ServeOptions& options, const std::string& name, std::shared_ptr<ChatBackend> backend)
    : impl_(std::make_unique<Impl>(options, name, std::move(backend))) {}
Server::~Server() { stop(); }
void Server::start() { impl_->start(); }
int Server::port() const { return impl_->port(); }
std::string Server::url() const { return impl_->url(); }
void Server::stop() { impl_->stop(); }

}  // namespace thinkvg::serve
