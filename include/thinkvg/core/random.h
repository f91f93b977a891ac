#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

namespace thinkvg {

// A counter-based random stream (Philox4x32-10, Salmon et al., SC 2011), keyed by meaning:
// RandomStream({seed, step, prompt, g}) always gives the same numbers, on any machine, thread or rank,
// and streams with different keys are independent. Copyable; one instance must not be shared by threads.
class RandomStream {
 public:
  explicit RandomStream(std::initializer_list<std::uint64_t> key);
  explicit RandomStream(std::span<const std::uint64_t> key);

  std::uint32_t next_u32();
  std::uint64_t next_u64();
  // Uniform in [0, 1) with 53 bits.
  double uniform();
  // Uniform in [low, high).
  double uniform(double low, double high) { return low + (high - low) * uniform(); }
  // Uniform integer in [0, bound), without modulo bias. Throws std::invalid_argument for bound 0.
  std::uint64_t below(std::uint64_t bound);
  // Uniform integer in [low, high], both included. Throws std::invalid_argument where low > high.
  std::int64_t between(std::int64_t low, std::int64_t high);
  // Standard normal.
  double normal();
  bool chance(double probability) { return uniform() < probability; }

  template <class T>
  void shuffle(std::vector<T>& values) {
    for (std::size_t i = values.size(); i > 1; --i) std::swap(values[i - 1], values[below(i)]);
  }

  // Jumps to the n-th 32-bit number of the stream: the position of a resumed run.
  void seek(std::uint64_t n);
  std::uint64_t position() const { return position_; }

 private:
  std::array<std::uint32_t, 2> key_{};
  std::array<std::uint32_t, 2> stream_{};
  std::array<std::uint32_t, 4> block_{};
  std::uint64_t position_ = 0;
};

// One Philox4x32-10 block, as in the published known-answer vectors.
std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter, std::array<std::uint32_t, 2> key);

// A 64-bit hash that mixes its parts in order: for keys out of names.
std::uint64_t hash_key(std::string_view text);

}  // namespace thinkvg
