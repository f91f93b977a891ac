#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace thinkvg::text {

// The least hash table that looks up a number by a number: open addressing, filled once, then only read.
template <class Value>
class NumberTable {
 public:
  void reserve(std::size_t count) {
    std::size_t capacity = 16;
    while (capacity < 2 * count) capacity *= 2;
    cells_.assign(capacity, {kFree, Value{}});
    count_ = 0;
  }
  // Keeps the first value of a key.
  void insert(std::uint64_t key, const Value& value) {
    if (2 * (count_ + 1) > cells_.size()) grow();
    Cell& cell = cells_[place_of(key)];
    if (cell.key == key) return;
    cell = {key, value};
    ++count_;
  }
  const Value* find(std::uint64_t key) const {
    if (cells_.empty()) return nullptr;
    const Cell& cell = cells_[place_of(key)];
    return cell.key == key ? &cell.value : nullptr;
  }

 private:
  static constexpr std::uint64_t kFree = ~std::uint64_t{0};
  struct Cell {
    std::uint64_t key;
    Value value;
  };
  std::size_t place_of(std::uint64_t key) const {
    const std::uint64_t mixed = key * 0x9E3779B97F4A7C15u;
    std::size_t at = (mixed ^ mixed >> 32) & (cells_.size() - 1);
    while (cells_[at].key != key && cells_[at].key != kFree) at = (at + 1) & (cells_.size() - 1);
    return at;
  }
  void grow() {
    std::vector<Cell> old = std::move(cells_);
    reserve(old.size());
    for (const Cell& cell : old)
      if (cell.key != kFree) insert(cell.key, cell.value);
  }
  std::vector<Cell> cells_;
  std::size_t count_ = 0;
};

// Texts in a few large blocks; the views stay valid as long as the arena lives, moved or not.
class TextArena {
 public:
  std::string_view add(std::string_view text);

 private:
  std::vector<std::unique_ptr<char[]>> blocks_;
  std::size_t free_ = 0;
  char* next_ = nullptr;
};

// The pieces of a vocabulary by id, and back.
class Vocabulary {
 public:
  // An id or a piece that is taken keeps what it has.
  void add(std::int64_t id, std::string_view piece);
  std::int64_t id_of(std::string_view piece) const;  // -1 where there is none
  bool has(std::int64_t id) const {
    return id >= 0 && id < size() && pieces_[static_cast<std::size_t>(id)].data() != nullptr;
  }
  std::string_view piece(std::int64_t id) const { return pieces_[static_cast<std::size_t>(id)]; }
  // The largest id and one.
  std::int64_t size() const { return static_cast<std::int64_t>(pieces_.size()); }

 private:
  struct Cell {
    std::uint32_t hash = 0;
    std::int32_t id = -1;
  };
  std::size_t place_of(std::string_view piece, std::uint64_t hash) const;

  TextArena arena_;
  std::vector<std::string_view> pieces_;
  std::vector<Cell> cells_;  // open addressing
  std::size_t count_ = 0;
};

struct BpeMerge {
  std::int64_t left = 0, right = 0, result = 0;
  std::int64_t rank = 0;  // lower ones go first; of equal ones the leftmost
};

// All ways to put a piece together out of two others, for vocabularies that come without merges. `order`: the ids of
// the pieces, most urgent first. Of two ways to the same piece the leftmost in the word goes first (tiktoken), or,
// where `shorter_left_first`, the one with the shorter left part (transformers' conversion of sentencepiece models).
std::vector<BpeMerge> all_merges(const Vocabulary& vocabulary, const std::vector<std::int64_t>& order,
                                 bool shorter_left_first);

struct BpeOptions {
  bool byte_level = false;     // words are bytes; otherwise characters
  bool byte_fallback = false;  // characters without a piece become their bytes' pieces "<0x..>"
  bool fuse_unknown = false;   // unknown characters in a row become one id
  bool ignore_merges = false;  // a word that is a piece is taken as it is
  std::int64_t unknown = -1;   // id of what has no piece; -1: it is left out
};

// Byte-pair encoding of one word (the text between two cuts of the pre-tokenizer). Immutable, thread-safe.
class BpeModel {
 public:
  // Words seen before, and memory to work in. One a thread.
  class Scratch {
   public:
    Scratch();

   private:
    friend class BpeModel;
    static constexpr std::size_t kCachedBytes = 64;
    struct CachedWord {
      std::uint8_t length = 0;  // 0: free
      std::uint8_t num_ids = 0;
      std::array<std::int32_t, 15> ids{};
      std::array<char, kCachedBytes> key{};
    };
    struct Symbol {
      std::int32_t id;
      std::int32_t previous, next;
      std::uint32_t rank;  // of the pair with the next symbol
      std::int32_t result;
    };
    struct Entry {
      std::uint32_t rank;
      std::int32_t at;
    };
    std::vector<CachedWord> cache;
    std::vector<Symbol> symbols;
    std::vector<Entry> heap;
    std::vector<std::int32_t> word_ids;
  };

  // `vocabulary`: pieces as they stand in words, raw bytes where byte_level.
  BpeModel(const Vocabulary& vocabulary, const std::vector<BpeMerge>& merges, const BpeOptions& options);

  // Appends the word's ids.
  void encode(std::string_view word, Scratch& scratch, std::vector<std::int64_t>& ids) const;

 private:
  struct Result {
    std::uint32_t rank;
    std::int32_t id;
  };
  static constexpr std::uint32_t kNoRank = ~std::uint32_t{0};

  void encode_short(std::string_view word, Scratch& scratch, std::vector<std::int64_t>& ids) const;
  void merge_word(std::string_view word, Scratch& scratch, std::vector<std::int32_t>& ids) const;
  void add_symbols(std::string_view word, Scratch& scratch) const;
  Result lookup(std::int32_t left, std::int32_t right) const {
    const Result* found = merges_.find(static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 |
                                       static_cast<std::uint32_t>(right));
    return found == nullptr ? Result{kNoRank, -1} : *found;
  }

  BpeOptions options_;
  NumberTable<Result> merges_;
  std::array<std::int32_t, 256> byte_ids_{};  // of one byte's piece ("<0x..>" where not byte_level), or -1
  NumberTable<std::int32_t> character_ids_;   // where not byte_level
  Vocabulary whole_words_;                    // where ignore_merges
  bool cut_at_spaces_ = false;                // no piece holds a "▁" behind something else, so words may be cut there
};

}  // namespace thinkvg::text
