#include "thinkvg/dist/launch.h"

#include <netinet/in.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "thinkvg/core/error.h"

extern char** environ;

namespace thinkvg::dist {
namespace {

std::int64_t number_of(const std::string& name, const std::string& text) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 0)
    throw_invalid("the environment variable {} must be a number of 0 or more, but is '{}'", name, text);
  return value;
}

std::int64_t required_number(const Variables& variables, const std::string& name, const std::string& because) {
  const auto text = variables(name);
  if (!text)
    throw_invalid("{} is set, but {} is not; start the processes with torchrun --no-python, srun, or --processes N",
                  because, name);
  return number_of(name, *text);
}

void check(const LaunchEnvironment& environment) {
  if (environment.world_size < 1 || environment.rank >= environment.world_size)
    throw_invalid("this process is rank {} of {}; ranks count from 0", environment.rank, environment.world_size);
  if (environment.master_port < 1 || environment.master_port > 65535)
    throw_invalid("MASTER_PORT must be a port number, but is {}", environment.master_port);
}

// Ports below those that systems give out by themselves.
constexpr std::int64_t kFirstSlurmPort = 15000, kNumSlurmPorts = 10000;

LaunchEnvironment slurm_environment(const Variables& variables, std::int64_t num_tasks) {
  const std::string because = "SLURM_STEP_NUM_TASKS";
  LaunchEnvironment environment;
  environment.world_size = num_tasks;
  environment.rank = required_number(variables, "SLURM_PROCID", because);
  environment.local_rank = required_number(variables, "SLURM_LOCALID", because);
  auto hosts = variables("SLURM_STEP_NODELIST");
  if (!hosts) hosts = variables("SLURM_JOB_NODELIST");
  if (hosts) environment.master_address = first_slurm_host(*hosts);
  // Two steps of one job may share a host.
  std::int64_t key = 0;
  for (const char* name : {"SLURM_JOB_ID", "SLURM_STEP_ID"})
    if (const auto text = variables(name)) key = key * 31 + number_of(name, *text) % kNumSlurmPorts;
  environment.master_port = kFirstSlurmPort + key % kNumSlurmPorts;
  return environment;
}

}  // namespace

std::optional<std::string> environment_variable(const std::string& name) {
  const char* value = std::getenv(name.c_str());
  if (value == nullptr) return std::nullopt;
  return value;
}

std::string first_slurm_host(std::string_view list) {
  const std::size_t open = list.find('['), comma = list.find(',');
  if (open == std::string_view::npos || comma < open) return std::string(list.substr(0, comma));
  const std::size_t close = list.find(']', open);
  if (close == std::string_view::npos) throw_invalid("the list of hosts '{}' lacks a closing bracket", list);
  const std::string_view inside = list.substr(open + 1, close - open - 1);
  const std::size_t end = std::min(list.find(',', close), list.size());
  return std::string(list.substr(0, open)) + std::string(inside.substr(0, inside.find_first_of("-,"))) +
         std::string(list.substr(close + 1, end - close - 1));
}

LaunchEnvironment read_launch_environment(const Variables& variables) {
  LaunchEnvironment environment;
  if (const auto world_size = variables("WORLD_SIZE")) {
    environment.world_size = number_of("WORLD_SIZE", *world_size);
    environment.rank = required_number(variables, "RANK", "WORLD_SIZE");
    if (const auto local_rank = variables("LOCAL_RANK")) environment.local_rank = number_of("LOCAL_RANK", *local_rank);
    if (environment.world_size > 1) {
      if (!variables("MASTER_ADDR"))
        throw_invalid("WORLD_SIZE is {}, but MASTER_ADDR, the host of rank 0, is not set", environment.world_size);
      required_number(variables, "MASTER_PORT", "WORLD_SIZE");
    }
    const auto agent = variables("TORCHELASTIC_USE_AGENT_STORE");
    environment.external_store = agent && *agent == "True";
    if (const auto attempt = variables("TORCHELASTIC_RESTART_COUNT"))
      environment.attempt = number_of("TORCHELASTIC_RESTART_COUNT", *attempt);
  } else if (const auto tasks = variables("SLURM_STEP_NUM_TASKS")) {
    environment = slurm_environment(variables, number_of("SLURM_STEP_NUM_TASKS", *tasks));
  }
  if (environment.world_size > 1) {
    if (const auto address = variables("MASTER_ADDR")) environment.master_address = *address;
    if (const auto port = variables("MASTER_PORT")) environment.master_port = number_of("MASTER_PORT", *port);
  }
  check(environment);
  return environment;
}

namespace {

using Clock = std::chrono::steady_clock;

std::int64_t free_port() {
  const int descriptor = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  const bool found = descriptor >= 0 && bind(descriptor, reinterpret_cast<sockaddr*>(&address), size) == 0 &&
                     getsockname(descriptor, reinterpret_cast<sockaddr*>(&address), &size) == 0;
  const int error = errno;
  if (descriptor >= 0) close(descriptor);
  if (!found) throw_failure("no free port was found for the processes: {}", std::strerror(error));
  return ntohs(address.sin_port);
}

std::vector<std::string> variables_of(std::int64_t rank, const LocalLaunch& launch, std::int64_t port) {
  const std::int64_t cores = std::max<std::int64_t>(1, std::thread::hardware_concurrency());
  std::vector<std::pair<std::string, std::string>> own = {{"RANK", std::to_string(rank)},
                                                          {"LOCAL_RANK", std::to_string(rank)},
                                                          {"WORLD_SIZE", std::to_string(launch.processes)},
                                                          {"LOCAL_WORLD_SIZE", std::to_string(launch.processes)},
                                                          {"MASTER_ADDR", "127.0.0.1"},
                                                          {"MASTER_PORT", std::to_string(port)},
                                                          {"TORCHELASTIC_USE_AGENT_STORE", "False"}};
  if (!environment_variable("OMP_NUM_THREADS"))
    own.emplace_back("OMP_NUM_THREADS", std::to_string(std::max<std::int64_t>(1, cores / launch.processes)));
  std::vector<std::string> all;
  for (char** variable = environ; *variable != nullptr; ++variable) {
    const std::string text = *variable;
    const std::string name = text.substr(0, text.find('='));
    if (std::none_of(own.begin(), own.end(), [&](const auto& pair) { return pair.first == name; })) all.push_back(text);
  }
  for (const auto& [name, value] : own) all.push_back(name + "=" + value);
  return all;
}

std::vector<char*> pointers_to(std::vector<std::string>& texts) {
  std::vector<char*> pointers;
  for (std::string& text : texts) pointers.push_back(text.data());
  pointers.push_back(nullptr);
  return pointers;
}

// The signals that the launching thread takes one by one while it waits.
class BlockedSignals {
 public:
  BlockedSignals() {
    sigemptyset(&set_);
    for (const int signal : {SIGTERM, SIGINT, SIGUSR1, SIGCHLD}) sigaddset(&set_, signal);
    pthread_sigmask(SIG_BLOCK, &set_, &before_);
  }
  ~BlockedSignals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  BlockedSignals(const BlockedSignals&) = delete;
  BlockedSignals& operator=(const BlockedSignals&) = delete;
  const sigset_t& before() const { return before_; }
  // The next signal within a time; 0: none came.
  int next(std::chrono::milliseconds limit) const {
    const timespec time{limit.count() / 1000, limit.count() % 1000 * 1000000};
    const int signal = sigtimedwait(&set_, nullptr, &time);
    return signal < 0 ? 0 : signal;
  }

 private:
  sigset_t set_{};
  sigset_t before_{};
};

pid_t start(std::vector<std::string> command, std::vector<std::string> variables, const sigset_t& signals) {
  const std::vector<char*> arguments = pointers_to(command), environment = pointers_to(variables);
  const pid_t parent = getpid();
  const pid_t child = fork();
  if (child != 0) return child;
  // Only what may be called between fork and exec.
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (getppid() != parent) _exit(1);
  pthread_sigmask(SIG_SETMASK, &signals, nullptr);
  execve(arguments[0], arguments.data(), environment.data());
  _exit(127);
}

void signal_all(const std::vector<pid_t>& processes, int signal) {
  for (const pid_t process : processes)
    if (process > 0) kill(process, signal);
}

}  // namespace

LocalLaunchResult launch_local(const LocalLaunch& launch) {
  if (launch.processes < 1 || launch.command.empty())
    throw_invalid("a launch needs a command and at least one process, not {}", launch.processes);
  const std::int64_t port = free_port();
  const BlockedSignals signals;
  std::vector<pid_t> processes;
  LocalLaunchResult result;
  for (std::int64_t rank = 0; rank < launch.processes; ++rank) {
    const pid_t process = start(launch.command, variables_of(rank, launch, port), signals.before());
    if (process < 0) {
      const int error = errno;
      signal_all(processes, SIGKILL);
      for (const pid_t started : processes) waitpid(started, nullptr, 0);
      throw_failure("process {} of {} cannot be started: {}", rank + 1, launch.processes, std::strerror(error));
    }
    processes.push_back(process);
  }
  result.exit_codes.assign(processes.size(), 0);
  std::size_t num_running = processes.size();
  Clock::time_point deadline = Clock::time_point::max();
  bool asked_to_end = false;
  while (num_running > 0) {
    const int signal = signals.next(std::chrono::milliseconds(200));
    // A second SIGINT would end a process at once, and a terminal already sends one to each.
    if (signal == SIGTERM || signal == SIGINT || signal == SIGUSR1)
      signal_all(processes, signal == SIGINT ? SIGTERM : signal);
    int status = 0;
    for (std::size_t rank = 0; rank < processes.size(); ++rank) {
      if (processes[rank] < 0 || waitpid(processes[rank], &status, WNOHANG) <= 0) continue;
      const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
      result.exit_codes[rank] = code;
      processes[rank] = -1;
      --num_running;
      if (code == 0 || result.failed) continue;
      result.failed = static_cast<std::int64_t>(rank);
      deadline = Clock::now() + std::chrono::milliseconds(static_cast<std::int64_t>(launch.grace_seconds * 1000));
    }
    if (Clock::now() < deadline) continue;
    signal_all(processes, SIGCONT);  // one that was stopped would not notice
    signal_all(processes, asked_to_end ? SIGKILL : SIGTERM);
    asked_to_end = true;
    deadline = Clock::now() + std::chrono::seconds(5);
  }
  return result;
}

}  // namespace thinkvg::dist
