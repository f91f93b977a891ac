#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace thinkvg::dist {

// This process's place among the processes of a job.
struct LaunchEnvironment {
  std::int64_t rank = 0;
  std::int64_t world_size = 1;
  std::int64_t local_rank = 0;  // among the processes of this machine: which GPU it takes
  std::string master_address = "127.0.0.1";
  std::int64_t master_port = 29500;
  bool external_store = false;  // a launcher's agent already serves the store at master_address
  std::int64_t attempt = 0;     // how often the launcher has started the job again; its store outlives a life
};

// The value of an environment variable; none where it is not set.
using Variables = std::function<std::optional<std::string>(const std::string& name)>;
std::optional<std::string> environment_variable(const std::string& name);

// Reads what the launcher says. WORLD_SIZE, RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT, TORCHELASTIC_USE_AGENT_STORE,
// TORCHELASTIC_RESTART_COUNT (torchrun) go first; then, in a step that srun started, SLURM_STEP_NUM_TASKS,
// SLURM_PROCID, SLURM_LOCALID: the address is the step's first host, the port is made of job and step, and MASTER_ADDR
// and MASTER_PORT replace either. With none of these the process is alone. Throws std::invalid_argument naming the
// variable that is missing or wrong.
LaunchEnvironment read_launch_environment(const Variables& variables = environment_variable);

// The first host of Slurm's compact list: "gpu[007-009,12],login" -> "gpu007". Throws std::invalid_argument where the
// brackets do not match.
std::string first_slurm_host(std::string_view list);

struct LocalLaunch {
  std::vector<std::string> command;  // program file and arguments
  std::int64_t processes = 1;
  double grace_seconds = 20;  // what the others get to report and end by themselves after one has failed
};
struct LocalLaunchResult {
  std::vector<int> exit_codes;         // by rank; 128 + signal where a signal ended it
  std::optional<std::int64_t> failed;  // the rank that failed first
};
// Runs the command once a rank on this machine, with the variables of read_launch_environment() and, unless it is set,
// OMP_NUM_THREADS as each one's share of the cores, and waits for all. SIGTERM, SIGINT and SIGUSR1 go on to them as a
// wish to save and stop; they end when this process dies. Call it while this process has no other threads that take
// signals. Throws std::runtime_error where a process cannot be started.
LocalLaunchResult launch_local(const LocalLaunch& launch);

}  // namespace thinkvg::dist
