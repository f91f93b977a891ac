#include "dist/monitor.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>

#include "dist/network.h"
#include "thinkvg/core/error.h"
#include "thinkvg/dist/process_group.h"

namespace thinkvg::dist {
namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

constexpr double kStuckSeconds = 10;
constexpr const char* kFailure = "failure";

std::string sign_key(std::int64_t rank) { return fmt::format("sign/{}", rank); }

std::string text_of(const std::vector<std::uint8_t>& bytes) { return {bytes.begin(), bytes.end()}; }

}  // namespace

std::string plain_text(const std::exception& error) {
  const std::string whole = error.what();
  return whole.substr(0, whole.find("\nException raised from "));
}

std::string Sign::to_text() const {
  return Json{{"rank", rank},       {"host", host},         {"process", process},
              {"address", address}, {"count", count},       {"phase", phase},
              {"step", step},       {"sequence", sequence}, {"collective", collective},
              {"waiting", waiting}, {"left", left}}
      .dump();
}

Sign Sign::from_text(const std::string& text) {
  const Json json = Json::parse(text);
  Sign sign;
  sign.rank = json.at("rank").get<std::int64_t>();
  sign.host = json.at("host").get<std::string>();
  sign.process = json.at("process").get<std::int64_t>();
  sign.address = json.at("address").get<std::string>();
  sign.count = json.at("count").get<std::int64_t>();
  sign.phase = json.at("phase").get<std::string>();
  sign.step = json.at("step").get<std::int64_t>();
  sign.sequence = json.at("sequence").get<std::int64_t>();
  sign.collective = json.at("collective").get<std::string>();
  sign.waiting = json.at("waiting").get<bool>();
  sign.left = json.at("left").get<bool>();
  return sign;
}

std::string Sign::who() const { return fmt::format("rank {} on {} (process {})", rank, host, process); }

std::string Sign::where() const {
  std::string text = fmt::format("in phase '{}'", phase);
  if (step > 0) text += fmt::format(" of step {}", step);
  if (sequence > 0)
    text += fmt::format(", {} exchange {} '{}'", waiting ? "waiting in" : "behind", sequence, collective);
  return text;
}

struct Monitor::State {
  State(c10::intrusive_ptr<c10d::Store> connection, Place location, const DistOptions& dist_options,
        std::function<void(const std::string&)> on_stuck)
      : store(std::move(connection)),
        place(std::move(location)),
        options(dist_options),
        stuck(std::move(on_stuck)),
        interval(std::clamp(options.heartbeat_timeout / 20, 0.05, 2.0)) {
    own.rank = place.rank;
    own.host = host_name();
    own.process = getpid();
    own.address = place.address;
  }

  void work();
  void round();
  void watch_neighbour(const std::string& text);
  void watch_lateness();
  void watch_connection();
  void publish(const std::string& text);
  void accept(const std::string& text);
  void store_lost(const std::string& error);
  std::vector<Sign> all_signs();

  const c10::intrusive_ptr<c10d::Store> store;
  const Place place;
  const DistOptions options;
  const std::function<void(const std::string&)> stuck;
  const double interval;

  std::mutex mutex;  // of what follows
  std::condition_variable changed;
  Sign own;
  Sign of_main;         // rank 0's latest
  std::string failure;  // not empty: the job has failed
  Clock::time_point failed_at;
  bool noticed = false;  // the caller knows
  std::string outgoing;  // a failure to tell
  bool told = false;
  std::int64_t num_heard = 0;
  std::string broken;  // a connection's error
  Clock::time_point broken_at;
  std::int64_t waiting_for = 0;  // sequence
  Clock::time_point waiting_since;
  bool changed_phase = false;  // which others should see at once
  bool leaving = false;
  bool all_left = false;
  bool stop = false;
  bool ended = false;  // the thread
  Clock::time_point last_round = Clock::now();

  // Of the thread alone.
  std::string neighbour_sign;
  Clock::time_point neighbour_since = Clock::now(), previous_round = Clock::now();
  std::vector<Sign> signs_at_break;
  bool heard = false, counted_out = false, called_stuck = false;
  bool done = false;  // it needs the store no more
};

std::vector<Sign> Monitor::State::all_signs() {
  std::vector<std::string> keys;
  for (std::int64_t rank = 0; rank < place.size; ++rank) keys.push_back(sign_key(rank));
  std::vector<Sign> signs;
  for (const auto& bytes : store->multiGet(keys)) signs.push_back(Sign::from_text(text_of(bytes)));
  return signs;
}

void Monitor::State::accept(const std::string& text) {
  const std::lock_guard lock(mutex);
  if (!failure.empty()) return;
  failure = text;
  failed_at = Clock::now();
  changed.notify_all();
}

// The first failure that reaches the store is everybody's.
void Monitor::State::publish(const std::string& text) { accept(store->compareSet(kFailure, std::string(), text)); }

void Monitor::State::store_lost(const std::string& error) {
  std::string who = fmt::format("the launcher's store at {}", place.store_address);
  {
    const std::lock_guard lock(mutex);
    if (!place.external_store)
      who = fmt::format("{}, which keeps the store at {},", of_main.who(), place.store_address);
    if (!place.external_store) who += fmt::format(" was last seen {}. It", of_main.where());
  }
  accept(fmt::format("{} has ended or cannot be reached ({})", who, error));
}

void Monitor::State::watch_neighbour(const std::string& text) {
  if (text != neighbour_sign) {
    neighbour_sign = text;
    neighbour_since = Clock::now();
    return;
  }
  if (seconds_since(neighbour_since) < options.heartbeat_timeout) return;
  const Sign sign = Sign::from_text(text);
  if (sign.left) return;
  publish(fmt::format(
      "{} has given no sign of life for {} s; it was {}. Was it killed or stopped, or is its host down? Its own "
      "messages and the host's log of killed processes (dmesg) may tell; dist.heartbeat_timeout sets the time",
      sign.who(), options.heartbeat_timeout, sign.where()));
}

void Monitor::State::watch_lateness() {
  std::int64_t sequence = 0;
  Sign mine;
  {
    const std::lock_guard lock(mutex);
    if (waiting_for == 0 || seconds_since(waiting_since) < options.timeout) return;
    sequence = waiting_for;
    mine = own;
  }
  std::string late;
  for (const Sign& sign : all_signs())
    if (sign.rank != place.rank && sign.sequence < sequence)
      late += (late.empty() ? "" : "; ") + sign.who() + ", " + sign.where();
  if (late.empty())
    publish(
        fmt::format("exchange {} '{}' has not ended within {} s although all processes have begun it: does the "
                    "network between their hosts work? dist.timeout sets the time",
                    sequence, mine.collective, options.timeout));
  else
    publish(fmt::format(
        "exchange {} '{}' of step {} still lacks {}, which lives but is late or hangs, while {} has waited for {} s; "
        "raise dist.timeout if it may well take longer",
        sequence, mine.collective, mine.step, late, mine.who(), options.timeout));
}

void Monitor::State::watch_connection() {
  std::string error;
  double age = 0;
  {
    const std::lock_guard lock(mutex);
    if (broken.empty()) return;
    error = broken;
    age = seconds_since(broken_at);
  }
  if (signs_at_break.empty()) {
    signs_at_break = all_signs();
    return;
  }
  // Every other process has had the time for two signs by then.
  if (age < 3 * interval + 0.2) return;
  std::string silent;
  for (const Sign& sign : all_signs()) {
    const Sign& before = signs_at_break.at(static_cast<std::size_t>(sign.rank));
    if (sign.rank != place.rank && sign.count == before.count && !sign.left)
      silent += (silent.empty() ? "" : "; ") + sign.who() + ", last seen " + sign.where();
  }
  if (!silent.empty())
    publish(
        fmt::format("the connection broke ({}) and no sign of life comes from {}. Was it killed (dmesg on its host "
                    "may tell, such as for lack of memory)?",
                    error, silent));
  else if (age > options.heartbeat_timeout)
    publish(fmt::format("a connection between the processes broke: {}", error));
}

void Monitor::State::round() {
  Sign sign;
  std::string tell_now;
  bool leave_now = false, is_leaving = false;
  {
    const std::lock_guard lock(mutex);
    is_leaving = leaving;
    changed_phase = false;
    ++own.count;
    own.left = leaving;
    sign = own;
    if (!told) tell_now = outgoing;
    leave_now = leaving && !counted_out;
  }
  store->set(sign_key(place.rank), sign.to_text());
  if (!tell_now.empty()) {
    publish(tell_now);
    const std::lock_guard lock(mutex);
    told = true;
  }
  if (!heard && store->check({kFailure})) {
    heard = true;
    accept(store->get_to_str(kFailure));
    store->add("heard", 1);
  }
  if (leave_now) {
    counted_out = true;
    store->add("left", 1);
  }
  const std::int64_t neighbour = (place.rank + 1) % place.size;
  const auto signs = store->multiGet({sign_key(neighbour), sign_key(0)});
  const std::int64_t out = is_leaving ? store->add("left", 0) : 0, hearing = heard ? store->add("heard", 0) : 0;
  // A process that was itself held up has no right to judge the silence of others.
  if (seconds_since(previous_round) > options.heartbeat_timeout / 2) neighbour_since = Clock::now();
  previous_round = Clock::now();
  if (!heard) {
    watch_neighbour(text_of(signs[0]));
    watch_lateness();
    watch_connection();
  }
  // Rank 0, which takes the store with it, goes when no other asks it any more.
  bool all_gone = out >= place.size;
  if (all_gone && !done) {
    done = true;
    store->add("gone", 1);
  }
  if (all_gone && place.rank == 0) all_gone = store->add("gone", 0) >= place.size;
  bool call_stuck = false;
  std::string why;
  {
    const std::lock_guard lock(mutex);
    of_main = Sign::from_text(text_of(signs[1]));
    all_left = all_gone;
    num_heard = hearing;
    last_round = Clock::now();
    changed.notify_all();
    call_stuck = !failure.empty() && !noticed && !called_stuck && seconds_since(failed_at) > kStuckSeconds;
    why = failure;
  }
  if (call_stuck) {
    called_stuck = true;
    if (stuck) stuck(why);
  }
}

void Monitor::State::work() {
  bool have_store = true;
  while (true) {
    if (have_store) {
      try {
        round();
      } catch (const std::exception& error) {
        have_store = false;
        bool done = false;
        {
          const std::lock_guard lock(mutex);
          // Rank 0 goes when all have said that they are done.
          if (leaving) all_left = true;
          done = all_left || !failure.empty();
          changed.notify_all();
        }
        if (!done) store_lost(plain_text(error));
      }
    }
    std::unique_lock lock(mutex);
    if (!have_store && !failure.empty() && !noticed && !called_stuck && seconds_since(failed_at) > kStuckSeconds) {
      called_stuck = true;
      const std::string why = failure;
      lock.unlock();
      if (stuck) stuck(why);
      lock.lock();
    }
    if (!have_store && (noticed || leaving || stop)) break;
    if (stop || all_left) break;
    const bool hurry = leaving || !outgoing.empty();
    changed.wait_for(lock, Seconds(hurry ? 0.02 : interval), [&] {
      if (stop) return true;
      return have_store && (changed_phase || (leaving && !counted_out) || (!outgoing.empty() && !told) ||
                            (!broken.empty() && failure.empty() && signs_at_break.empty()));
    });
    if (stop) break;
  }
  const std::lock_guard lock(mutex);
  ended = true;
  changed.notify_all();
}

Monitor::Monitor(c10::intrusive_ptr<c10d::Store> store, Place place, const DistOptions& options,
                 std::function<void(const std::string&)> stuck)
    : state_(std::make_shared<State>(std::move(store), std::move(place), options, std::move(stuck))) {
  State& state = *state_;
  state.store->set(sign_key(state.place.rank), state.own.to_text());
  const auto start = Clock::now();
  std::vector<std::string> keys;
  for (std::int64_t rank = 0; rank < state.place.size; ++rank) keys.push_back(sign_key(rank));
  while (!state.store->check(keys)) {
    if (seconds_since(start) > options.start_timeout) {
      std::string missing;
      for (std::int64_t rank = 0; rank < state.place.size; ++rank)
        if (!state.store->check({sign_key(rank)})) missing += (missing.empty() ? "" : ", ") + std::to_string(rank);
      throw_failure("of {} processes, rank {} did not join within {} s (dist.start_timeout); this is {}",
                    state.place.size, missing, options.start_timeout, state.own.who());
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  first_signs_ = state.all_signs();
  state.of_main = first_signs_.front();
  state.last_round = Clock::now();
  thread_ = std::thread([shared = state_] { shared->work(); });
}

Monitor::~Monitor() {
  std::unique_lock lock(state_->mutex);
  state_->stop = true;
  state_->noticed = true;
  state_->changed.notify_all();
  // A thread that the store does not answer cannot be joined; what it uses stays alive with it.
  const bool ended = state_->changed.wait_for(lock, std::chrono::seconds(2), [&] { return state_->ended; });
  lock.unlock();
  if (ended)
    thread_.join();
  else
    thread_.detach();
}

void Monitor::set_phase(const std::string& phase, std::int64_t step) {
  const std::lock_guard lock(state_->mutex);
  state_->own.phase = phase;
  state_->own.step = step;
  state_->changed_phase = true;
  state_->changed.notify_all();
}

void Monitor::begin_collective(std::int64_t sequence, const std::string& name) {
  const std::lock_guard lock(state_->mutex);
  state_->own.sequence = sequence;
  state_->own.collective = name;
}

void Monitor::begin_wait(std::int64_t sequence, const std::string& name) {
  const std::lock_guard lock(state_->mutex);
  state_->own.collective = name;
  state_->own.waiting = true;
  state_->waiting_for = sequence;
  state_->waiting_since = Clock::now();
}

void Monitor::end_wait() {
  const std::lock_guard lock(state_->mutex);
  state_->own.waiting = false;
  state_->waiting_for = 0;
}

void Monitor::check() {
  const std::lock_guard lock(state_->mutex);
  State& state = *state_;
  if (state.failure.empty() && seconds_since(state.last_round) > state.options.heartbeat_timeout) {
    state.failure = fmt::format(
        "{} has not answered for {} s: was it stopped, or is its host down? It was last seen {}",
        state.place.external_store
            ? fmt::format("the launcher's store at {}", state.place.store_address)
            : fmt::format("{}, which keeps the store at {},", state.of_main.who(), state.place.store_address),
        state.options.heartbeat_timeout, state.of_main.where());
    state.failed_at = Clock::now();
  }
  if (state.failure.empty()) return;
  state.noticed = true;
  throw PeerFailure(state.failure);
}

void Monitor::connection_broke(const std::string& error) {
  {
    const std::lock_guard lock(state_->mutex);
    state_->broken = error.substr(0, error.find('\n'));
    state_->broken_at = Clock::now();
    state_->changed.notify_all();
  }
  const auto start = Clock::now();
  while (seconds_since(start) < state_->options.heartbeat_timeout + 10 * state_->interval + 1) {
    check();
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  throw PeerFailure("a connection between the processes broke: " + error);
}

void Monitor::tell(const std::string& failure) {
  std::unique_lock lock(state_->mutex);
  State& state = *state_;
  state.outgoing = failure;
  state.noticed = true;
  state.changed.notify_all();
  // Rank 0 takes the store with it: the others must have heard before.
  const double limit = 3 * state.interval + 1;
  state.changed.wait_for(lock, Seconds(limit), [&] { return state.told && state.num_heard >= state.place.size; });
}

std::string Monitor::own_place() {
  const std::lock_guard lock(state_->mutex);
  return state_->own.who() + ", " + state_->own.where();
}

bool Monitor::leave() {
  std::unique_lock lock(state_->mutex);
  State& state = *state_;
  state.noticed = true;
  if (!state.failure.empty()) {
    const double limit = 3 * state.interval + 1;
    if (state.place.rank == 0)
      state.changed.wait_for(lock, Seconds(limit), [&] { return state.num_heard >= state.place.size; });
    return false;
  }
  state.leaving = true;
  state.changed.notify_all();
  return state.changed.wait_for(lock, Seconds(state.options.timeout), [&] {
    return state.all_left || !state.failure.empty() || state.ended;
  }) && state.all_left;
}

}  // namespace thinkvg::dist
