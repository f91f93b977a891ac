#include "rewards/line_process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>

#include "thinkvg/core/error.h"

extern char** environ;

namespace thinkvg::rewards {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t kMaxLine = 1 << 20;
constexpr std::size_t kMaxErrors = 2000;  // bytes of standard error that are kept

void close_one(int& descriptor) {
  if (descriptor >= 0) ::close(descriptor);
  descriptor = -1;
}

std::string trimmed(std::string text) {
  while (!text.empty() && (text.back() == '\n' || text.back() == '\r' || text.back() == ' ')) text.pop_back();
  return text;
}

}  // namespace

LineProcess::LineProcess(const std::string& command) {
  std::array<int, 2> input{-1, -1}, output{-1, -1}, errors{-1, -1};
  const auto fail = [&](int reason) {
    for (auto* pair : {&input, &output, &errors})
      for (int& descriptor : *pair) close_one(descriptor);
    throw_failure("cannot start '{}': {}", command, std::strerror(reason));
  };
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, input.data()) != 0 ||
      ::pipe2(output.data(), O_CLOEXEC) != 0 || ::pipe2(errors.data(), O_CLOEXEC) != 0)
    fail(errno);

  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, input[1], STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, output[1], STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, errors[1], STDERR_FILENO);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t none, defaults;
  sigemptyset(&none);
  sigemptyset(&defaults);
  sigaddset(&defaults, SIGPIPE);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setsigdefault(&attributes, &defaults);
  posix_spawnattr_setpgroup(&attributes, 0);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);

  std::vector<char*> environment;
  for (char** entry = environ; *entry != nullptr; ++entry) environment.push_back(*entry);
  std::string unbuffered = "PYTHONUNBUFFERED=1";
  environment.push_back(unbuffered.data());
  environment.push_back(nullptr);
  std::string shell = "/bin/sh", flag = "-c", text = command;
  std::array<char*, 4> arguments = {shell.data(), flag.data(), text.data(), nullptr};
  const int result = posix_spawn(&pid_, shell.c_str(), &actions, &attributes, arguments.data(), environment.data());
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  if (result != 0) fail(result);
  ::close(input[1]);
  ::close(output[1]);
  ::close(errors[1]);
  input_ = input[0];
  output_ = output[0];
  errors_ = errors[0];
  for (const int descriptor : {input_, output_, errors_}) ::fcntl(descriptor, F_SETFL, O_NONBLOCK);
}

LineProcess::~LineProcess() {
  close_one(input_);  // the end of its input: a chance to end by itself
  for (int i = 0; i < 20 && pid_ > 0; ++i) {
    if (::waitpid(pid_, nullptr, WNOHANG) == pid_) {
      ::kill(-pid_, SIGKILL);  // what it may have left behind
      pid_ = -1;
      break;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  if (pid_ > 0) {
    ::kill(-pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  close_one(output_);
  close_one(errors_);
}

void LineProcess::read_errors() {
  std::array<char, 4096> block;
  while (errors_ >= 0) {
    const ssize_t count = ::read(errors_, block.data(), block.size());
    if (count > 0) {
      last_errors_.append(block.data(), static_cast<std::size_t>(count));
      if (last_errors_.size() > kMaxErrors) last_errors_.erase(0, last_errors_.size() - kMaxErrors);
    } else if (count == 0) {
      close_one(errors_);
    } else if (errno != EINTR) {
      return;
    }
  }
}

std::string LineProcess::with_errors(std::string problem) {
  read_errors();
  const std::string said = trimmed(last_errors_);
  return said.empty() ? problem : problem + "; it wrote: " + said;
}

// Waits a moment for the exit status of a process that closed its output.
std::string LineProcess::describe_end() {
  int status = 0;
  for (int i = 0; i < 50; ++i) {
    const pid_t ended = ::waitpid(pid_, &status, WNOHANG);
    if (ended == pid_) {
      ::kill(-pid_, SIGKILL);
      pid_ = -1;
      if (WIFSIGNALED(status)) return fmt::format("the program was ended by signal {}", WTERMSIG(status));
      return fmt::format("the program ended with exit code {}", WEXITSTATUS(status));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return "the program closed its output";
}

LineProcess::Exchange LineProcess::exchange(const std::vector<std::string>& lines, double timeout) {
  Exchange result;
  std::string text;
  for (const std::string& line : lines) text += line + "\n";
  std::size_t sent = 0;
  const auto allowed = std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(timeout));
  Clock::time_point deadline = Clock::now() + allowed;
  while (result.lines.size() < lines.size()) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
    if (left <= 0) {
      result.problem = with_errors(fmt::format("no reply within {:.3g} s (does it flush every line?)", timeout));
      return result;
    }
    // A negative descriptor is left out.
    std::array<pollfd, 3> polled = {pollfd{output_, POLLIN, 0}, pollfd{errors_, POLLIN, 0},
                                    pollfd{sent < text.size() ? input_ : -1, POLLOUT, 0}};
    if (::poll(polled.data(), polled.size(), static_cast<int>(std::min<std::int64_t>(left + 1, 1000))) < 0 &&
        errno != EINTR)
      throw_failure("cannot wait for a reward program: {}", std::strerror(errno));
    if (polled[1].revents != 0) read_errors();
    if (polled[2].revents != 0) {
      const ssize_t count = ::send(input_, text.data() + sent, text.size() - sent, MSG_NOSIGNAL);
      if (count > 0) {
        sent += static_cast<std::size_t>(count);
      } else if (errno != EAGAIN && errno != EINTR) {
        sent = text.size();  // it does not listen any more; its output tells what happened
      }
    }
    if (polled[0].revents == 0) continue;
    std::array<char, 65536> block;
    const ssize_t count = ::read(output_, block.data(), block.size());
    if (count < 0) continue;  // EAGAIN, EINTR
    if (count == 0) {
      std::string end = describe_end();
      result.problem = with_errors(std::move(end));
      return result;
    }
    buffer_.append(block.data(), static_cast<std::size_t>(count));
    std::size_t begin = 0;
    for (std::size_t end = buffer_.find('\n'); end != std::string::npos; end = buffer_.find('\n', begin)) {
      if (result.lines.size() == lines.size()) break;
      result.lines.push_back(buffer_.substr(begin, end - begin));
      begin = end + 1;
      deadline = Clock::now() + allowed;
    }
    buffer_.erase(0, begin);
    if (buffer_.size() > kMaxLine) {
      result.problem = with_errors("a reply of more than a megabyte");
      return result;
    }
  }
  if (!buffer_.empty())
    result.problem = with_errors(fmt::format("more output than one line a completion: '{:.80}'", buffer_));
  return result;
}

}  // namespace thinkvg::rewards
