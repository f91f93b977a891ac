#pragma once

// Shape letters: W processes, C numbers of one process's share of a section.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "thinkvg/dist/plan.h"
#include "thinkvg/dist/process_group.h"
#include "thinkvg/nn/block.h"
#include "thinkvg/train/trained_model.h"

namespace thinkvg::train {

// The weights of a model split evenly over the processes of a job (ZeRO 3, dist.sharding parameters): of each process a
// W-th of every block (nn::Block), and of all that lies in no block. The model's tensors stay the same objects; their
// memory comes when it is needed and goes again:
//   a pass      (accumulate) all that lies in no block is there throughout; a block for its part of the forward pass
//               and again for its part of the backward pass, and the next one is fetched meanwhile
//   whole       (Whole) everything at once, or the decoder's layers one by one: what generates or evaluates
// At any other time no forward pass may run. The tower and projector of a model whose image features never change
// (TrainedModel::fixed_features) are not split: they are needed for few pictures, at times of each process's own.
//
// Every process goes through the same turns in each pass, one block after the other, whatever it computes itself: a
// process without pictures fetches the tower's blocks for the others, and one without a pass fetches all.
// Collective: all processes call the same methods in the same order, on one thread at a time.
class ParameterShards {
 public:
  // Adapters of `trained` are split, too. Throws on every process unless all start from the same weights. Both must
  // outlive it. When it goes the model is left without the weights it had split.
  ParameterShards(const TrainedModel& trained, dist::ProcessGroup& group);
  ~ParameterShards();
  ParameterShards(const ParameterShards&) = delete;
  ParameterShards& operator=(const ParameterShards&) = delete;

  // What of a trained parameter is here.
  struct Piece {
    std::int64_t begin = 0, length = 0;  // numbers; length 0: nothing
    at::Tensor values;                   // [length]: writing to it changes the weights
  };
  const Piece& piece(const std::string& name) const;
  // The place of a trained parameter in Gradients.
  std::size_t place_of(const std::string& name) const;

  struct Gradients {
    std::vector<at::Tensor> pieces;     // of each trained parameter: this process's piece [length], fp32
    std::vector<std::int64_t> reached;  // 1: a loss of this process reached it
  };
  // The gradients of `count` losses of this process and of the others', summed. `rounds`: the largest count of any
  // process. In the order of TrainedModel::parameters().
  Gradients accumulate(std::int64_t count, std::int64_t rounds, const std::function<at::Tensor(std::int64_t)>& loss);

  // While one lives the model has all of its weights on this process, or, where not `here`, took part in fetching them
  // for others. Forward passes may run on any thread. `shards` may be null: nothing is split. Does not nest.
  // For generation and evaluation.
  //
  // `by_layer`: all but the decoder's layers is there, and these come and go, in each pass of any process and on all of
  // them together. Passes are without gradient and run one after the other (on a CPU ATen is given one thread
  // meanwhile); a process whose own passes are over says so with end_passes().
  class Whole {
   public:
    explicit Whole(ParameterShards* shards, bool here = true, bool by_layer = false);
    ~Whole();
    Whole(const Whole&) = delete;
    Whole& operator=(const Whole&) = delete;
    // Takes part in the passes of the others until none has any left. Before the next other collective, and before the
    // end; more passes may follow. Does nothing where the weights are whole.
    void end_passes();

   private:
    ParameterShards* shards_;
    int threads_ = 0;
  };
  // Calls body(tensor) for every tensor that is split, which has its memory for as long; layer by layer.
  void visit(const std::function<void(const at::Tensor&)>& body);
  // Bytes of what is split, whole.
  std::int64_t whole_bytes() const;

  // What a checkpoint holds, with the split weights as copies on the CPU that are fetched block by block; what
  // `content` gives elsewhere than on rank 0 stays as it is, and is of no use.
  models::FolderContent fetched(models::FolderContent content);

 private:
  class Wrapper;
  // Tensors that are fetched together: the trained ones of a unit, or the frozen ones.
  struct Section {
    bool trained = false;
    std::vector<at::Tensor> tensors;    // of the model
    std::vector<std::int64_t> offsets;  // in flat
    at::Tensor flat;                    // [W C], what the tensors are views of; without memory most of the time
    at::Tensor shard;                   // [C], always here
    dist::PendingCollective coming;
    at::Tensor gradient;  // [W, C] fp32, of this process's pass; undefined: none yet
    dist::PendingCollective going;
    at::Tensor sum;   // [C] fp32, of the pass over processes, when it has gone
    at::Tensor sums;  // [C] fp32, over passes and processes; undefined: none yet
  };
  // A block, or what lies in none.
  struct Unit {
    std::vector<Section> sections;
    enum class State { away, coming, here } state = State::away;
    std::size_t forward_turn = 0;
    std::size_t backward_turn = 0;  // beyond all turns: no gradient passes it
  };
  struct Turn {
    std::size_t unit = 0;
    bool backward = false;
  };
  struct Place {  // of a trained parameter
    std::size_t unit = 0, section = 0, tensor = 0;
  };

  void add_unit(const models::NamedTensors& tensors);
  void split(Section& section, const models::NamedTensors& tensors);
  void start(Unit& unit);
  void fetch(Unit& unit);
  void release(Unit& unit);
  void go_to(std::size_t turn);
  void end_turn();
  void start_reduce(std::size_t unit);
  void finish_reduce();
  void keep_gradient(std::size_t place, const at::Tensor& gradient);
  void run_pass(const std::function<at::Tensor()>& loss);
  void add_replicas();
  std::int64_t num_shares() const;
  at::Tensor run_block(std::size_t unit, const nn::BlockForward& forward, const at::Tensor& input);
  at::Tensor run_fetched(std::size_t unit, const nn::BlockForward& forward, const at::Tensor& input);

  dist::ProcessGroup& group_;
  models::NamedTensors parameters_;  // trained
  std::map<std::string, Piece> pieces_;
  std::vector<Place> places_;  // of parameters_
  std::vector<std::shared_ptr<nn::Block>> blocks_;
  std::vector<Unit> units_;      // of blocks_, and behind them what lies in none
  std::vector<Turn> turns_;      // of every pass
  std::size_t first_layer_ = 0;  // the decoder's, in blocks_: the tower's come before

  enum class Phase { none, whole, by_layer, forward, backward } phase_ = Phase::none;
  std::int64_t turn_ = -1;     // the one that has begun last; -1: none
  std::int64_t reduced_ = -1;  // the unit whose gradients are on their way; -1: none
  std::vector<std::int64_t> reached_;
};

// What ParameterShards splits of a model.
dist::SplitWeights split_weights(const TrainedModel& trained);

// Whether dist.rollout_weights is by_layer, or auto and some process (which all ask) has no room for the weights whole.
bool fetches_by_layer(const ParameterShards* shards, dist::ProcessGroup& group, at::Device device);

// None where dist.sharding does not ask for it, or the process is alone.
std::unique_ptr<ParameterShards> shard_parameters(const TrainedModel& trained, dist::ProcessGroup& group);

}  // namespace thinkvg::train
