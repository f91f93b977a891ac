#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "thinkvg/core/json.h"
#include "thinkvg/image/picture.h"

namespace thinkvg::test {

// A connection on which a test may misbehave.
class RawClient {
 public:
  explicit RawClient(int port, int receive_buffer = 0) : socket_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    if (receive_buffer > 0) setsockopt(socket_, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof(receive_buffer));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<std::uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(socket_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0)
      throw std::runtime_error("cannot connect");
  }
  ~RawClient() { close(); }
  RawClient(const RawClient&) = delete;
  RawClient& operator=(const RawClient&) = delete;

  void close() {
    if (socket_ >= 0) ::close(socket_);
    socket_ = -1;
  }
  // Closes so that the other side sees a reset.
  void reset() {
    const linger now = {1, 0};
    setsockopt(socket_, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
    close();
  }
  bool send(std::string_view text) {
    while (!text.empty()) {
      const ssize_t count = ::send(socket_, text.data(), text.size(), MSG_NOSIGNAL);
      if (count <= 0) return false;
      text.remove_prefix(static_cast<std::size_t>(count));
    }
    return true;
  }
  // At most `size` bytes of what comes within `seconds`; empty where nothing does, or the connection is closed.
  std::string receive_some(double seconds, std::size_t size = 65536) {
    pollfd file = {socket_, POLLIN, 0};
    if (poll(&file, 1, static_cast<int>(seconds * 1000)) <= 0) return {};
    std::string text(size, '\0');
    const ssize_t count = ::recv(socket_, text.data(), size, 0);
    text.resize(count > 0 ? static_cast<std::size_t>(count) : 0);
    closed_ = count <= 0;
    return text;
  }
  // All that comes until the connection is closed, `until` has come, or `seconds` are over.
  std::string receive(double seconds, const std::string& until = {}) {
    std::string text;
    const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
    while (std::chrono::steady_clock::now() < end && !closed_) {
      text += receive_some(0.05);
      if (!until.empty() && text.find(until) != std::string::npos) break;
    }
    return text;
  }
  bool closed() const { return closed_; }

 private:
  int socket_;
  bool closed_ = false;
};

inline std::string http_post(const std::string& path, const std::string& body, const std::string& headers = {},
                             const std::string& type = "application/json") {
  return "POST " + path + " HTTP/1.1\r\nHost: localhost\r\nContent-Type: " + type +
         "\r\nContent-Length: " + std::to_string(body.size()) + "\r\n" + headers + "\r\n" + body;
}

inline std::string base64(std::string_view bytes) {
  constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    std::uint32_t bits = 0;
    for (std::size_t k = 0; k < 3; ++k)
      bits = bits << 8 | (i + k < bytes.size() ? static_cast<unsigned char>(bytes[i + k]) : 0u);
    for (std::size_t k = 0; k < 4; ++k) text += i + k <= bytes.size() ? kDigits[bits >> (18 - 6 * k) & 63] : '=';
  }
  return text;
}

inline std::string grey_png(std::int64_t width, std::int64_t height) {
  image::Picture picture{width, height, std::vector<std::uint8_t>(static_cast<std::size_t>(width * height * 3), 90)};
  return image::encode_png(picture);
}

inline Json image_part(const std::string& bytes) {
  return {{"type", "image_url"}, {"image_url", {{"url", "data:image/png;base64," + base64(bytes)}}}};
}

inline Json chat_body(const std::string& question, const Json& more = Json::object()) {
  Json body = {{"model", "tiny"}, {"messages", Json::array({{{"role", "user"}, {"content", question}}})}};
  body.update(more);
  return body;
}

// The objects of a stream of server-sent events; "[DONE]" is the last, a text.
inline std::vector<Json> stream_events(const std::string& text) {
  std::vector<Json> events;
  for (std::size_t at = text.find("data: "); at != std::string::npos; at = text.find("data: ", at)) {
    at += 6;
    const std::size_t end = text.find("\n\n", at);
    const std::string data = text.substr(at, end - at);
    events.push_back(data == "[DONE]" ? Json(data) : Json::parse(data));
    if (end == std::string::npos) break;
    at = end;
  }
  return events;
}

}  // namespace thinkvg::test
