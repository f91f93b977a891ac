#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace thinkvg::data {

// Rows of text cells, kept compressed in blocks: random access costs the unpacking of one block (tens of
// microseconds), reading rows in order costs it once a block. All rows have the same number of cells.
class PackedRows {
 public:
  PackedRows();

  // Not thread-safe; finish() ends it.
  void append(const std::vector<std::string_view>& cells);
  void finish();

  std::int64_t size() const { return num_rows_; }

  // A row's cells. The views live until this thread asks this or another store for a row of another block.
  // Thread-safe behind finish().
  std::vector<std::string_view> at(std::int64_t row) const;

  // Bytes of the compressed blocks.
  std::int64_t packed_bytes() const;

 private:
  void close_block();
  struct Block {
    std::int64_t first_row = 0;
    std::int64_t unpacked_size = 0;
    std::string bytes;
  };
  std::uint64_t key_;  // of the store, for the threads' caches
  std::vector<Block> blocks_;
  std::string open_;  // rows of the block that is being filled
  std::int64_t open_first_ = 0;
  std::int64_t num_rows_ = 0;
};

}  // namespace thinkvg::data
