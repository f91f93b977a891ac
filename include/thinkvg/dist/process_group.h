#pragma once

// Shape letters: W processes, N numbers.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "thinkvg/dist/launch.h"
#include "thinkvg/dist/options.h"

namespace thinkvg::dist {

// The job ends because of another process, or because the processes do not agree; the text names rank, host and phase.
class PeerFailure : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

enum class Reduction { sum, min, max };

// Who takes part in a collective: all processes; those that split something among themselves (DistOptions::shard_size
// neighbours); or the processes that hold the same part as this one in the other shards. All processes make the call
// all the same, each with those of its own scope.
enum class Scope { all, shard, replicas };

// What the collectives of one name have cost this process.
struct CommunicationStats {
  std::int64_t count = 0;
  std::int64_t bytes_sent = 0;  // by the ring algorithms: 2 (W-1)/W of an all-reduce, (W-1)/W of the whole otherwise
  double seconds_waited = 0;
};

// A collective that is under way.
class PendingCollective {
 public:
  struct Impl;
  PendingCollective() = default;
  explicit PendingCollective(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
  // Until its result is there (CUDA: until work queued from now on comes behind it). Throws PeerFailure.
  void wait();

 private:
  friend class ProcessGroup;
  void then(std::function<void()> more);  // behind what wait() does; at once where nothing is under way

  std::shared_ptr<Impl> impl_;  // none: already done
};

// The processes of a job. Every process makes the same calls of collectives in the same order, each under a name that
// appears in messages; with one process each is the identity and costs nothing. Tensors are contiguous, on the CPU
// (Gloo) or on this process's GPU (NCCL, or Gloo by way of the CPU: DistOptions::backend).
//
// Failures: each process shows a sign of life in the store of rank 0 and watches a neighbour's. A process that is
// killed or stopped, is late at a collective, throws (tell it with fail()), or calls another collective than the others
// makes the collectives of all others throw PeerFailure, with its rank, host, phase and reason, within the times of
// DistOptions.
//
// One thread makes the calls, at a time.
class ProcessGroup {
 public:
  // This process alone.
  ProcessGroup();
  struct Hooks {
    // Called on a thread of its own when the job has failed and this process has not come to its next collective within
    // some seconds: a program ends the process here.
    std::function<void(const std::string& failure)> stuck;
  };
  // Waits for all processes of the environment. Throws std::runtime_error naming those that did not come.
  ProcessGroup(const LaunchEnvironment& environment, const DistOptions& options, const Hooks& hooks);
  ~ProcessGroup();
  ProcessGroup(const ProcessGroup&) = delete;
  ProcessGroup& operator=(const ProcessGroup&) = delete;

  std::int64_t rank(Scope scope = Scope::all) const;
  std::int64_t size(Scope scope = Scope::all) const;
  // Its number among the processes of this machine.
  std::int64_t local_rank() const;
  // Rank 0: the one that writes logs and checkpoints.
  bool is_main() const { return rank() == 0; }
  const DistOptions& options() const;
  // The part of `count` things in a row that is this rank's: every W-th, from the rank on.
  std::vector<std::int64_t> share_of(std::int64_t count) const;

  // What this process is doing, for messages; `step` counts from 1, 0 is before the first.
  void set_phase(const std::string& phase, std::int64_t step);
  // Tells all other processes why this one ends, and gives them the time to hear it. PeerFailure is not told again.
  void fail(const std::exception& error);

  // In place, over the scope's ranks; float, double, bfloat16 or int64.
  void all_reduce(at::Tensor tensor, const std::string& name, Reduction reduction = Reduction::sum,
                  Scope scope = Scope::all);
  PendingCollective start_all_reduce(at::Tensor tensor, const std::string& name, Reduction reduction = Reduction::sum,
                                     Scope scope = Scope::all);
  // In place, from rank `root`.
  void broadcast(at::Tensor tensor, const std::string& name, std::int64_t root = 0);
  // part [N], the same N everywhere -> [W, N]; W is the size of the scope here and below.
  at::Tensor all_gather(const at::Tensor& part, const std::string& name, Scope scope = Scope::all);
  // part [N] of every rank -> all [W N], in the order of the ranks; neither may be touched before wait() has returned.
  PendingCollective start_all_gather(const at::Tensor& part, at::Tensor all, const std::string& name,
                                     Scope scope = Scope::all);
  // all [W, N] -> the sum over ranks of this rank's row [N].
  at::Tensor reduce_scatter(const at::Tensor& all, const std::string& name, Scope scope = Scope::all);
  // all [W, N] -> own [N], the sum over ranks of this rank's row; neither may be touched before wait() has returned.
  PendingCollective start_reduce_scatter(const at::Tensor& all, at::Tensor own, const std::string& name,
                                         Scope scope = Scope::all);
  // Texts (or bytes) of any length, by rank, everywhere.
  std::vector<std::string> gather_texts(const std::string& text, const std::string& name);
  std::string broadcast_text(const std::string& text, const std::string& name, std::int64_t root = 0);
  // Element by element, in double precision.
  std::vector<double> sum(std::vector<double> values, const std::string& name, Scope scope = Scope::all);
  // Whether it holds on any rank.
  bool any(bool value, const std::string& name);
  void barrier(const std::string& name);
  // Throws on every rank, naming the values, unless all ranks gave the same.
  void require_equal(const std::string& value, const std::string& name);

  // By name of the collective.
  const std::map<std::string, CommunicationStats>& stats() const;
  // Of all names together.
  CommunicationStats total_stats() const;

  struct Impl;

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace thinkvg::dist
