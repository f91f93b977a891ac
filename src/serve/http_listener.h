#pragma once

#include <httplib.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <list>
#include <mutex>
#include <string>
#include <thread>

namespace thinkvg::serve {

struct HttpLimits {
  std::int64_t connections = 512;
  double upload_seconds = 60;  // for a request's head, and again for its body
  double write_seconds = 60;   // without any progress
  double idle_seconds = 60;
};

// One client's connection as httplib reads and writes it. It bounds what httplib does not: the time that a request may
// take to come, whatever pauses it makes, and the size of its head. Used by the connection's own thread.
class Connection final : public httplib::Stream {
 public:
  // `stop` becomes readable when the server stops.
  Connection(int socket, int stop, const HttpLimits& limits) : socket_(socket), stop_(stop), limits_(limits) {}

  enum class Wait { request, closed, too_slow, too_large };
  // Waits for the whole head of the next request.
  Wait wait_for_request();

  bool is_readable() const override { return !broken_; }
  bool is_writable() const override { return !broken_; }
  ssize_t read(char* data, std::size_t size) override;
  ssize_t write(const char* data, std::size_t size) override;
  void get_remote_ip_and_port(std::string& ip, int& port) const override;
  void get_local_ip_and_port(std::string& ip, int& port) const override;
  // httplib looks only whether the number is too large for select(), which is not used here.
  socket_t socket() const override { return 0; }

  // The client has closed its side, or the connection is broken.
  bool client_gone() const;
  // The request's body did not come in time.
  bool timed_out() const { return timed_out_; }
  // What is left of the request has not been read, so that no other can follow it.
  void close_after_reply(bool close) { close_ = close; }
  bool closes_after_reply() const { return close_ || broken_ || timed_out_; }
  // Since the head had come.
  double request_seconds() const;
  // Ends the connection so that the client can still read what was written.
  void close_gently();

 private:
  using Clock = std::chrono::steady_clock;
  // Reads what is there into the buffer, waiting until `deadline` for something. False: nothing more comes.
  bool fill(Clock::time_point deadline, bool idle);

  int socket_;
  int stop_;
  const HttpLimits& limits_;
  std::string buffer_;
  std::size_t used_ = 0;  // of the buffer
  Clock::time_point head_came_{};
  bool broken_ = false;
  bool timed_out_ = false;
  bool close_ = false;
};

// httplib's server on connections of its own: a thread each, up to a limit beyond which clients get a 503 at once.
// Routes are set with httplib's methods before start().
class HttpListener : public httplib::Server {
 public:
  explicit HttpListener(const HttpLimits& limits);
  // stop(0).
  ~HttpListener() override;

  // Throws std::runtime_error where the address cannot be listened on. Port 0 takes any; port() tells it.
  void start(const std::string& host, int port);
  int port() const { return port_; }
  std::int64_t num_connections() const;

  // Takes no more connections, lets requests that have come be answered for `seconds`, calls `at_last`, ends the rest.
  void stop(double seconds, const std::function<void()>& at_last = {});
  bool stopping() const { return stopping_; }

  // The connection whose request is handled in this thread.
  static Connection& current();

 private:
  struct Client {
    int socket = -1;
    std::thread thread;
    bool ended = false;
  };

  void accept_clients();
  void serve(Client& client);
  void join_ended();

  HttpLimits limits_;
  int port_ = 0;
  int stop_pipe_[2] = {-1, -1};
  std::thread accepter_;
  std::atomic<bool> stopping_{false};
  mutable std::mutex mutex_;
  std::condition_variable ended_;
  std::list<Client> clients_;
};

}  // namespace thinkvg::serve
