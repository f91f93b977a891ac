#include "data/packed_rows.h"

#include <arrow/result.h>
#include <arrow/util/compression.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>

#include "thinkvg/core/error.h"

namespace thinkvg::data {
namespace {

constexpr std::size_t kBlockBytes = 64 << 10;

arrow::util::Codec& codec() {
  static const std::unique_ptr<arrow::util::Codec> kCodec = [] {
    auto made = arrow::util::Codec::Create(arrow::Compression::LZ4);
    if (!made.ok()) throw_failure("cannot compress with LZ4: {}", made.status().message());
    return std::move(made).ValueUnsafe();
  }();
  return *kCodec;
}

void put_number(std::string& out, std::uint32_t value) {
  char bytes[sizeof value];
  std::memcpy(bytes, &value, sizeof value);
  out.append(bytes, sizeof value);
}

// The block that a thread unpacked last, as rows.
struct Unpacked {
  std::uint64_t key = 0;
  std::size_t block = 0;
  std::string bytes;
  std::vector<std::vector<std::string_view>> rows;
};

Unpacked& cache() {
  thread_local Unpacked unpacked;
  return unpacked;
}

std::vector<std::vector<std::string_view>> split_rows(std::string_view bytes) {
  std::vector<std::vector<std::string_view>> rows;
  const auto number = [&] {
    std::uint32_t value = 0;
    std::memcpy(&value, bytes.data(), sizeof value);
    bytes.remove_prefix(sizeof value);
    return value;
  };
  while (!bytes.empty()) {
    std::vector<std::string_view>& cells = rows.emplace_back(number());
    for (std::string_view& cell : cells) {
      const std::size_t size = number();
      cell = bytes.substr(0, size);
      bytes.remove_prefix(size);
    }
  }
  return rows;
}

}  // namespace

PackedRows::PackedRows() {
  static std::atomic<std::uint64_t> next{1};
  key_ = next++;
}

void PackedRows::append(const std::vector<std::string_view>& cells) {
  put_number(open_, static_cast<std::uint32_t>(cells.size()));
  for (const std::string_view cell : cells) {
    if (cell.size() > std::numeric_limits<std::uint32_t>::max()) throw_failure("a cell of more than 4 GB");
    put_number(open_, static_cast<std::uint32_t>(cell.size()));
    open_ += cell;
  }
  ++num_rows_;
  if (open_.size() >= kBlockBytes) close_block();
}

void PackedRows::finish() {
  if (!open_.empty()) close_block();
  open_.shrink_to_fit();
  blocks_.shrink_to_fit();
}

void PackedRows::close_block() {
  Block block;
  block.first_row = open_first_;
  block.unpacked_size = static_cast<std::int64_t>(open_.size());
  const auto* input = reinterpret_cast<const std::uint8_t*>(open_.data());
  std::string packed(static_cast<std::size_t>(codec().MaxCompressedLen(block.unpacked_size, input)), '\0');
  const auto size = codec().Compress(block.unpacked_size, input, static_cast<std::int64_t>(packed.size()),
                                     reinterpret_cast<std::uint8_t*>(packed.data()));
  if (!size.ok()) throw_failure("cannot compress rows: {}", size.status().message());
  block.bytes.assign(packed.data(), static_cast<std::size_t>(*size));
  blocks_.push_back(std::move(block));
  open_.clear();
  open_first_ = num_rows_;
}

std::vector<std::string_view> PackedRows::at(std::int64_t row) const {
  const auto behind =
      std::upper_bound(blocks_.begin(), blocks_.end(), row,
                       [](std::int64_t wanted, const Block& block) { return wanted < block.first_row; });
  const auto index = static_cast<std::size_t>(behind - blocks_.begin()) - 1;
  const Block& block = blocks_[index];
  Unpacked& last = cache();
  if (last.key != key_ || last.block != index) {
    last.key = 0;  // should unpacking throw, the cache holds nothing
    last.bytes.resize(static_cast<std::size_t>(block.unpacked_size));
    const auto size = codec().Decompress(static_cast<std::int64_t>(block.bytes.size()),
                                         reinterpret_cast<const std::uint8_t*>(block.bytes.data()), block.unpacked_size,
                                         reinterpret_cast<std::uint8_t*>(last.bytes.data()));
    if (!size.ok()) throw_failure("cannot unpack rows: {}", size.status().message());
    last.rows = split_rows(last.bytes);
    last.block = index;
    last.key = key_;
  }
  return last.rows[static_cast<std::size_t>(row - block.first_row)];
}

std::int64_t PackedRows::packed_bytes() const {
  std::int64_t total = 0;
  for (const Block& block : blocks_) total += static_cast<std::int64_t>(block.bytes.size());
  return total;
}

}  // namespace thinkvg::data
