#include "thinkvg/train/distributed.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "thinkvg/core/error.h"
#include "thinkvg/nn/workers.h"
#include "thinkvg/train/example.h"
#include "thinkvg/train/parameter_shards.h"
#include "train/gradient_hooks.h"

namespace thinkvg::train {
namespace fs = std::filesystem;
namespace {

constexpr const char* kGradients = "gradients";

std::int64_t ceil_divided(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// [numbers] -> [rows, C], filled up with zeros.
at::Tensor as_rows(const at::Tensor& tensor, std::int64_t rows) {
  const at::Tensor flat = tensor.reshape({-1});
  const std::int64_t share = ceil_divided(flat.numel(), rows);
  return at::constant_pad_nd(flat, {0, rows * share - flat.numel()}).view({rows, share});
}

// One process's states in a checkpoint.
struct StateFile {
  std::int64_t rank = 0;
  std::map<std::string, at::Tensor> tensors;
};

// All files of the states, in the order of the processes that wrote them.
std::vector<StateFile> read_states(const fs::path& folder) {
  if (const fs::path whole = folder / optimizer_file(0, 1); fs::exists(whole))
    return {{0, models::read_safetensors(whole)}};
  std::int64_t count = 0;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    const std::size_t place = name.rfind("-of-");
    if (name.starts_with("optimizer-") && place != std::string::npos)
      std::from_chars(name.data() + place + 4, name.data() + name.size(), count);
  }
  if (count == 0) throw_failure("{} holds no state of an optimizer", folder.string());
  std::vector<StateFile> files;
  for (std::int64_t rank = 0; rank < count; ++rank)
    files.push_back({rank, models::read_safetensors(folder / optimizer_file(rank, count))});
  return files;
}

}  // namespace

std::string optimizer_file(std::int64_t rank, std::int64_t count) {
  if (count == 1) return "optimizer.safetensors";
  return fmt::format("optimizer-{:05}-of-{:05}.safetensors", rank, count);
}

DistributedAdamW::DistributedAdamW(const std::vector<ParameterGroup>& groups, const OptimizerOptions& options,
                                   dist::ProcessGroup& group, ParameterShards* shards)
    : group_(group),
      shards_(shards),
      sharded_(group.size() > 1 && group.options().sharding != "none"),
      shard_gradients_(sharded_ && group.options().sharding != "optimizer") {
  for (const ParameterGroup& one : groups)
    parameters_.insert(parameters_.end(), one.parameters.begin(), one.parameters.end());
  if (sharded_ && (group.options().sharding == "parameters") != (shards != nullptr))
    throw_invalid("dist.sharding parameters, and it alone, takes an optimizer of ParameterShards");
  if (shards != nullptr)
    for (const auto& [name, parameter] : parameters_) shard_places_.push_back(shards->place_of(name));
  else
    make_buckets();
  if (!sharded_) {
    local_ = std::make_unique<AdamW>(groups, options);
    return;
  }
  // The same groups out of this process's pieces; pieces have one dimension, so that what decays is said here.
  std::vector<ParameterGroup> pieces;
  pieces_.resize(parameters_.size());
  std::size_t first = 0;
  std::int64_t num_local = 0;
  for (const ParameterGroup& one : groups) {
    for (const bool matrices : {true, false}) {
      ParameterGroup part{{}, one.lr_scale, matrices ? one.weight_decay : 0.0, /*decay_vectors=*/true};
      for (std::size_t i = 0; i < one.parameters.size(); ++i) {
        const auto& [name, parameter] = one.parameters[i];
        if ((parameter.dim() >= 2) != matrices) continue;
        Piece& piece = pieces_[first + i];
        const at::Tensor values = cut_piece(first + i);
        if (piece.length == 0) continue;
        piece.local_place = num_local++;
        part.parameters.emplace_back(name, values);
      }
      if (!part.parameters.empty()) pieces.push_back(std::move(part));
    }
    first += one.parameters.size();
  }
  local_ = std::make_unique<AdamW>(pieces, options);
}

// Sets the place of this process's piece of a parameter and returns its numbers.
at::Tensor DistributedAdamW::cut_piece(std::size_t place) {
  const auto& [name, parameter] = parameters_[place];
  Piece& piece = pieces_[place];
  if (shards_ != nullptr) {
    const ParameterShards::Piece& own = shards_->piece(name);
    piece.begin = own.begin;
    piece.length = own.length;
    return own.values;
  }
  if (!parameter.is_contiguous()) throw_invalid("the parameter {} is not contiguous: it cannot be sharded", name);
  const std::int64_t share = share_size(place);
  piece.begin = std::min(group_.rank(dist::Scope::shard) * share, parameter.numel());
  piece.length = std::min(share, parameter.numel() - piece.begin);
  return parameter.detach().view({-1}).narrow(0, piece.begin, piece.length);
}

void DistributedAdamW::make_buckets() {
  const std::int64_t limit = (group_.options().bucket_mb << 20) / 4;
  for (std::size_t place = 0; place < parameters_.size(); ++place) {
    const at::Tensor& parameter = parameters_[place].second;
    const std::int64_t numbers = sharded_ ? share_size(place) : parameter.numel();
    const std::int64_t factor = sharded_ ? group_.size(dist::Scope::shard) : 1;
    const bool fits = !buckets_.empty() && (buckets_.back().size + numbers) * factor <= limit &&
                      parameters_[buckets_.back().places.front()].second.scalar_type() == parameter.scalar_type();
    if (!fits) buckets_.emplace_back();
    Bucket& bucket = buckets_.back();
    bucket.places.push_back(place);
    bucket.offsets.push_back(bucket.size);
    bucket.size += numbers;
  }
}

std::int64_t DistributedAdamW::share_size(std::size_t place) const {
  return ceil_divided(parameters_[place].second.numel(), group_.size(dist::Scope::shard));
}

// The sums over processes of one set of gradients, bucket by bucket, from the last parameter to the first: in that
// order a backward pass comes to them. Every process sends the same buckets in the same order, whatever it has got.
class DistributedAdamW::Exchange {
 public:
  explicit Exchange(DistributedAdamW& optimizer)
      : optimizer_(optimizer),
        gradients_(optimizer.parameters_.size()),
        missing_(optimizer.buckets_.size()),
        bucket_of_(optimizer.parameters_.size()),
        next_(optimizer.buckets_.size()) {
    for (std::size_t b = 0; b < missing_.size(); ++b) {
      missing_[b] = optimizer.buckets_[b].places.size();
      for (const std::size_t place : optimizer.buckets_[b].places) bucket_of_[place] = b;
    }
  }

  // This process's gradient of a parameter is whole; undefined: it has none.
  void add(std::size_t place, at::Tensor gradient) {
    gradients_[place] = std::move(gradient);
    --missing_[bucket_of_[place]];
    while (next_ > 0 && missing_[next_ - 1] == 0) send(--next_);
  }

  // The sums, or this process's share of them; zeros where nobody had a gradient. What was not added counts as nothing.
  std::vector<at::Tensor> finish() {
    while (next_ > 0) send(--next_);
    for (dist::PendingCollective& one : pending_) one.wait();
    return std::move(gradients_);
  }

 private:
  void send(std::size_t b) {
    const at::NoGradGuard no_grad;
    const Bucket& bucket = optimizer_.buckets_[b];
    const at::Tensor& like = optimizer_.parameters_[bucket.places.front()].second;
    const at::TensorOptions options = like.options().dtype(at::kFloat).requires_grad(false);
    if (optimizer_.sharded_)
      scatter(bucket, options);
    else
      reduce(bucket, options);
  }

  void reduce(const Bucket& bucket, const at::TensorOptions& options) {
    const at::Tensor flat = at::empty({bucket.size}, options);
    for (std::size_t i = 0; i < bucket.places.size(); ++i) {
      const at::Tensor& parameter = optimizer_.parameters_[bucket.places[i]].second;
      at::Tensor& gradient = gradients_[bucket.places[i]];
      const at::Tensor part = flat.narrow(0, bucket.offsets[i], parameter.numel());
      if (gradient.defined())
        part.copy_(gradient.reshape({-1}));
      else
        part.zero_();
      gradient = part.view(parameter.sizes());
    }
    pending_.push_back(optimizer_.group_.start_all_reduce(flat, kGradients));
  }

  void scatter(const Bucket& bucket, const at::TensorOptions& options) {
    const std::int64_t num_processes = optimizer_.group_.size(dist::Scope::shard);
    const at::Tensor rows = at::zeros({num_processes, bucket.size}, options);
    for (std::size_t i = 0; i < bucket.places.size(); ++i) {
      at::Tensor& gradient = gradients_[bucket.places[i]];
      if (gradient.defined())
        rows.narrow(1, bucket.offsets[i], optimizer_.share_size(bucket.places[i]))
            .copy_(as_rows(gradient, num_processes));
      gradient = at::Tensor();
    }
    const at::Tensor own = optimizer_.group_.reduce_scatter(rows, kGradients, dist::Scope::shard);
    optimizer_.group_.all_reduce(own, kGradients, dist::Reduction::sum, dist::Scope::replicas);
    for (std::size_t i = 0; i < bucket.places.size(); ++i)
      gradients_[bucket.places[i]] =
          own.narrow(0, bucket.offsets[i], optimizer_.pieces_[bucket.places[i]].length).clone();
  }

  DistributedAdamW& optimizer_;
  std::vector<at::Tensor> gradients_;
  std::vector<std::size_t> missing_;  // of each bucket
  std::vector<std::size_t> bucket_of_;
  std::size_t next_;  // the buckets from here on are sent
  std::vector<dist::PendingCollective> pending_;
};

std::vector<at::Tensor> DistributedAdamW::accumulate(std::int64_t count,
                                                     const std::function<at::Tensor(std::int64_t)>& loss) {
  const auto local_sums = [&](std::int64_t some) {
    return some > 0 ? accumulate_gradients(parameters_, some, loss) : std::vector<at::Tensor>(parameters_.size());
  };
  if (group_.size() == 1) return local_sums(count);
  std::vector<std::int64_t> reached(parameters_.size(), 0);
  std::vector<at::Tensor> sums(parameters_.size());
  // Where every pass ends in exchanges every process takes part in each, with or without a micro-batch left.
  std::int64_t rounds = 1;
  if (shard_gradients_) {
    const at::Tensor most = at::full({1}, count, at::kLong);
    group_.all_reduce(most, "number of micro-batches", dist::Reduction::max);
    rounds = most.item<std::int64_t>();
  }
  const bool on_cpu = parameters_.front().second.device().is_cpu();
  if (shards_ != nullptr) {
    ParameterShards::Gradients gradients = shards_->accumulate(count, rounds, loss);
    for (std::size_t place = 0; place < sums.size(); ++place) {
      sums[place] = std::move(gradients.pieces[shard_places_[place]]);
      reached[place] = gradients.reached[shard_places_[place]];
    }
  } else if (on_cpu && nn::num_workers() > 1 && !shard_gradients_) {
    // Passes run side by side: a gradient is whole when all have ended.
    std::vector<at::Tensor> local = local_sums(count);
    Exchange exchange(*this);
    for (std::size_t place = local.size(); place-- > 0;) {
      reached[place] = local[place].defined() ? 1 : 0;
      exchange.add(place, std::move(local[place]));
    }
    sums = exchange.finish();
  } else {
    // With sharded gradients every pass ends in an exchange; otherwise the last pass alone.
    const std::int64_t before = shard_gradients_ ? 0 : std::max<std::int64_t>(0, count - 1);
    std::vector<at::Tensor> local = local_sums(before);
    for (std::int64_t round = 0; round < rounds; ++round) {
      Exchange exchange(*this);
      std::vector<bool> added(parameters_.size(), false);
      const auto add = [&](std::size_t place, at::Tensor gradient) {
        const at::NoGradGuard no_grad;
        if (local[place].defined()) gradient = gradient.defined() ? local[place].add_(gradient) : local[place];
        if (gradient.defined()) reached[place] = 1;
        added[place] = true;
        exchange.add(place, std::move(gradient));
        local[place] = at::Tensor();
      };
      if (before + round < count) {
        const at::Tensor last = loss(before + round);
        const GradientHooks hooks(parameters_, add);
        torch::autograd::backward({last});
      }
      for (std::size_t place = added.size(); place-- > 0;)
        if (!added[place]) add(place, at::Tensor());
      std::vector<at::Tensor> part = exchange.finish();
      for (std::size_t place = 0; place < sums.size(); ++place)
        sums[place] = sums[place].defined() ? sums[place].add_(part[place]) : part[place];
    }
  }
  // A parameter that no process reached must not be updated by weight decay alone.
  const at::Tensor anywhere = at::tensor(reached, at::kLong);
  group_.all_reduce(anywhere, "reached parameters", dist::Reduction::max);
  const std::int64_t* flags = anywhere.const_data_ptr<std::int64_t>();
  for (std::size_t place = 0; place < sums.size(); ++place)
    if (flags[place] == 0) sums[place] = at::Tensor();
  return sums;
}

double DistributedAdamW::step(const std::vector<at::Tensor>& gradients, double lr) {
  if (gradients.size() != parameters_.size())
    throw_invalid("AdamW: {} gradients for {} parameters", gradients.size(), parameters_.size());
  if (!sharded_) return local_->step(gradients, lr);
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> local(local_->parameters().size());
  double square = 0;
  for (std::size_t i = 0; i < gradients.size(); ++i) {
    if (!gradients[i].defined() || pieces_[i].local_place < 0) continue;
    const double norm = gradients[i].norm().item<double>();
    square += norm * norm;
    local[static_cast<std::size_t>(pieces_[i].local_place)] = gradients[i];
  }
  const double norm = std::sqrt(group_.sum({square}, "gradient norm", dist::Scope::shard).front());
  if (!std::isfinite(norm)) return norm;
  local_->step(local, lr, norm);
  if (shards_ == nullptr) gather_parameters();
  return norm;
}

void DistributedAdamW::gather_parameters() {
  for (const Bucket& bucket : buckets_) {
    const at::Tensor& like = parameters_[bucket.places.front()].second;
    const at::Tensor own = at::zeros({bucket.size}, like.options().requires_grad(false));
    for (std::size_t i = 0; i < bucket.places.size(); ++i) {
      const Piece& piece = pieces_[bucket.places[i]];
      const at::Tensor flat = parameters_[bucket.places[i]].second.detach().view({-1});
      own.narrow(0, bucket.offsets[i], piece.length).copy_(flat.narrow(0, piece.begin, piece.length));
    }
    const at::Tensor rows = group_.all_gather(own, "parameters", dist::Scope::shard);
    for (std::size_t i = 0; i < bucket.places.size(); ++i) {
      const at::Tensor parameter = parameters_[bucket.places[i]].second.detach();
      parameter.copy_(rows.narrow(1, bucket.offsets[i], share_size(bucket.places[i]))
                          .reshape({-1})
                          .narrow(0, 0, parameter.numel())
                          .view(parameter.sizes()));
    }
  }
}

void DistributedAdamW::load_state(const fs::path& trainer_folder) {
  const std::vector<StateFile> files = read_states(trainer_folder);
  std::map<std::string, std::pair<std::int64_t, std::int64_t>> wanted;  // numbers begin, length of each parameter
  for (std::size_t i = 0; i < parameters_.size(); ++i)
    wanted[parameters_[i].first] = sharded_ ? std::pair(pieces_[i].begin, pieces_[i].length)
                                            : std::pair(std::int64_t{0}, parameters_[i].second.numel());
  std::map<std::string, at::Tensor> state;
  for (const auto& [key, into] : local_->state()) {
    const std::string name = key.substr(0, key.rfind('.'));
    // The pieces of all files in a row are the whole; only what is wanted of it is read.
    const auto [begin, length] = wanted.at(name);
    std::vector<at::Tensor> parts;
    std::int64_t place = 0, got = 0;
    for (const StateFile& file : files) {
      const auto found = file.tensors.find(key);
      if (found == file.tensors.end()) continue;
      const at::Tensor flat = found->second.reshape({-1});
      if (into.dim() == 0) {  // a step count: the same in all
        state[key] = found->second.reshape({});
        break;
      }
      const std::int64_t from = std::max(begin, place), to = std::min(begin + length, place + flat.numel());
      if (from < to) {
        parts.push_back(flat.narrow(0, from - place, to - from));
        got += to - from;
      }
      place += flat.numel();
    }
    if (into.dim() == 0) continue;
    if (parts.empty()) continue;  // named by AdamW's own check
    if (got != length)
      throw_failure("the optimizer state's '{}' has {} numbers, but {} are expected", key, got, length);
    state[key] = (parts.size() == 1 ? parts.front() : at::cat(parts)).view(into.sizes());
  }
  local_->load_state(state);
}

fs::path agreed_path(dist::ProcessGroup& group, const std::function<fs::path()>& find) {
  return group.broadcast_text(group.is_main() ? find().string() : std::string(), "path");
}

void require_equal_parameters(dist::ProcessGroup& group, const models::NamedTensors& parameters) {
  if (group.size() == 1) return;
  const at::NoGradGuard no_grad;
  double sum = 0, magnitude = 0;
  for (const auto& [name, parameter] : parameters) {
    const at::Tensor values = parameter.to(at::kDouble);
    sum += values.sum().item<double>();
    magnitude += values.abs().sum().item<double>();
  }
  group.require_equal(fmt::format("sum {:a}, magnitude {:a}", sum, magnitude), "starting weights");
}

Json communication_metrics(const dist::ProcessGroup& group, const dist::CommunicationStats& before) {
  if (group.size() == 1) return Json::object();
  const dist::CommunicationStats now = group.total_stats();
  return {{"step_time/communication", now.seconds_waited - before.seconds_waited},
          {"communication_bytes", now.bytes_sent - before.bytes_sent}};
}

}  // namespace thinkvg::train
