#pragma once

// Shape letters: W processes, C numbers of one process's share of a bucket.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "thinkvg/core/json.h"
#include "thinkvg/dist/process_group.h"
#include "thinkvg/train/optimizer.h"

namespace thinkvg::train {

class ParameterShards;

// AdamW over several processes: every process has the same parameters before and after a step, and the step is that of
// the gradients summed over all of them, whatever dist.sharding says. What is kept where:
//   none       everything everywhere; gradients are all-reduced
//   optimizer  (ZeRO 1) states, masters and the update of each parameter are split evenly, number by number; gradients
//              are reduce-scattered once a step, updated parameters all-gathered
//   gradients  (ZeRO 2) gradients are reduce-scattered while each backward pass goes on, and only a share of their sums
//              is ever kept; passes run one after the other
//   parameters (ZeRO 3) weights are split, too, and updated where they are (parameter_shards.h)
// Where a process computes one pass at a time, gradients travel in buckets during the last backward pass of a step.
// With one process it is AdamW, to the bit. Collective: all processes call the same methods in the same order.
class DistributedAdamW {
 public:
  // `group` must outlive it, and so must `shards`, which dist.sharding parameters needs: of the model whose parameters
  // these are. Null otherwise.
  DistributedAdamW(const std::vector<ParameterGroup>& groups, const OptimizerOptions& options,
                   dist::ProcessGroup& group, ParameterShards* shards = nullptr);

  // The gradients of `count` losses of this process, and of the others' (whose count may be another, or 0), summed in
  // fp32, as accumulate_gradients; undefined for parameters that no loss of any process reaches. Where states are
  // sharded only this process's share is there: hand it on to step().
  std::vector<at::Tensor> accumulate(std::int64_t count, const std::function<at::Tensor(std::int64_t)>& loss);

  // Clips accumulate()'s gradients, in place, to the global norm and updates all parameters. Returns the global norm
  // before clipping; when it is not finite nothing is changed, on any process.
  double step(const std::vector<at::Tensor>& gradients, double lr);

  const models::NamedTensors& parameters() const { return parameters_; }
  // Whether a share of the states is here only.
  bool sharded() const { return sharded_; }
  // The states that this process has, by name; whole tensors, or, where sharded, its pieces [numbers].
  models::NamedTensors state() const { return local_->state(); }
  // Reads states out of the files of a checkpoint's trainer folder, which any number of processes may have written,
  // sharded or not. Throws std::runtime_error when a tensor is missing or has another size.
  void load_state(const std::filesystem::path& trainer_folder);

 private:
  // Neighbouring parameters that are sent together.
  struct Bucket {
    std::vector<std::size_t> places;    // in parameters_
    std::vector<std::int64_t> offsets;  // sharded: of a parameter's share in a row
    std::int64_t size = 0;              // numbers: of a row where sharded, of all otherwise
  };
  struct Piece {  // of one parameter, in this process
    std::int64_t begin = 0, length = 0;
    std::int64_t local_place = -1;  // in local_->parameters(); -1: nothing of it is here
  };
  class Exchange;
  void make_buckets();
  at::Tensor cut_piece(std::size_t place);
  std::int64_t share_size(std::size_t place) const;
  void gather_parameters();

  dist::ProcessGroup& group_;
  ParameterShards* shards_;
  bool sharded_ = false;
  bool shard_gradients_ = false;
  models::NamedTensors parameters_;
  std::vector<Bucket> buckets_;
  std::vector<Piece> pieces_;              // sharded only
  std::vector<std::size_t> shard_places_;  // in what shards_ gives
  std::unique_ptr<AdamW> local_;
};

// Name of the file that holds the optimizer's states of one of `count` processes, inside a checkpoint.
std::string optimizer_file(std::int64_t rank, std::int64_t count);

// What rank 0 finds, everywhere.
std::filesystem::path agreed_path(dist::ProcessGroup& group, const std::function<std::filesystem::path()>& find);

// Throws on every process unless all start from the same values of the parameters.
void require_equal_parameters(dist::ProcessGroup& group, const models::NamedTensors& parameters);

// "step_time/communication" and "communication_bytes" of this process since `before`; nothing with one process.
Json communication_metrics(const dist::ProcessGroup& group, const dist::CommunicationStats& before);

}  // namespace thinkvg::train
