#include "thinkvg/core/random.h"

#include <cmath>
#include <numbers>

#include "thinkvg/core/error.h"

namespace thinkvg {
namespace {

constexpr std::uint32_t kMultiplier0 = 0xD2511F53, kMultiplier1 = 0xCD9E8D57;
constexpr std::uint32_t kWeyl0 = 0x9E3779B9, kWeyl1 = 0xBB67AE85;

// SplitMix64's finaliser (Steele, Lea, Flood 2014).
std::uint64_t mix(std::uint64_t value) {
  value += 0x9E3779B97F4A7C15u;
  value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9u;
  value = (value ^ (value >> 27)) * 0x94D049BB133111EBu;
  return value ^ (value >> 31);
}

}  // namespace

std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter, std::array<std::uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t{kMultiplier0} * counter[0];
    const std::uint64_t b = std::uint64_t{kMultiplier1} * counter[2];
    counter = {static_cast<std::uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<std::uint32_t>(b),
               static_cast<std::uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<std::uint32_t>(a)};
    key[0] += kWeyl0;
    key[1] += kWeyl1;
  }
  return counter;
}

RandomStream::RandomStream(std::initializer_list<std::uint64_t> key)
    : RandomStream(std::span<const std::uint64_t>(key.begin(), key.size())) {}

RandomStream::RandomStream(std::span<const std::uint64_t> key) {
  std::uint64_t low = 0x243F6A8885A308D3u, high = 0x13198A2E03707344u;
  for (std::uint64_t part : key) {
    low = mix(low ^ part);
    high = mix(high + mix(part ^ 0xA4093822299F31D0u));
  }
  low = mix(low ^ key.size());
  key_ = {static_cast<std::uint32_t>(low), static_cast<std::uint32_t>(low >> 32)};
  stream_ = {static_cast<std::uint32_t>(high), static_cast<std::uint32_t>(high >> 32)};
}

std::uint32_t RandomStream::next_u32() {
  const std::size_t lane = position_ % 4;
  const std::uint64_t index = position_ / 4;
  if (lane == 0 || position_ == 0)
    block_ = philox4x32(
        {static_cast<std::uint32_t>(index), static_cast<std::uint32_t>(index >> 32), stream_[0], stream_[1]}, key_);
  ++position_;
  return block_[lane];
}

void RandomStream::seek(std::uint64_t n) {
  position_ = n;
  const std::uint64_t index = n / 4;
  block_ = philox4x32(
      {static_cast<std::uint32_t>(index), static_cast<std::uint32_t>(index >> 32), stream_[0], stream_[1]}, key_);
}

std::uint64_t RandomStream::next_u64() {
  const std::uint64_t low = next_u32();
  return low | (std::uint64_t{next_u32()} << 32);
}

double RandomStream::uniform() { return static_cast<double>(next_u64() >> 11) * 0x1.0p-53; }

std::uint64_t RandomStream::below(std::uint64_t bound) {
  if (bound == 0) throw_invalid("RandomStream::below expects a bound above 0, got 0");
  const std::uint64_t limit = std::uint64_t(-1) - std::uint64_t(-1) % bound;
  std::uint64_t value = next_u64();
  while (value >= limit) value = next_u64();
  return value % bound;
}

std::int64_t RandomStream::between(std::int64_t low, std::int64_t high) {
  if (low > high) throw_invalid("RandomStream::between expects low <= high, got {} and {}", low, high);
  const std::uint64_t span = static_cast<std::uint64_t>(high) - static_cast<std::uint64_t>(low);
  const std::uint64_t step = span == std::uint64_t(-1) ? next_u64() : below(span + 1);
  return static_cast<std::int64_t>(static_cast<std::uint64_t>(low) + step);
}

double RandomStream::normal() {
  const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform()));
  return radius * std::cos(2.0 * std::numbers::pi * uniform());
}

std::uint64_t hash_key(std::string_view text) {
  std::uint64_t hash = text.size();
  for (const char c : text) hash = mix(hash ^ static_cast<unsigned char>(c));
  return hash;
}

}  // namespace thinkvg
