#include "thinkvg/train/event_file.h"

#include <unistd.h>

#include <array>
#include <bit>
#include <chrono>
#include <cmath>

#include "thinkvg/core/error.h"

namespace thinkvg::train {
namespace {

// CRC-32C (Castagnoli), reflected polynomial.
constexpr std::array<std::uint32_t, 256> kCrcTable = [] {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t i = 0; i < 256; ++i) {
    std::uint32_t value = i;
    for (int bit = 0; bit < 8; ++bit) value = (value & 1U) != 0 ? 0x82F63B78U ^ (value >> 1U) : value >> 1U;
    table[i] = value;
  }
  return table;
}();

// The record format's mask keeps a checksum of bytes that hold checksums sound.
std::uint32_t masked_crc(const std::string& bytes) {
  std::uint32_t crc = 0xFFFFFFFFU;
  for (const char byte : bytes) crc = kCrcTable[(crc ^ static_cast<unsigned char>(byte)) & 0xFFU] ^ (crc >> 8U);
  crc ^= 0xFFFFFFFFU;
  return ((crc >> 15U) | (crc << 17U)) + 0xA282EAD8U;
}

template <class Number>
std::string fixed(Number value) {
  std::string bytes(sizeof(value), '\0');
  for (std::size_t i = 0; i < sizeof(value); ++i) bytes[i] = static_cast<char>(value >> (8 * i));
  return bytes;
}

std::string varint(std::uint64_t value) {
  std::string bytes;
  for (; value >= 0x80; value >>= 7U) bytes.push_back(static_cast<char>(value | 0x80U));
  bytes.push_back(static_cast<char>(value));
  return bytes;
}

// Fields of a protocol buffer message: tag, then payload.
std::string field(int number, int wire, const std::string& payload) {
  return varint(static_cast<std::uint64_t>(number) << 3U | static_cast<std::uint64_t>(wire)) + payload;
}
std::string integer_field(int number, std::int64_t value) {
  return field(number, 0, varint(static_cast<std::uint64_t>(value)));
}
std::string double_field(int number, double value) {
  return field(number, 1, fixed(std::bit_cast<std::uint64_t>(value)));
}
std::string float_field(int number, float value) {
  return field(number, 5, fixed(std::bit_cast<std::uint32_t>(value)));
}
std::string bytes_field(int number, const std::string& bytes) { return field(number, 2, varint(bytes.size()) + bytes); }

double now() { return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count(); }

std::string record(const std::string& event) {
  const std::string length = fixed(static_cast<std::uint64_t>(event.size()));
  return length + fixed(masked_crc(length)) + event + fixed(masked_crc(event));
}

std::string host_name() {
  std::array<char, 256> name{};
  return gethostname(name.data(), name.size() - 1) == 0 ? name.data() : "localhost";
}

}  // namespace

EventFile::EventFile(const std::filesystem::path& folder, std::int64_t first_step) {
  const double time = now();
  file_ = std::make_unique<AppendFile>(folder /
                                       fmt::format("events.out.tfevents.{:.6f}.{}.{}", time, host_name(), getpid()));
  file_->write(record(double_field(1, time) + bytes_field(3, "brain.Event:2")));
  constexpr std::int64_t kStart = 1;  // SessionLog.START
  file_->write(record(double_field(1, time) + integer_field(2, first_step) + bytes_field(7, integer_field(1, kStart))));
}

void EventFile::write(std::int64_t step, const std::vector<std::pair<std::string, double>>& scalars) {
  std::string summary;
  for (const auto& [name, value] : scalars)
    summary += bytes_field(1, bytes_field(1, name) + float_field(2, static_cast<float>(value)));
  file_->write(record(double_field(1, now()) + integer_field(2, step) + bytes_field(5, summary)));
}

}  // namespace thinkvg::train
