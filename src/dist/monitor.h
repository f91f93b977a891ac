#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <vector>

#include "thinkvg/core/json.h"
#include "thinkvg/dist/options.h"

namespace thinkvg::dist {

// What a process says of itself, again and again.
struct Sign {
  std::int64_t rank = 0;
  std::string host;
  std::int64_t process = 0;
  std::string address;
  std::int64_t count = 0;  // of its signs: it lives while this grows
  std::string phase = "start";
  std::int64_t step = 0;
  std::int64_t sequence = 0;  // collectives that it has begun
  std::string collective;     // the latest
  bool waiting = false;
  bool left = false;  // it is done

  std::string to_text() const;
  static Sign from_text(const std::string& text);
  std::string who() const;    // "rank 2 on gpu07 (process 4242)"
  std::string where() const;  // "in phase 'rollout' of step 17, ..."
};

// Signs of life through a store: writes this process's, watches the next rank's, and spreads the first failure. One
// thread talks to the store, so that a store that hangs never holds up the caller.
class Monitor {
 public:
  struct Place {
    std::int64_t rank = 0;
    std::int64_t size = 1;
    std::string address;        // this machine's
    std::string store_address;  // host:port
    bool external_store = false;
  };
  // Waits until all ranks have shown their first sign. `store`: a connection that nobody else uses.
  Monitor(c10::intrusive_ptr<c10d::Store> store, Place place, const DistOptions& options,
          std::function<void(const std::string&)> stuck);
  ~Monitor();
  Monitor(const Monitor&) = delete;
  Monitor& operator=(const Monitor&) = delete;

  // By rank, as they were when all had joined.
  const std::vector<Sign>& first_signs() const { return first_signs_; }

  void set_phase(const std::string& phase, std::int64_t step);
  void begin_collective(std::int64_t sequence, const std::string& name);
  void begin_wait(std::int64_t sequence, const std::string& name);
  void end_wait();

  // Throws PeerFailure once the job has failed.
  void check();
  // A connection to some peer broke: finds out whose, then throws PeerFailure.
  [[noreturn]] void connection_broke(const std::string& error);
  // Tells all others, and gives them time to hear it.
  void tell(const std::string& failure);
  std::string own_place();  // "rank 1 on gpu07 (process 4242), in phase ..."
  // Returns when all others are done, too; false where the job has failed, or some did not come in time.
  bool leave();

 private:
  using Clock = std::chrono::steady_clock;
  // Shared with the thread, which is left alone where the store no longer answers it.
  struct State;
  std::shared_ptr<State> state_;
  std::vector<Sign> first_signs_;
  std::thread thread_;
};

inline double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// The text of an error without LibTorch's stack trace.
std::string plain_text(const std::exception& error);

}  // namespace thinkvg::dist
