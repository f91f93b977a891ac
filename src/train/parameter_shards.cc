#include "thinkvg/train/parameter_shards.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/DeviceGuard.h>
#include <torch/csrc/autograd/autograd.h>
#include <unistd.h>

#include <algorithm>
#include <set>
#include <utility>

#include "thinkvg/core/error.h"
#include "thinkvg/nn/device.h"
#include "thinkvg/nn/layers.h"
#include "thinkvg/train/distributed.h"
#include "train/gradient_hooks.h"

namespace thinkvg::train {
namespace {

// Tensors begin at multiples of so many numbers: what kernels read fastest.
constexpr std::int64_t kAlignment = 16;

std::int64_t rounded_up(std::int64_t count, std::int64_t unit) { return (count + unit - 1) / unit * unit; }

// Memory is taken from a tensor and given back with all of its views, those that a forward pass keeps for the backward
// pass included: once it is filled again they hold what they held.
void take_memory(const at::Tensor& flat) {
  c10::StorageImpl* storage = flat.storage().unsafeGetStorageImpl();
  storage->set_data_ptr_noswap(at::DataPtr(nullptr, flat.device()));
  storage->set_nbytes(std::size_t{0});
}
void give_memory(const at::Tensor& flat) {
  c10::StorageImpl* storage = flat.storage().unsafeGetStorageImpl();
  const auto bytes = static_cast<std::size_t>(flat.numel()) * flat.element_size();
  const c10::OptionalDeviceGuard guard(flat.is_cpu() ? std::nullopt : std::optional(flat.device()));
  storage->set_data_ptr_noswap(storage->allocator()->allocate(bytes));
  storage->set_nbytes(bytes);
}

// Names of a module's weights and of its layers' adapters. `prefix`: its own name in the model.
models::NamedTensors tensors_of(const torch::nn::Module& module, const std::string& prefix) {
  models::NamedTensors tensors;
  const std::string before = prefix.empty() ? "" : prefix + ".";
  for (const auto& item : module.named_parameters()) tensors.emplace_back(before + item.key(), item.value());
  for (const auto& item : module.named_modules(prefix, /*include_self=*/false)) {
    const auto* linear = dynamic_cast<const nn::Linear*>(item.value().get());
    if (linear == nullptr || !linear->adapter) continue;
    tensors.emplace_back(item.key() + ".lora_A.weight", linear->adapter->down);
    tensors.emplace_back(item.key() + ".lora_B.weight", linear->adapter->up);
  }
  return tensors;
}

// What is split of a model, in the order in which a forward pass comes to it.
struct Layout {
  struct Block {
    std::shared_ptr<nn::Block> module;
    models::NamedTensors tensors;
    bool learns = true;  // a gradient passes it
  };
  std::vector<Block> blocks;
  std::size_t num_of_tower = 0;  // they come first
  models::NamedTensors outside;
};

Layout lay_out(const TrainedModel& trained) {
  const models::VisionLanguageModel& model = trained.model();
  const auto is_language = [&](const std::string& name) { return model.part_of(name) == models::ModelPart::language; };
  const bool tower_is_split = !trained.fixed_features();
  const bool tower_learns =
      std::any_of(trained.parameters().begin(), trained.parameters().end(),
                  [&](const auto& item) { return model.part_of(item.first) == models::ModelPart::vision; });
  Layout layout;
  std::set<const at::TensorImpl*> in_blocks;
  for (const bool language : {false, true}) {
    for (const auto& item : model.named_modules("", /*include_self=*/false)) {
      auto block = std::dynamic_pointer_cast<nn::Block>(item.value());
      if (!block || is_language(item.key()) != language) continue;
      models::NamedTensors tensors = tensors_of(*block, item.key());
      for (const auto& [name, tensor] : tensors) in_blocks.insert(tensor.unsafeGetTensorImpl());
      if (!language && !tower_is_split) continue;
      layout.blocks.push_back({std::move(block), std::move(tensors), language || tower_learns});
      layout.num_of_tower += language ? 0 : 1;
    }
  }
  for (const auto& [name, tensor] : tensors_of(model, ""))
    if (!in_blocks.contains(tensor.unsafeGetTensorImpl()) && (is_language(name) || tower_is_split))
      layout.outside.emplace_back(name, tensor);
  return layout;
}

std::int64_t num_numbers(const models::NamedTensors& tensors, bool trained_alone) {
  std::int64_t count = 0;
  for (const auto& [name, tensor] : tensors)
    if (tensor.requires_grad() || !trained_alone) count += tensor.numel();
  return count;
}

}  // namespace

class ParameterShards::Wrapper final : public nn::BlockWrapper {
 public:
  Wrapper(ParameterShards& shards, std::size_t unit) : shards_(shards), unit_(unit) {}
  at::Tensor run(const nn::BlockForward& forward, const at::Tensor& input) override {
    return shards_.run_block(unit_, forward, input);
  }

 private:
  ParameterShards& shards_;
  std::size_t unit_;
};

ParameterShards::ParameterShards(const TrainedModel& trained, dist::ProcessGroup& group)
    : group_(group), parameters_(trained.parameters()) {
  require_equal_parameters(group, parameters_);
  const at::NoGradGuard no_grad;
  Layout layout = lay_out(trained);
  std::vector<bool> learns;
  for (Layout::Block& block : layout.blocks) {
    add_unit(block.tensors);
    learns.push_back(block.learns);
    blocks_.push_back(std::move(block.module));
  }
  first_layer_ = layout.num_of_tower;
  add_unit(layout.outside);

  std::map<const at::TensorImpl*, Place> places;
  for (std::size_t u = 0; u < units_.size(); ++u)
    for (std::size_t s = 0; s < units_[u].sections.size(); ++s)
      for (std::size_t t = 0; t < units_[u].sections[s].tensors.size(); ++t)
        places[units_[u].sections[s].tensors[t].unsafeGetTensorImpl()] = {u, s, t};
  for (const auto& [name, parameter] : parameters_) places_.push_back(places.at(parameter.unsafeGetTensorImpl()));

  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    units_[i].forward_turn = turns_.size();
    turns_.push_back({i, false});
    blocks_[i]->wrapper = std::make_shared<Wrapper>(*this, i);
  }
  for (std::size_t i = blocks_.size(); i-- > 0;) {
    units_[i].backward_turn = 2 * blocks_.size();
    if (!learns[i]) continue;
    units_[i].backward_turn = turns_.size();
    turns_.push_back({i, true});
  }
}

std::int64_t ParameterShards::num_shares() const { return group_.size(dist::Scope::shard); }

ParameterShards::~ParameterShards() {
  for (const auto& block : blocks_) block->wrapper = nullptr;
}

void ParameterShards::add_unit(const models::NamedTensors& tensors) {
  units_.emplace_back();
  for (const bool trained : {true, false}) {
    models::NamedTensors some;
    for (const auto& item : tensors)
      if (item.second.requires_grad() == trained) some.push_back(item);
    if (some.empty()) continue;
    Section& section = units_.back().sections.emplace_back();
    section.trained = trained;
    split(section, some);
  }
}

void ParameterShards::split(Section& section, const models::NamedTensors& tensors) {
  std::int64_t size = 0;
  for (const auto& [name, tensor] : tensors) {
    section.tensors.push_back(tensor);
    section.offsets.push_back(size);
    size += rounded_up(tensor.numel(), kAlignment);
  }
  const std::int64_t share = rounded_up(size, num_shares()) / num_shares(),
                     first = group_.rank(dist::Scope::shard) * share;
  const at::TensorOptions options = tensors.front().second.options().requires_grad(false);
  section.shard = at::zeros({share}, options);
  section.flat = at::empty({num_shares() * share}, options);
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const auto& [name, tensor] = tensors[i];
    if (tensor.scalar_type() != section.flat.scalar_type())
      throw_invalid("the weights of one layer must have one type to be split, but {} is of {}, not {}", name,
                    c10::toString(tensor.scalar_type()), c10::toString(section.flat.scalar_type()));
    const std::int64_t begin = std::clamp<std::int64_t>(first - section.offsets[i], 0, tensor.numel());
    const std::int64_t end = std::clamp<std::int64_t>(first + share - section.offsets[i], 0, tensor.numel());
    Piece piece{begin, end - begin, {}};
    piece.values = section.shard.narrow(0, begin == end ? 0 : section.offsets[i] + begin - first, piece.length);
    piece.values.copy_(tensor.detach().reshape({-1}).narrow(0, begin, piece.length));
    at::Tensor(tensor).set_data(section.flat.narrow(0, section.offsets[i], tensor.numel()).view(tensor.sizes()));
    if (!section.trained) continue;
    pieces_[name] = std::move(piece);
  }
  take_memory(section.flat);
}

const ParameterShards::Piece& ParameterShards::piece(const std::string& name) const {
  const auto found = pieces_.find(name);
  if (found == pieces_.end()) throw_invalid("no trained parameter {} is split", name);
  return found->second;
}

std::size_t ParameterShards::place_of(const std::string& name) const {
  for (std::size_t place = 0; place < parameters_.size(); ++place)
    if (parameters_[place].first == name) return place;
  throw_invalid("no trained parameter {} is split", name);
}

void ParameterShards::start(Unit& unit) {
  if (unit.state != Unit::State::away) return;
  for (Section& section : unit.sections) {
    give_memory(section.flat);
    section.coming = group_.start_all_gather(section.shard, section.flat, "parameters", dist::Scope::shard);
  }
  unit.state = Unit::State::coming;
}

void ParameterShards::fetch(Unit& unit) {
  start(unit);
  for (Section& section : unit.sections) section.coming.wait();
  unit.state = Unit::State::here;
}

void ParameterShards::release(Unit& unit) {
  for (Section& section : unit.sections) take_memory(section.flat);
  unit.state = Unit::State::away;
}

// Begins all turns up to this one, in their order, and ends those before it.
void ParameterShards::go_to(std::size_t turn) {
  const auto wanted = static_cast<std::int64_t>(turn);
  if (wanted < turn_ || turn >= turns_.size())
    throw_failure("a block of the model ran out of its turn, which models with split weights must not do");
  while (turn_ < wanted) {
    if (turn_ >= 0) end_turn();
    const auto now = static_cast<std::size_t>(++turn_);
    Unit& unit = units_[turns_[now].unit];
    start(unit);
    if (now + 1 < turns_.size()) start(units_[turns_[now + 1].unit]);
    fetch(unit);
  }
}

void ParameterShards::end_turn() {
  const auto now = static_cast<std::size_t>(turn_);
  const Turn& turn = turns_[now];
  if (turn.backward) start_reduce(turn.unit);
  // The last block of the forward pass is the first of the backward pass.
  const bool stays = now + 1 < turns_.size() && turns_[now + 1].unit == turn.unit;
  if (!stays) release(units_[turn.unit]);
}

void ParameterShards::start_reduce(std::size_t unit) {
  finish_reduce();
  for (Section& section : units_[unit].sections) {
    if (!section.trained) continue;
    const at::TensorOptions options = section.shard.options().dtype(at::kFloat);
    if (!section.gradient.defined()) section.gradient = at::zeros({num_shares(), section.shard.numel()}, options);
    section.sum = at::empty({section.shard.numel()}, options);
    section.going = group_.start_reduce_scatter(section.gradient, section.sum, "gradients", dist::Scope::shard);
  }
  reduced_ = static_cast<std::int64_t>(unit);
}

void ParameterShards::finish_reduce() {
  if (reduced_ < 0) return;
  const at::NoGradGuard no_grad;
  for (Section& section : units_[static_cast<std::size_t>(reduced_)].sections) {
    if (!section.trained) continue;
    section.going.wait();
    section.gradient = at::Tensor();
    section.sums = section.sums.defined() ? section.sums.add_(section.sum) : section.sum;
    section.sum = at::Tensor();
  }
  reduced_ = -1;
}

void ParameterShards::keep_gradient(std::size_t place, const at::Tensor& gradient) {
  const at::NoGradGuard no_grad;
  const Place& at_place = places_[place];
  Unit& unit = units_[at_place.unit];
  if (at_place.unit < blocks_.size() && static_cast<std::int64_t>(unit.backward_turn) < turn_)
    throw_failure("the gradient of {} came when its block's turn was over", parameters_[place].first);
  Section& section = unit.sections[at_place.section];
  if (!section.gradient.defined())
    section.gradient = at::zeros({num_shares(), section.shard.numel()}, section.shard.options().dtype(at::kFloat));
  section.gradient.view({-1})
      .narrow(0, section.offsets[at_place.tensor], gradient.numel())
      .add_(gradient.reshape({-1}));
  reached_[place] = 1;
}

at::Tensor ParameterShards::run_block(std::size_t unit, const nn::BlockForward& forward, const at::Tensor& input) {
  switch (phase_) {
    case Phase::whole:
      return forward(input);
    case Phase::by_layer:
      return run_fetched(unit, forward, input);
    case Phase::none:
      throw_failure("the model's weights are split over processes: they must be fetched before a forward pass");
    case Phase::backward:  // a checkpointed block runs again
      go_to(units_[unit].backward_turn);
      return forward(input);
    case Phase::forward:
      break;
  }
  go_to(units_[unit].forward_turn);
  at::Tensor output = forward(input);
  if (output.requires_grad())
    output.register_hook([this, unit](const at::Tensor&) { go_to(units_[unit].backward_turn); });
  return output;
}

// In a pass that all processes go through, each for itself or for the others' sake (an empty `forward`).
at::Tensor ParameterShards::run_fetched(std::size_t unit, const nn::BlockForward& forward, const at::Tensor& input) {
  if (unit < first_layer_) return forward(input);
  if (unit == first_layer_ && forward) group_.any(true, "pass");
  start(units_[unit]);
  if (unit + 1 < blocks_.size()) start(units_[unit + 1]);
  fetch(units_[unit]);
  at::Tensor output = forward ? forward(input) : at::Tensor();
  release(units_[unit]);
  return output;
}

// One pass of this process, or, without a loss, only its part in those of the others.
void ParameterShards::run_pass(const std::function<at::Tensor()>& loss) {
  turn_ = -1;
  if (loss) {
    phase_ = Phase::forward;
    const at::Tensor value = loss();
    phase_ = Phase::backward;
    const GradientHooks hooks(
        parameters_, [this](std::size_t place, const at::Tensor& gradient) { keep_gradient(place, gradient); });
    torch::autograd::backward({value});
  }
  phase_ = Phase::none;
  if (!turns_.empty()) {
    go_to(turns_.size() - 1);
    end_turn();
  }
  start_reduce(units_.size() - 1);
  finish_reduce();
}

// What the other shards have summed up in a step.
void ParameterShards::add_replicas() {
  const at::NoGradGuard no_grad;
  std::vector<dist::PendingCollective> pending;
  for (Unit& unit : units_)
    for (Section& section : unit.sections)
      if (section.trained && section.sums.defined())  // none in a step without passes
        pending.push_back(
            group_.start_all_reduce(section.sums, "gradients", dist::Reduction::sum, dist::Scope::replicas));
  for (dist::PendingCollective& one : pending) one.wait();
}

ParameterShards::Gradients ParameterShards::accumulate(std::int64_t count, std::int64_t rounds,
                                                       const std::function<at::Tensor(std::int64_t)>& loss) {
  reached_.assign(parameters_.size(), 0);
  Unit& rest = units_.back();
  fetch(rest);
  for (std::int64_t round = 0; round < rounds; ++round)
    run_pass(round < count ? [&] { return loss(round); } : std::function<at::Tensor()>());
  release(rest);
  add_replicas();
  Gradients gradients{std::vector<at::Tensor>(parameters_.size()), std::move(reached_)};
  for (std::size_t place = 0; place < parameters_.size(); ++place) {
    const Place& at_place = places_[place];
    const Section& section = units_[at_place.unit].sections[at_place.section];
    if (!section.sums.defined()) continue;
    const Piece& own = piece(parameters_[place].first);
    gradients.pieces[place] = section.sums.narrow(0, own.values.storage_offset(), own.length);
  }
  for (Unit& unit : units_)
    for (Section& section : unit.sections) section.sums = at::Tensor();
  return gradients;
}

void ParameterShards::visit(const std::function<void(const at::Tensor&)>& body) {
  for (Unit& unit : units_) {
    fetch(unit);
    for (const Section& section : unit.sections)
      for (const at::Tensor& tensor : section.tensors) body(tensor);
    release(unit);
  }
}

std::int64_t ParameterShards::whole_bytes() const {
  std::int64_t bytes = 0;
  for (const Unit& unit : units_)
    for (const Section& section : unit.sections)
      bytes += section.flat.numel() * static_cast<std::int64_t>(section.flat.element_size());
  return bytes;
}

ParameterShards::Whole::Whole(ParameterShards* shards, bool here, bool by_layer) : shards_(shards) {
  if (shards_ == nullptr) return;
  if (shards_->phase_ != Phase::none) throw_failure("the model's weights are in use: they cannot be fetched whole");
  if (by_layer) {
    for (std::size_t unit = 0; unit < shards_->first_layer_; ++unit) shards_->fetch(shards_->units_[unit]);
    shards_->fetch(shards_->units_.back());
    shards_->phase_ = Phase::by_layer;
    if (shards_->units_.back().sections.front().flat.is_cpu()) {
      threads_ = at::get_num_threads();
      at::set_num_threads(1);
    }
    return;
  }
  for (Unit& unit : shards_->units_) {
    shards_->fetch(unit);
    if (!here) shards_->release(unit);
  }
  if (here) shards_->phase_ = Phase::whole;
}

ParameterShards::Whole::~Whole() {
  if (shards_ == nullptr || (shards_->phase_ != Phase::whole && shards_->phase_ != Phase::by_layer)) return;
  if (threads_ > 0) at::set_num_threads(threads_);
  // One that is still coming (a pass was ended by an error) keeps its memory: others write to it.
  for (Unit& unit : shards_->units_)
    if (unit.state != Unit::State::coming) shards_->release(unit);
  shards_->phase_ = Phase::none;
}

void ParameterShards::Whole::end_passes() {
  if (shards_ == nullptr || shards_->phase_ != Phase::by_layer) return;
  while (shards_->group_.any(false, "pass"))
    for (std::size_t unit = shards_->first_layer_; unit < shards_->blocks_.size(); ++unit)
      shards_->run_fetched(unit, {}, {});
}

models::FolderContent ParameterShards::fetched(models::FolderContent content) {
  const at::NoGradGuard no_grad;
  std::map<const at::TensorImpl*, at::Tensor> copies;
  for (Unit& unit : units_) {
    fetch(unit);
    if (group_.is_main())
      for (const Section& section : unit.sections)
        for (const at::Tensor& tensor : section.tensors)
          copies[tensor.unsafeGetTensorImpl()] = tensor.detach().to(at::kCPU, tensor.scalar_type(), false, true);
    release(unit);
  }
  for (auto& [file, tensors] : content.tensors)
    for (auto& [name, tensor] : tensors)
      if (const auto found = copies.find(tensor.unsafeGetTensorImpl()); found != copies.end()) tensor = found->second;
  return content;
}

dist::SplitWeights split_weights(const TrainedModel& trained) {
  const Layout layout = lay_out(trained);
  dist::SplitWeights weights;
  weights.outside = num_numbers(layout.outside, false);
  weights.trained_outside = num_numbers(layout.outside, true);
  for (const Layout::Block& block : layout.blocks) {
    const std::int64_t count = num_numbers(block.tensors, false);
    weights.in_blocks += count;
    // The last block stays for its backward pass.
    if (block.learns && &block != &layout.blocks.back()) weights.backward += count;
    weights.largest_block = std::max(weights.largest_block, count);
    if (&block - layout.blocks.data() < static_cast<std::ptrdiff_t>(layout.num_of_tower)) weights.in_tower += count;
  }
  return weights;
}

bool fetches_by_layer(const ParameterShards* shards, dist::ProcessGroup& group, at::Device device) {
  if (shards == nullptr) return false;
  const std::string& how = group.options().rollout_weights;
  if (how != "auto") return how == "by_layer";
  // Processes of one machine share its memory.
  std::int64_t neighbours = 1;
  if (device.is_cpu()) {
    char host[256] = {};
    gethostname(host, sizeof host - 1);
    const std::vector<std::string> hosts = group.gather_texts(host, "hosts");
    neighbours = std::count(hosts.begin(), hosts.end(), host);
  }
  return group.any(2 * shards->whole_bytes() > nn::free_memory(device) / neighbours, "room for the weights");
}

std::unique_ptr<ParameterShards> shard_parameters(const TrainedModel& trained, dist::ProcessGroup& group) {
  if (group.size() == 1 || group.options().sharding != "parameters") return nullptr;
  return std::make_unique<ParameterShards>(trained, group);
}

}  // namespace thinkvg::train
