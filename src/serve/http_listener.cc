#include "serve/http_listener.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <string_view>
#include <system_error>
#include <tuple>
#include <utility>

#include "thinkvg/core/error.h"
#include "thinkvg/serve/api_error.h"

namespace thinkvg::serve {
namespace {

constexpr std::size_t kMaxHead = 64 << 10;
constexpr std::size_t kReadSize = 64 << 10;
constexpr int kBacklog = 512;

thread_local Connection* current_connection = nullptr;

int milliseconds_until(std::chrono::steady_clock::time_point deadline) {
  const auto left =
      std::chrono::duration_cast<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now()).count();
  return static_cast<int>(std::clamp<std::int64_t>(left, 0, 1'000'000));
}

std::chrono::steady_clock::time_point after(double seconds) {
  return std::chrono::steady_clock::now() +
         std::chrono::duration_cast<std::chrono::steady_clock::duration>(std::chrono::duration<double>(seconds));
}

// An answer to what never became a request.
std::string plain_reply(const char* status, const ApiError& error) {
  const std::string body = error.json();
  return fmt::format(
      "HTTP/1.1 {}\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: {}\r\nRetry-After: 1\r\n"
      "Connection: close\r\n\r\n{}",
      status, body.size(), body);
}

std::pair<std::string, int> name_of(const sockaddr_storage& address, socklen_t length) {
  std::array<char, NI_MAXHOST> host{};
  std::array<char, NI_MAXSERV> port{};
  if (getnameinfo(reinterpret_cast<const sockaddr*>(&address), length, host.data(), host.size(), port.data(),
                  port.size(), NI_NUMERICHOST | NI_NUMERICSERV) != 0)
    return {"", -1};
  return {host.data(), std::atoi(port.data())};
}

}  // namespace

bool Connection::fill(Clock::time_point deadline, bool idle) {
  if (broken_) return false;
  while (true) {
    std::array<pollfd, 2> files = {{{socket_, POLLIN, 0}, {stop_, POLLIN, 0}}};
    // Only a connection that waits for its next request ends with the server at once.
    const int ready = poll(files.data(), idle ? 2 : 1, milliseconds_until(deadline));
    if (ready < 0 && errno == EINTR) continue;
    if (ready <= 0) {
      timed_out_ = ready == 0;
      broken_ = ready < 0;
      return false;
    }
    if (files[0].revents == 0) return false;
    buffer_.erase(0, used_);
    used_ = 0;
    const std::size_t before = buffer_.size();
    buffer_.resize(before + kReadSize);
    const ssize_t count = recv(socket_, buffer_.data() + before, kReadSize, 0);
    buffer_.resize(before + static_cast<std::size_t>(std::max<ssize_t>(count, 0)));
    if (count < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (count <= 0) broken_ = count < 0;
    return count > 0;
  }
}

Connection::Wait Connection::wait_for_request() {
  timed_out_ = close_ = false;
  const auto skip_blank_lines = [&] {
    while (used_ < buffer_.size() && (buffer_[used_] == '\r' || buffer_[used_] == '\n')) ++used_;
  };
  const Clock::time_point idle_end = after(limits_.idle_seconds);
  for (skip_blank_lines(); used_ == buffer_.size(); skip_blank_lines())
    if (!fill(idle_end, true)) return Wait::closed;
  const Clock::time_point head_end = after(limits_.upload_seconds);
  while (true) {
    const std::string_view head = std::string_view(buffer_).substr(used_);
    const std::size_t end = head.find("\r\n\r\n");
    if (std::min(end, head.size()) > kMaxHead) return Wait::too_large;
    if (end != std::string_view::npos) break;
    if (!fill(head_end, false)) return timed_out_ ? Wait::too_slow : Wait::closed;
  }
  head_came_ = Clock::now();
  return Wait::request;
}

ssize_t Connection::read(char* data, std::size_t size) {
  if (used_ == buffer_.size()) {
    const auto limit =
        std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(limits_.upload_seconds));
    if (!fill(head_came_ + limit, false)) return broken_ || timed_out_ ? -1 : 0;
  }
  const std::size_t count = std::min(size, buffer_.size() - used_);
  std::memcpy(data, buffer_.data() + used_, count);
  used_ += count;
  return static_cast<ssize_t>(count);
}

ssize_t Connection::write(const char* data, std::size_t size) {
  while (!broken_) {
    const ssize_t count = send(socket_, data, size, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (count >= 0) return count;
    if (errno == EINTR) continue;
    if (errno != EAGAIN && errno != EWOULDBLOCK) break;
    pollfd file = {socket_, POLLOUT, 0};
    const int ready = poll(&file, 1, static_cast<int>(limits_.write_seconds * 1000));
    if (ready < 0 && errno == EINTR) continue;
    if (ready <= 0 || (file.revents & (POLLERR | POLLHUP | POLLNVAL)) != 0) break;
  }
  broken_ = true;
  return -1;
}

void Connection::get_remote_ip_and_port(std::string& ip, int& port) const {
  sockaddr_storage address{};
  socklen_t length = sizeof(address);
  if (getpeername(socket_, reinterpret_cast<sockaddr*>(&address), &length) == 0)
    std::tie(ip, port) = name_of(address, length);
}

void Connection::get_local_ip_and_port(std::string& ip, int& port) const {
  sockaddr_storage address{};
  socklen_t length = sizeof(address);
  if (getsockname(socket_, reinterpret_cast<sockaddr*>(&address), &length) == 0)
    std::tie(ip, port) = name_of(address, length);
}

bool Connection::client_gone() const {
  if (broken_) return true;
  pollfd file = {socket_, POLLRDHUP, 0};
  return poll(&file, 1, 0) > 0 && (file.revents & (POLLRDHUP | POLLHUP | POLLERR | POLLNVAL)) != 0;
}

double Connection::request_seconds() const { return std::chrono::duration<double>(Clock::now() - head_came_).count(); }

void Connection::close_gently() {
  // Closing while bytes lie unread resets the connection, and the client may lose the reply that explains.
  ::shutdown(socket_, SHUT_WR);
  const Clock::time_point deadline = after(1);
  std::array<char, 16 << 10> rest{};
  std::size_t discarded = 0;
  while (!broken_ && discarded < (std::size_t{16} << 20)) {
    pollfd file = {socket_, POLLIN, 0};
    if (poll(&file, 1, milliseconds_until(deadline)) <= 0) break;
    const ssize_t count = recv(socket_, rest.data(), rest.size(), MSG_DONTWAIT);
    if (count <= 0) break;
    discarded += static_cast<std::size_t>(count);
  }
}

HttpListener::HttpListener(const HttpLimits& limits) : limits_(limits) {
  keep_alive_timeout_sec_ = static_cast<time_t>(limits.idle_seconds);
  set_tcp_nodelay(true);
  set_socket_options([](socket_t socket) {
    // httplib's own choice lets a second server share the port without a word.
    const int yes = 1;
    setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
  });
}

HttpListener::~HttpListener() { stop(0); }

Connection& HttpListener::current() { return *current_connection; }

void HttpListener::start(const std::string& host, int port) {
  errno = 0;
  port_ = port == 0 ? bind_to_any_port(host) : bind_to_port(host, port) ? port : -1;
  if (port_ < 0)
    throw_failure("cannot listen on {} port {}{}", host, port,
                  errno != 0 ? fmt::format(": {}", std::strerror(errno)) : "");
  ::listen(svr_sock_, kBacklog);  // httplib asks for 5
  if (pipe2(stop_pipe_, O_CLOEXEC) != 0) throw_failure("cannot make a pipe: {}", std::strerror(errno));
  accepter_ = std::thread([this] { accept_clients(); });
}

std::int64_t HttpListener::num_connections() const {
  const std::lock_guard lock(mutex_);
  return std::count_if(clients_.begin(), clients_.end(), [](const Client& client) { return !client.ended; });
}

void HttpListener::join_ended() {
  std::list<Client> ended;
  {
    const std::lock_guard lock(mutex_);
    for (auto client = clients_.begin(); client != clients_.end();) {
      const auto next = std::next(client);
      if (client->ended) ended.splice(ended.end(), clients_, client);
      client = next;
    }
  }
  for (Client& client : ended) client.thread.join();
}

void HttpListener::accept_clients() {
  while (true) {
    std::array<pollfd, 2> files = {{{svr_sock_, POLLIN, 0}, {stop_pipe_[0], POLLIN, 0}}};
    if (poll(files.data(), files.size(), -1) < 0 && errno != EINTR) break;
    if (files[1].revents != 0) break;
    if (files[0].revents == 0) continue;
    const int socket = accept4(svr_sock_, nullptr, nullptr, SOCK_CLOEXEC);
    join_ended();
    if (socket < 0) {
      // Out of file descriptors: some come free.
      if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS)
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
      continue;
    }
    const int yes = 1;
    setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes));
    if (num_connections() >= limits_.connections) {
      const std::string reply = plain_reply(
          "503 Service Unavailable",
          unavailable(fmt::format("the server already has {} connections, as many as it takes", limits_.connections)));
      send(socket, reply.data(), reply.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      ::shutdown(socket, SHUT_WR);
      ::close(socket);
      continue;
    }
    const std::lock_guard lock(mutex_);
    Client& client = clients_.emplace_back();
    client.socket = socket;
    try {
      client.thread = std::thread([this, &client] { serve(client); });
    } catch (const std::system_error& error) {
      spdlog::error("no thread for a connection: {}", error.what());
      ::close(socket);
      clients_.pop_back();
    }
  }
  ::close(svr_sock_);  // the number stays: httplib ends running streams where it is gone
}

void HttpListener::serve(Client& client) {
  Connection connection(client.socket, stop_pipe_[0], limits_);
  current_connection = &connection;
  try {
    bool goes_on = true;
    while (goes_on) {
      switch (connection.wait_for_request()) {
        case Connection::Wait::request: {
          bool closed = false;
          // A Range of a reply is never offered; httplib would make one as large as the header asks for.
          const auto set_up = [](httplib::Request& request) { request.ranges.clear(); };
          goes_on = process_request(connection, stopping_, closed, set_up) && !closed && !stopping_ &&
                    !connection.closes_after_reply();
          break;
        }
        case Connection::Wait::too_slow: {
          const std::string reply = plain_reply("408 Request Timeout", {408, "invalid_request_error", "timeout",
                                                                        "the request's head did not come in time"});
          connection.write(reply.data(), reply.size());
          goes_on = false;
          break;
        }
        case Connection::Wait::too_large: {
          const std::string reply =
              plain_reply("431 Request Header Fields Too Large",
                          {431, "invalid_request_error", "headers_too_large", "the request's head is too large"});
          connection.write(reply.data(), reply.size());
          goes_on = false;
          break;
        }
        case Connection::Wait::closed:
          goes_on = false;
          break;
      }
    }
    connection.close_gently();
  } catch (const std::exception& error) {
    spdlog::error("a connection ended: {}", error.what());
  }
  current_connection = nullptr;
  const std::lock_guard lock(mutex_);
  ::close(client.socket);
  client.socket = -1;
  client.ended = true;
  ended_.notify_all();
}

void HttpListener::stop(double seconds, const std::function<void()>& at_last) {
  if (!accepter_.joinable()) return;
  stopping_ = true;
  if (::write(stop_pipe_[1], "x", 1) != 1) spdlog::error("cannot tell the connections to stop");
  accepter_.join();
  const auto all_ended = [&] {
    return std::all_of(clients_.begin(), clients_.end(), [](const Client& client) { return client.ended; });
  };
  {
    std::unique_lock lock(mutex_);
    ended_.wait_until(lock, after(seconds), all_ended);
  }
  if (at_last) at_last();
  {
    std::unique_lock lock(mutex_);
    // Time for the last words to those who did not get their answer, then none.
    if (!ended_.wait_for(lock, std::chrono::seconds(2), all_ended)) {
      for (const Client& client : clients_)
        if (!client.ended) ::shutdown(client.socket, SHUT_RDWR);
      ended_.wait(lock, all_ended);
    }
  }
  join_ended();
  ::close(stop_pipe_[0]);
  ::close(stop_pipe_[1]);
}

}  // namespace thinkvg::serve
