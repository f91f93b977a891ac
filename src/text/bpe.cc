#include "text/bpe.h"

#include <algorithm>
#include <cstring>

#include "text/unicode.h"
#include "thinkvg/core/error.h"

namespace thinkvg::text {
namespace {

constexpr std::string_view kSpace = "▁";
constexpr std::size_t kCacheSize = 1 << 14;
// Up to here a scan of all pairs beats a heap.
constexpr std::size_t kScanSymbols = 40;
constexpr std::size_t kBlock = 1 << 16;

std::uint64_t mix(std::uint64_t a, std::uint64_t b) {
  std::uint64_t hash = (a ^ b) * 0x9E3779B97F4A7C15u;
  hash ^= hash >> 29;
  return hash * 0xBF58476D1CE4E5B9u;
}

std::uint64_t hash_of(std::string_view text) {
  std::uint64_t hash = text.size();
  while (text.size() > 8) {
    std::uint64_t part = 0;
    std::memcpy(&part, text.data(), 8);
    hash = mix(hash, part);
    text.remove_prefix(8);
  }
  std::uint64_t part = 0;
  std::memcpy(&part, text.data(), text.size());
  hash = mix(hash, part);
  return hash ^ hash >> 32;
}

}  // namespace

std::string_view TextArena::add(std::string_view text) {
  if (text.size() > free_ || next_ == nullptr) {
    free_ = std::max(kBlock, text.size());
    blocks_.push_back(std::make_unique<char[]>(free_));
    next_ = blocks_.back().get();
  }
  std::copy(text.begin(), text.end(), next_);
  const std::string_view kept(next_, text.size());
  next_ += text.size();
  free_ -= text.size();
  return kept;
}

// The cell of the piece, or the free one where it belongs.
std::size_t Vocabulary::place_of(std::string_view piece, std::uint64_t hash) const {
  std::size_t at = hash & (cells_.size() - 1);
  while (cells_[at].id >= 0 && (cells_[at].hash != static_cast<std::uint32_t>(hash >> 32) ||
                                pieces_[static_cast<std::size_t>(cells_[at].id)] != piece))
    at = (at + 1) & (cells_.size() - 1);
  return at;
}

std::int64_t Vocabulary::id_of(std::string_view piece) const {
  return cells_.empty() ? -1 : cells_[place_of(piece, hash_of(piece))].id;
}

void Vocabulary::add(std::int64_t id, std::string_view piece) {
  if (id < 0 || id > (1 << 28)) throw_failure("the vocabulary gives the piece '{}' the id {}", piece, id);
  if (has(id) || id_of(piece) >= 0) return;
  if (id >= size()) pieces_.resize(static_cast<std::size_t>(id) + 1);
  pieces_[static_cast<std::size_t>(id)] = arena_.add(piece);
  const auto enter = [&](std::string_view text, std::int64_t text_id) {
    const std::uint64_t hash = hash_of(text);
    cells_[place_of(text, hash)] = {static_cast<std::uint32_t>(hash >> 32), static_cast<std::int32_t>(text_id)};
  };
  ++count_;
  if (2 * count_ > cells_.size()) {
    cells_.assign(std::max<std::size_t>(1 << 10, 2 * cells_.size()), {});
    for (std::int64_t i = 0; i < size(); ++i)
      if (has(i)) enter(pieces_[static_cast<std::size_t>(i)], i);
  } else {
    enter(piece, id);
  }
}

std::vector<BpeMerge> all_merges(const Vocabulary& vocabulary, const std::vector<std::int64_t>& order,
                                 bool shorter_left_first) {
  std::vector<BpeMerge> merges;
  std::int64_t rank = 0;
  for (const std::int64_t id : order) {
    const std::string_view piece = vocabulary.piece(id);
    for (std::size_t cut = 1; cut < piece.size(); ++cut) {
      const std::int64_t left = vocabulary.id_of(piece.substr(0, cut));
      if (left < 0) continue;
      const std::int64_t right = vocabulary.id_of(piece.substr(cut));
      if (right < 0) continue;
      merges.push_back({left, right, id, rank});
      if (shorter_left_first) ++rank;
    }
    ++rank;
  }
  return merges;
}

BpeModel::Scratch::Scratch() : cache(kCacheSize) {}

BpeModel::BpeModel(const Vocabulary& vocabulary, const std::vector<BpeMerge>& merges, const BpeOptions& options)
    : options_(options) {
  merges_.reserve(merges.size());
  cut_at_spaces_ = !options.byte_level && !options.ignore_merges && vocabulary.id_of(kSpace) >= 0;
  for (const BpeMerge& merge : merges) {
    merges_.insert(static_cast<std::uint64_t>(merge.left) << 32 | static_cast<std::uint64_t>(merge.right),
                   {static_cast<std::uint32_t>(merge.rank), static_cast<std::int32_t>(merge.result)});
    cut_at_spaces_ = cut_at_spaces_ && (!vocabulary.piece(merge.right).starts_with(kSpace) ||
                                        vocabulary.piece(merge.left).ends_with(kSpace));
  }
  for (int byte = 0; byte < 256; ++byte) {
    const char character = static_cast<char>(byte);
    byte_ids_[static_cast<std::size_t>(byte)] = static_cast<std::int32_t>(
        vocabulary.id_of(options.byte_level ? std::string(1, character) : fmt::format("<0x{:02X}>", byte)));
  }
  for (std::int64_t id = 0; id < vocabulary.size(); ++id) {
    if (!vocabulary.has(id)) continue;
    const std::string_view piece = vocabulary.piece(id);
    if (!options.byte_level && !piece.empty()) {
      const Character first = character_at(piece, 0);
      if (first.size == piece.size()) character_ids_.insert(first.value, static_cast<std::int32_t>(id));
    }
    if (options.ignore_merges) whole_words_.add(id, piece);
  }
}

void BpeModel::encode(std::string_view word, Scratch& scratch, std::vector<std::int64_t>& ids) const {
  if (!cut_at_spaces_) {
    encode_short(word, scratch, ids);
    return;
  }
  std::size_t begin = 0;
  while (begin < word.size()) {
    // The spaces that start this part, then up to the next one.
    std::size_t end = begin;
    while (word.substr(end).starts_with(kSpace)) end += kSpace.size();
    end = std::min(word.find(kSpace, end), word.size());
    encode_short(word.substr(begin, end - begin), scratch, ids);
    begin = end;
  }
}

void BpeModel::encode_short(std::string_view word, Scratch& scratch, std::vector<std::int64_t>& ids) const {
  if (word.empty()) return;
  if (word.size() > Scratch::kCachedBytes) {
    scratch.word_ids.clear();
    merge_word(word, scratch, scratch.word_ids);
    ids.insert(ids.end(), scratch.word_ids.begin(), scratch.word_ids.end());
    return;
  }
  Scratch::CachedWord& cached = scratch.cache[hash_of(word) % kCacheSize];
  if (cached.length == word.size() && std::memcmp(cached.key.data(), word.data(), word.size()) == 0) {
    ids.insert(ids.end(), cached.ids.begin(), cached.ids.begin() + cached.num_ids);
    return;
  }
  scratch.word_ids.clear();
  merge_word(word, scratch, scratch.word_ids);
  ids.insert(ids.end(), scratch.word_ids.begin(), scratch.word_ids.end());
  if (scratch.word_ids.size() > cached.ids.size()) return;
  cached.length = static_cast<std::uint8_t>(word.size());
  cached.num_ids = static_cast<std::uint8_t>(scratch.word_ids.size());
  std::copy(word.begin(), word.end(), cached.key.begin());
  std::copy(scratch.word_ids.begin(), scratch.word_ids.end(), cached.ids.begin());
}

void BpeModel::add_symbols(std::string_view word, Scratch& scratch) const {
  auto& symbols = scratch.symbols;
  symbols.clear();
  const auto add = [&](std::int32_t id) { symbols.push_back({id, 0, 0, kNoRank, -1}); };
  if (options_.byte_level) {
    for (const char c : word) {
      const std::int32_t id = byte_ids_[static_cast<std::uint8_t>(c)];
      if (id >= 0)
        add(id);
      else if (options_.unknown >= 0)
        add(static_cast<std::int32_t>(options_.unknown));
    }
    return;
  }
  bool after_unknown = false;
  for (std::size_t at = 0; at < word.size();) {
    const Character character = character_at(word, at);
    const std::int32_t* id = character_ids_.find(character.value);
    const std::string_view bytes = word.substr(at, character.size);
    at += character.size;
    if (id != nullptr) {
      add(*id);
      after_unknown = false;
      continue;
    }
    const bool has_bytes = options_.byte_fallback && std::all_of(bytes.begin(), bytes.end(), [&](char c) {
                             return byte_ids_[static_cast<std::uint8_t>(c)] >= 0;
                           });
    if (has_bytes) {
      for (const char c : bytes) add(byte_ids_[static_cast<std::uint8_t>(c)]);
    } else if (options_.unknown >= 0) {
      if (!after_unknown || !options_.fuse_unknown) add(static_cast<std::int32_t>(options_.unknown));
      after_unknown = true;
    }
  }
}

void BpeModel::merge_word(std::string_view word, Scratch& scratch, std::vector<std::int32_t>& ids) const {
  if (options_.ignore_merges) {
    const std::int64_t id = whole_words_.id_of(word);
    if (id >= 0) {
      ids.push_back(static_cast<std::int32_t>(id));
      return;
    }
  }
  add_symbols(word, scratch);
  auto& symbols = scratch.symbols;
  const auto rank_pair = [&](std::size_t left, std::size_t right) {
    const Result result = lookup(symbols[left].id, symbols[right].id);
    symbols[left].rank = result.rank;
    symbols[left].result = result.id;
  };
  for (std::size_t i = 0; i + 1 < symbols.size(); ++i) rank_pair(i, i + 1);

  if (symbols.size() <= kScanSymbols) {
    while (symbols.size() > 1) {
      std::size_t best = 0;
      for (std::size_t i = 1; i + 1 < symbols.size(); ++i)
        if (symbols[i].rank < symbols[best].rank) best = i;
      if (symbols[best].rank == kNoRank) break;
      symbols[best].id = symbols[best].result;
      symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(best) + 1);
      if (best + 1 < symbols.size())
        rank_pair(best, best + 1);
      else
        symbols[best].rank = kNoRank;
      if (best > 0) rank_pair(best - 1, best);
    }
    for (const auto& symbol : symbols) ids.push_back(symbol.id);
    return;
  }

  // A heap of pairs; an entry whose symbol has another rank by now is out of date.
  const auto later = [](const Scratch::Entry& a, const Scratch::Entry& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.at > b.at;
  };
  auto& heap = scratch.heap;
  heap.clear();
  const auto last = static_cast<std::int32_t>(symbols.size()) - 1;
  for (std::int32_t i = 0; i <= last; ++i) {
    auto& symbol = symbols[static_cast<std::size_t>(i)];
    symbol.previous = i - 1;
    symbol.next = i == last ? -1 : i + 1;
    if (symbol.rank != kNoRank) heap.push_back({symbol.rank, i});
  }
  std::make_heap(heap.begin(), heap.end(), later);
  const auto push = [&](std::int32_t at) {
    auto& symbol = symbols[static_cast<std::size_t>(at)];
    rank_pair(static_cast<std::size_t>(at), static_cast<std::size_t>(symbol.next));
    if (symbol.rank == kNoRank) return;
    heap.push_back({symbol.rank, at});
    std::push_heap(heap.begin(), heap.end(), later);
  };
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), later);
    const Scratch::Entry entry = heap.back();
    heap.pop_back();
    auto& left = symbols[static_cast<std::size_t>(entry.at)];
    if (left.rank != entry.rank) continue;
    auto& right = symbols[static_cast<std::size_t>(left.next)];
    left.id = left.result;
    left.next = right.next;
    left.rank = kNoRank;
    right.rank = kNoRank;
    if (left.next >= 0) {
      symbols[static_cast<std::size_t>(left.next)].previous = entry.at;
      push(entry.at);
    }
    if (left.previous >= 0) push(left.previous);
  }
  for (std::int32_t at = 0; at >= 0; at = symbols[static_cast<std::size_t>(at)].next)
    ids.push_back(symbols[static_cast<std::size_t>(at)].id);
}

}  // namespace thinkvg::text
