#include "thinkvg/dist/process_group.h"

#include <ATen/ATen.h>
#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <exception>
#include <thread>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "dist/monitor.h"
#include "dist/nccl.h"
#include "dist/network.h"
#include "thinkvg/core/error.h"
#include "thinkvg/core/random.h"
#include "thinkvg/dist/plan.h"

namespace thinkvg::dist {
namespace {

using Clock = std::chrono::steady_clock;
using BackendPointer = c10::intrusive_ptr<c10d::Backend>;
using StorePointer = c10::intrusive_ptr<c10d::Store>;
using WorkPointer = c10::intrusive_ptr<c10d::Work>;

std::chrono::milliseconds milliseconds(double seconds) {
  return std::chrono::milliseconds(static_cast<std::int64_t>(seconds * 1000));
}

c10d::ReduceOp operation(Reduction reduction) {
  switch (reduction) {
    case Reduction::sum:
      return c10d::ReduceOp::SUM;
    case Reduction::min:
      return c10d::ReduceOp::MIN;
    case Reduction::max:
      return c10d::ReduceOp::MAX;
  }
  return c10d::ReduceOp::SUM;
}

const char* reduction_name(Reduction reduction) {
  return reduction == Reduction::sum ? "sum" : reduction == Reduction::min ? "min" : "max";
}

std::string shape_text(const at::Tensor& tensor) {
  return fmt::format("[{}] of {}", fmt::join(tensor.sizes(), ", "), c10::toString(tensor.scalar_type()));
}

at::Tensor bytes_of(const std::string& text, std::int64_t length) {
  at::Tensor bytes = at::zeros({length}, at::kByte);
  if (!text.empty()) std::memcpy(bytes.mutable_data_ptr(), text.data(), text.size());
  return bytes;
}

std::int64_t num_bytes(const at::Tensor& tensor) {
  return tensor.numel() * static_cast<std::int64_t>(tensor.element_size());
}

void require_contiguous(const at::Tensor& tensor, const std::string& name) {
  if (!tensor.defined() || !tensor.is_contiguous())
    throw_invalid("the tensor of the collective '{}' must be contiguous", name);
}

// Waits without holding a core, and without adding more than a few percent to what is waited for.
void pause_after(Clock::time_point start) {
  const double waited = seconds_since(start);
  if (waited < 1e-4)
    std::this_thread::yield();
  else
    std::this_thread::sleep_for(
        std::chrono::microseconds(static_cast<std::int64_t>(1e6 * std::min(1e-3, waited / 16))));
}

MakeNcclGroup find_nccl() {
  // Loaded by whoever first asked for CUDA.
  void* library = dlopen("libthinkvg_cuda.so", RTLD_NOW | RTLD_NOLOAD);
  if (library == nullptr) return nullptr;
  return reinterpret_cast<MakeNcclGroup>(dlsym(library, kNcclSymbol));
}

}  // namespace

// Some of the processes, in the order of their ranks.
struct Members {
  std::string name;  // in the store
  std::int64_t rank = 0;
  std::int64_t size = 1;
  BackendPointer control = {};  // Gloo
  BackendPointer device = {};   // NCCL, made for the first tensor on a GPU
};

struct ProcessGroup::Impl {
  LaunchEnvironment environment;
  DistOptions options;
  StorePointer store;                // rank 0 serves it
  std::unique_ptr<Monitor> monitor;  // none: this process alone
  Members everyone, shard, replicas;
  std::int64_t sequence = 0;
  bool told = false;
  int exceptions_before = std::uncaught_exceptions();
  std::map<std::string, CommunicationStats> stats;

  std::int64_t size() const { return everyone.size; }
  Members& members(Scope scope) { return scope == Scope::all ? everyone : scope == Scope::shard ? shard : replicas; }

  void set_members();
  void connect(const Hooks& hooks);
  StorePointer keys(const std::string& purpose) const;
  BackendPointer make_gloo(const Members& members, const std::string& address) const;
  std::string reachable_address(const std::string& own_address) const;
  c10d::Backend& backend_for(const at::Tensor& tensor, Scope scope);
  // Whether the tensor is sent by way of the CPU.
  bool is_staged(const at::Tensor& tensor) const;

  // Begins one collective: `call` starts its work.
  struct Call {
    std::string kind;
    std::string name;
    std::string shape;  // what has to agree, besides kind and name
    std::int64_t bytes_sent = 0;
    Scope scope = Scope::all;
  };
  template <class Start>
  std::shared_ptr<PendingCollective::Impl> begin(const Call& call, const at::Tensor& tensor, const Start& start);
  void compare(const Call& call);
  void finish(const WorkPointer& work, bool on_cpu);
  template <class Start>
  void run(const at::Tensor& tensor, const Start& start);
  std::vector<std::string> exchange_texts(const std::string& text);
};

struct PendingCollective::Impl {
  ProcessGroup::Impl* group;
  WorkPointer work;
  bool on_cpu = true;
  std::int64_t sequence = 0;
  std::string name;
  std::vector<at::Tensor> tensors;  // which the work uses
  std::function<void()> then;       // what is left to do when it has ended
};

void PendingCollective::wait() {
  if (!impl_) return;
  const std::shared_ptr<Impl> impl = std::move(impl_);
  impl_.reset();
  const auto start = Clock::now();
  impl->group->monitor->begin_wait(impl->sequence, impl->name);
  impl->group->finish(impl->work, impl->on_cpu);
  impl->group->monitor->end_wait();
  if (impl->then) impl->then();
  impl->group->stats[impl->name].seconds_waited += seconds_since(start);
}

void PendingCollective::then(std::function<void()> more) {
  if (!impl_) return more();
  impl_->then = [before = std::move(impl_->then), more = std::move(more)] {
    if (before) before();
    more();
  };
}

std::string ProcessGroup::Impl::reachable_address(const std::string& own_address) const {
  if (!is_loopback(own_address)) return own_address;
  // Rank 0 sees its own host by a loopback address, which is of no use to other hosts.
  for (const Sign& sign : monitor->first_signs())
    if (!is_loopback(sign.address)) return address_towards(sign.address, environment.master_port);
  return own_address;
}

// Apart from those of the job's earlier lives, which a launcher's store still holds.
StorePointer ProcessGroup::Impl::keys(const std::string& purpose) const {
  return c10::make_intrusive<c10d::PrefixStore>(fmt::format("thinkvg/{}/{}", environment.attempt, purpose),
                                                store->clone());
}

void ProcessGroup::Impl::set_members() {
  const std::int64_t rank = environment.rank, world = environment.world_size;
  const std::int64_t a_shard = options.processes_a_shard(world);
  everyone = {.name = "all", .rank = rank, .size = world};
  shard = {.name = fmt::format("shard-{}", rank / a_shard), .rank = rank % a_shard, .size = a_shard};
  replicas = {.name = fmt::format("replicas-{}", rank % a_shard), .rank = rank / a_shard, .size = world / a_shard};
}

BackendPointer ProcessGroup::Impl::make_gloo(const Members& members, const std::string& address) const {
  auto gloo = c10d::ProcessGroupGloo::Options::create(
      // Gloo's own time-out comes behind ours, which can name who is late.
      milliseconds(std::max(options.start_timeout, 2 * options.timeout + options.heartbeat_timeout)));
  const auto interface = environment_variable("GLOO_SOCKET_IFNAME");
  gloo->devices.push_back(interface ? c10d::ProcessGroupGloo::createDeviceForInterface(*interface)
                                    : c10d::ProcessGroupGloo::createDeviceForHostname(address));
  return c10::make_intrusive<c10d::ProcessGroupGloo>(keys("gloo/" + members.name), static_cast<int>(members.rank),
                                                     static_cast<int>(members.size), gloo);
}

void ProcessGroup::Impl::connect(const Hooks& hooks) {
  const std::string place = fmt::format("{}:{}", environment.master_address, environment.master_port);
  c10d::TCPStoreOptions server;
  server.port = static_cast<std::uint16_t>(environment.master_port);
  server.isServer = environment.rank == 0 && !environment.external_store;
  server.numWorkers = static_cast<std::size_t>(environment.world_size);
  server.waitWorkers = false;
  server.timeout = milliseconds(options.start_timeout);
  try {
    store = c10::make_intrusive<c10d::TCPStore>(environment.master_address, server);
  } catch (const std::exception& error) {
    if (server.isServer)
      throw_failure("rank 0 on {} cannot serve the store at {}: {}; give another MASTER_PORT if it is taken",
                    host_name(), place, plain_text(error));
    throw_failure("rank {} on {} cannot reach rank 0's store at {}: {}; is rank 0 up, and its port open?",
                  environment.rank, host_name(), place, plain_text(error));
  }
  const std::string own_address = address_towards(environment.master_address, environment.master_port);
  try {
    monitor = std::make_unique<Monitor>(
        keys("life"),
        Monitor::Place{environment.rank, environment.world_size, own_address, place, environment.external_store},
        options, hooks.stuck);
    const std::string address = reachable_address(own_address);
    everyone.control = make_gloo(everyone, address);
    for (Members* some : {&shard, &replicas})
      if (some->size > 1 && some->size < everyone.size) some->control = make_gloo(*some, address);
  } catch (const std::exception& error) {
    if (monitor) monitor->check();
    throw_failure("rank {} cannot connect to the others: {}", environment.rank, plain_text(error));
  }
}

bool ProcessGroup::Impl::is_staged(const at::Tensor& tensor) const {
  if (tensor.device().is_cpu()) return false;
  return options.backend == "gloo" || (options.backend == "auto" && !tensor.device().is_cuda());
}

c10d::Backend& ProcessGroup::Impl::backend_for(const at::Tensor& tensor, Scope scope) {
  Members& some = members(scope).size == everyone.size ? everyone : members(scope);
  if (tensor.device().is_cpu()) return *some.control;
  if (!some.device) {
    const MakeNcclGroup make = find_nccl();
    if (make != nullptr)
      some.device = make({keys("nccl/" + some.name), static_cast<int>(some.rank), static_cast<int>(some.size),
                          milliseconds(options.timeout)});
    if (!some.device)
      throw_failure(
          "tensors on a GPU need NCCL, which is not there: build with -DTHINKVG_CUDA=ON where nccl.h is found");
  }
  return *some.device;
}

void ProcessGroup::Impl::finish(const WorkPointer& work, bool on_cpu) {
  if (!on_cpu) {
    work->wait();  // orders the stream behind it
    return;
  }
  const auto start = Clock::now();
  while (!work->isCompleted()) {
    monitor->check();
    pause_after(start);
  }
  if (!work->exception()) return;
  try {
    std::rethrow_exception(work->exception());
  } catch (const std::exception& error) {
    monitor->connection_broke(plain_text(error));
  }
}

template <class Start>
void ProcessGroup::Impl::run(const at::Tensor& tensor, const Start& start) {
  WorkPointer work;
  try {
    work = start(backend_for(tensor, Scope::all));
  } catch (const c10::Error& error) {
    monitor->connection_broke(plain_text(error));
  }
  finish(work, tensor.device().is_cpu());
}

std::vector<std::string> ProcessGroup::Impl::exchange_texts(const std::string& text) {
  at::Tensor length = at::full({1}, static_cast<std::int64_t>(text.size()), at::kLong);
  at::Tensor lengths = at::empty({size()}, at::kLong);
  run(length, [&](c10d::Backend& backend) { return backend._allgather_base(lengths, length); });
  const std::int64_t longest = std::max<std::int64_t>(1, lengths.max().item<std::int64_t>());
  at::Tensor own = bytes_of(text, longest), all = at::empty({size() * longest}, at::kByte);
  run(own, [&](c10d::Backend& backend) { return backend._allgather_base(all, own); });
  std::vector<std::string> texts;
  const char* data = reinterpret_cast<const char*>(all.const_data_ptr<std::uint8_t>());
  for (std::int64_t i = 0; i < size(); ++i)
    texts.emplace_back(data + i * longest, static_cast<std::size_t>(lengths[i].item<std::int64_t>()));
  return texts;
}

void ProcessGroup::Impl::compare(const Call& call) {
  const std::string text = fmt::format("exchange {}: {} '{}' {}", sequence, call.kind, call.name, call.shape);
  at::Tensor own = at::full({1}, static_cast<std::int64_t>(hash_key(text)), at::kLong);
  at::Tensor all = at::empty({size()}, at::kLong);
  run(own, [&](c10d::Backend& backend) { return backend._allgather_base(all, own); });
  if (all.eq(own).all().item<bool>()) return;
  const std::vector<std::string> texts = exchange_texts(text);
  std::map<std::string, std::string> ranks;
  for (std::size_t rank = 0; rank < texts.size(); ++rank) {
    std::string& list = ranks[texts[rank]];
    list += (list.empty() ? "rank " : ", ") + std::to_string(rank);
  }
  std::string message = "the processes went different ways:";
  for (const auto& [what, who] : ranks) message += fmt::format(" {} is at {};", who, what);
  message += " settings, data and program must be the same everywhere";
  throw PeerFailure(message);
}

template <class Start>
std::shared_ptr<PendingCollective::Impl> ProcessGroup::Impl::begin(const Call& call, const at::Tensor& tensor,
                                                                   const Start& start) {
  monitor->check();
  ++sequence;
  monitor->begin_collective(sequence, call.name);
  CommunicationStats& cost = stats[call.name];
  ++cost.count;
  cost.bytes_sent += call.bytes_sent;
  if (options.check_collectives) {
    const auto begun = Clock::now();
    monitor->begin_wait(sequence, call.name);
    compare(call);
    monitor->end_wait();
    cost.seconds_waited += seconds_since(begun);
  }
  auto pending = std::make_shared<PendingCollective::Impl>();
  pending->group = this;
  pending->on_cpu = tensor.device().is_cpu();
  pending->sequence = sequence;
  pending->name = call.name;
  pending->tensors = {tensor};
  try {
    pending->work = start(backend_for(tensor, call.scope));
  } catch (const c10::Error& error) {
    monitor->connection_broke(plain_text(error));
  }
  return pending;
}

ProcessGroup::ProcessGroup() : impl_(std::make_unique<Impl>()) {}

ProcessGroup::ProcessGroup(const LaunchEnvironment& environment, const DistOptions& options, const Hooks& hooks)
    : impl_(std::make_unique<Impl>()) {
  options.check();
  impl_->environment = environment;
  impl_->options = options;
  impl_->set_members();
  if (environment.world_size > 1) impl_->connect(hooks);
}

ProcessGroup::~ProcessGroup() {
  Impl& impl = *impl_;
  if (!impl.monitor) return;
  try {
    if (std::uncaught_exceptions() > impl.exceptions_before && !impl.told)
      impl.monitor->tell(impl.monitor->own_place() + " was ended by an error");
    if (impl.monitor->leave()) {
      for (Members* some : {&impl.everyone, &impl.shard, &impl.replicas})
        if (some->device) some->device->shutdown();
      return;
    }
  } catch (const std::exception&) {
    // The others find out by themselves.
  }
  // Exchanges that never end would keep the destructors waiting; the process is about to end.
  for (Members* some : {&impl.everyone, &impl.shard, &impl.replicas}) {
    static_cast<void>(some->control.release());
    static_cast<void>(some->device.release());
  }
}

std::int64_t ProcessGroup::rank(Scope scope) const { return impl_->members(scope).rank; }
std::int64_t ProcessGroup::size(Scope scope) const { return impl_->members(scope).size; }
std::int64_t ProcessGroup::local_rank() const { return impl_->environment.local_rank; }
const DistOptions& ProcessGroup::options() const { return impl_->options; }

std::vector<std::int64_t> ProcessGroup::share_of(std::int64_t count) const {
  std::vector<std::int64_t> places;
  for (std::int64_t i = rank(); i < count; i += size()) places.push_back(i);
  return places;
}

void ProcessGroup::set_phase(const std::string& phase, std::int64_t step) {
  if (impl_->monitor) impl_->monitor->set_phase(phase, step);
}

void ProcessGroup::fail(const std::exception& error) {
  if (!impl_->monitor || impl_->told) return;
  impl_->told = true;
  if (dynamic_cast<const PeerFailure*>(&error) != nullptr) return;
  impl_->monitor->tell(fmt::format("{}, failed: {}", impl_->monitor->own_place(), plain_text(error)));
}

PendingCollective ProcessGroup::start_all_reduce(at::Tensor tensor, const std::string& name, Reduction reduction,
                                                 Scope scope) {
  if (size(scope) == 1) return {};
  require_contiguous(tensor, name);
  if (impl_->is_staged(tensor)) {
    const at::Tensor copy = tensor.cpu();
    PendingCollective pending = start_all_reduce(copy, name, reduction, scope);
    pending.then([tensor, copy] { tensor.copy_(copy); });
    return pending;
  }
  const std::int64_t bytes = num_bytes(tensor);
  return PendingCollective(impl_->begin({"all-reduce " + std::string(reduction_name(reduction)), name,
                                         shape_text(tensor), all_reduce_bytes(bytes, size(scope)), scope},
                                        tensor, [&](c10d::Backend& backend) {
                                          std::vector<at::Tensor> tensors = {tensor};
                                          c10d::AllreduceOptions options;
                                          options.reduceOp = operation(reduction);
                                          return backend.allreduce(tensors, options);
                                        }));
}

void ProcessGroup::all_reduce(at::Tensor tensor, const std::string& name, Reduction reduction, Scope scope) {
  start_all_reduce(std::move(tensor), name, reduction, scope).wait();
}

void ProcessGroup::broadcast(at::Tensor tensor, const std::string& name, std::int64_t root) {
  if (size() == 1) return;
  require_contiguous(tensor, name);
  if (impl_->is_staged(tensor)) {
    const at::Tensor copy = tensor.cpu();
    broadcast(copy, name, root);
    tensor.copy_(copy);
    return;
  }
  PendingCollective(impl_->begin({fmt::format("broadcast from {}", root), name, shape_text(tensor),
                                  gather_bytes(num_bytes(tensor), size()), Scope::all},
                                 tensor,
                                 [&](c10d::Backend& backend) {
                                   std::vector<at::Tensor> tensors = {tensor};
                                   c10d::BroadcastOptions options;
                                   options.rootRank = root;
                                   return backend.broadcast(tensors, options);
                                 }))
      .wait();
}

at::Tensor ProcessGroup::all_gather(const at::Tensor& part, const std::string& name, Scope scope) {
  if (part.dim() != 1) throw_invalid("all_gather '{}' takes one dimension, not {}", name, part.dim());
  if (size(scope) == 1) return part.unsqueeze(0);
  const at::Tensor own = part.contiguous();
  const at::Tensor all = at::empty({size(scope) * own.numel()}, own.options());
  start_all_gather(own, all, name, scope).wait();
  return all.view({size(scope), own.numel()});
}

PendingCollective ProcessGroup::start_all_gather(const at::Tensor& part, at::Tensor all, const std::string& name,
                                                 Scope scope) {
  require_contiguous(part, name);
  require_contiguous(all, name);
  if (all.numel() != size(scope) * part.numel())
    throw_invalid("all_gather '{}': {} numbers of {} processes do not fill {}", name, part.numel(), size(scope),
                  all.numel());
  if (size(scope) == 1) {
    all.copy_(part.view(all.sizes()));
    return {};
  }
  if (impl_->is_staged(part)) {
    const at::Tensor copy = at::empty(all.sizes(), all.options().device(at::kCPU));
    PendingCollective pending = start_all_gather(part.cpu(), copy, name, scope);
    pending.then([all, copy] { all.copy_(copy); });
    return pending;
  }
  at::Tensor own = part;
  return PendingCollective(
      impl_->begin({"all-gather", name, shape_text(own), gather_bytes(num_bytes(all), size(scope)), scope}, own,
                   [&](c10d::Backend& backend) { return backend._allgather_base(all, own); }));
}

at::Tensor ProcessGroup::reduce_scatter(const at::Tensor& all, const std::string& name, Scope scope) {
  if (all.dim() != 2) throw_invalid("reduce_scatter '{}' takes rows, not {} dimensions", name, all.dim());
  if (size(scope) == 1 && all.size(0) == 1) return all[0];
  at::Tensor own = at::empty({all.size(1)}, all.options());
  start_reduce_scatter(all.contiguous(), own, name, scope).wait();
  return own;
}

PendingCollective ProcessGroup::start_reduce_scatter(const at::Tensor& all, at::Tensor own, const std::string& name,
                                                     Scope scope) {
  require_contiguous(all, name);
  require_contiguous(own, name);
  if (all.dim() != 2 || all.size(0) != size(scope) || all.size(1) != own.numel())
    throw_invalid("reduce_scatter '{}' takes one row of {} numbers for each of {} processes", name, own.numel(),
                  size(scope));
  if (size(scope) == 1) {
    own.copy_(all[0]);
    return {};
  }
  if (impl_->is_staged(all)) {
    const at::Tensor copy = at::empty(own.sizes(), own.options().device(at::kCPU));
    PendingCollective pending = start_reduce_scatter(all.cpu(), copy, name, scope);
    pending.then([own, copy] { own.copy_(copy); });
    return pending;
  }
  at::Tensor input = all;
  const Impl::Call call{"reduce-scatter", name, shape_text(input), gather_bytes(num_bytes(input), size(scope)), scope};
  if (!input.device().is_cpu())
    return PendingCollective(
        impl_->begin(call, input, [&](c10d::Backend& backend) { return backend._reduce_scatter_base(own, input); }));
  // Gloo's own sends each row twice; here each goes to its owner, who adds them up in the order of the ranks.
  at::Tensor rows = at::empty_like(input);
  std::vector<std::int64_t> equal;
  auto pending = impl_->begin(call, input,
                              [&](c10d::Backend& backend) { return backend.alltoall_base(rows, input, equal, equal); });
  pending->then = [rows, own] { own.copy_(rows.sum(0)); };
  return PendingCollective(std::move(pending));
}

std::vector<std::string> ProcessGroup::gather_texts(const std::string& text, const std::string& name) {
  if (size() == 1) return {text};
  Impl& impl = *impl_;
  impl.monitor->check();
  ++impl.sequence;
  const auto start = Clock::now();
  impl.monitor->begin_collective(impl.sequence, name);
  impl.monitor->begin_wait(impl.sequence, name);
  if (impl.options.check_collectives) impl.compare({"gathering of texts", name, "", 0, Scope::all});
  std::vector<std::string> texts = impl.exchange_texts(text);
  impl.monitor->end_wait();
  CommunicationStats& cost = impl.stats[name];
  ++cost.count;
  cost.bytes_sent += (size() - 1) * static_cast<std::int64_t>(text.size());
  cost.seconds_waited += seconds_since(start);
  return texts;
}

std::string ProcessGroup::broadcast_text(const std::string& text, const std::string& name, std::int64_t root) {
  return gather_texts(rank() == root ? text : std::string(), name).at(static_cast<std::size_t>(root));
}

std::vector<double> ProcessGroup::sum(std::vector<double> values, const std::string& name, Scope scope) {
  if (size(scope) == 1 || values.empty()) return values;
  const at::Tensor tensor = at::tensor(values, at::kDouble);
  all_reduce(tensor, name, Reduction::sum, scope);
  return {tensor.const_data_ptr<double>(), tensor.const_data_ptr<double>() + tensor.numel()};
}

bool ProcessGroup::any(bool value, const std::string& name) { return sum({value ? 1.0 : 0.0}, name).front() > 0; }

void ProcessGroup::barrier(const std::string& name) { sum({0.0}, name); }

void ProcessGroup::require_equal(const std::string& value, const std::string& name) {
  const std::vector<std::string> values = gather_texts(value, name);
  for (std::size_t other = 1; other < values.size(); ++other)
    if (values[other] != values[0])
      throw PeerFailure(
          fmt::format("rank {} has another {} than rank 0: {} and {}", other, name, values[other], values[0]));
}

const std::map<std::string, CommunicationStats>& ProcessGroup::stats() const { return impl_->stats; }

CommunicationStats ProcessGroup::total_stats() const {
  CommunicationStats total;
  for (const auto& [name, cost] : impl_->stats) {
    total.count += cost.count;
    total.bytes_sent += cost.bytes_sent;
    total.seconds_waited += cost.seconds_waited;
  }
  return total;
}

}  // namespace thinkvg::dist
