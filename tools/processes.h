#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "thinkvg/dist/process_group.h"
#include "tools/cli.h"

namespace thinkvg::tools {

// Where `processes` asks for several and no launcher has started this process: runs this program with the same command
// and arguments once a rank, and returns the exit code of the first that failed, or 0. Otherwise nothing.
std::optional<int> run_processes(const std::string& command, const Arguments& arguments, std::int64_t processes);

// Joins the processes that torchrun, srun or run_processes started. All but rank 0 then only log warnings, with their
// rank; one that hangs after the job has failed ends itself.
std::unique_ptr<dist::ProcessGroup> join_processes(const dist::DistOptions& options);

}  // namespace thinkvg::tools
