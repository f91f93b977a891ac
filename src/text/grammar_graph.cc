#include "text/grammar_graph.h"

#include <algorithm>
#include <tuple>

#include "text/unicode.h"
#include "thinkvg/core/error.h"

namespace thinkvg::text {
namespace {

constexpr std::size_t kMaxNodes = 200'000;
constexpr char32_t kLastCharacter = 0x10FFFF;

// Byte ranges that together make exactly the characters from `first` to `last`, which all have the same length: calls
// `add` with one range a byte, as often as needed.
struct ByteRange {
  std::uint8_t first, last;
};
void split_by_bytes(char32_t first, char32_t last, int num_bytes,
                    const std::function<void(const std::vector<ByteRange>&)>& add) {
  for (int behind = 1; behind < num_bytes; ++behind) {  // bytes behind the place where they part
    const char32_t mask = (char32_t{1} << (6 * behind)) - 1;
    if ((first & ~mask) == (last & ~mask)) continue;
    if ((first & mask) != 0) {
      split_by_bytes(first, first | mask, num_bytes, add);
      split_by_bytes((first | mask) + 1, last, num_bytes, add);
      return;
    }
    if ((last & mask) != mask) {
      split_by_bytes(first, (last & ~mask) - 1, num_bytes, add);
      split_by_bytes(last & ~mask, last, num_bytes, add);
      return;
    }
  }
  const std::string low = to_utf8(first), high = to_utf8(last);
  std::vector<ByteRange> ranges;
  for (std::size_t i = 0; i < low.size(); ++i)
    ranges.push_back({static_cast<std::uint8_t>(low[i]), static_cast<std::uint8_t>(high[i])});
  add(ranges);
}

void split_range(char32_t first, char32_t last, const std::function<void(const std::vector<ByteRange>&)>& add) {
  constexpr char32_t kLasts[] = {0x7F, 0x7FF, 0xFFFF, kLastCharacter};
  char32_t begin = 0;
  for (int i = 0; i < 4; begin = kLasts[i++] + 1) {
    const char32_t low = std::max(first, begin), high = std::min(last, kLasts[i]);
    if (low <= high) split_by_bytes(low, high, i + 1, add);
  }
}

}  // namespace

CharSet::CharSet(std::initializer_list<Range> ranges) {
  for (const Range& range : ranges) add(range.first, range.last);
}

const CharSet& CharSet::all() {
  static const CharSet kAll({{0, kLastCharacter}});
  return kAll;
}

void CharSet::add(char32_t first, char32_t last) {
  constexpr char32_t kSurrogates = 0xD800, kLastSurrogate = 0xDFFF;
  if (first <= kLastSurrogate && last >= kSurrogates) {
    if (first < kSurrogates) add(first, kSurrogates - 1);
    if (last > kLastSurrogate) add(kLastSurrogate + 1, last);
    return;
  }
  // The ranges that touch the new one become part of it.
  const auto begin = std::find_if(ranges_.begin(), ranges_.end(), [&](const Range& r) { return r.last + 1 >= first; });
  auto end = begin;
  while (end != ranges_.end() && end->first <= last + 1) {
    first = std::min(first, end->first);
    last = std::max(last, end->last);
    ++end;
  }
  const auto at = ranges_.erase(begin, end);
  ranges_.insert(at, {first, last});
}

void CharSet::add(const CharSet& other) {
  for (const Range& range : other.ranges_) add(range.first, range.last);
}

CharSet CharSet::complement() const { return all().without(*this); }

CharSet CharSet::without(const CharSet& other) const {
  CharSet left;
  auto cut = other.ranges_.begin();
  for (const Range& range : ranges_) {
    char32_t begin = range.first;
    while (cut != other.ranges_.end() && cut->last < begin) ++cut;
    auto inside = cut;
    for (; inside != other.ranges_.end() && inside->first <= range.last; ++inside) {
      if (inside->first > begin) left.ranges_.push_back({begin, inside->first - 1});
      begin = inside->last + 1;
    }
    if (begin <= range.last) left.ranges_.push_back({begin, range.last});
  }
  return left;
}

bool CharSet::contains(char32_t character) const {
  return std::any_of(ranges_.begin(), ranges_.end(),
                     [&](const Range& range) { return range.first <= character && character <= range.last; });
}

Graph::Node Graph::node() {
  if (places_.size() == kMaxNodes)
    throw_invalid("the grammar is too large (more than {} places); use smaller counts, lengths or depths", kMaxNodes);
  places_.emplace_back();
  return static_cast<Node>(places_.size() - 1);
}

Graph::Node Graph::literal(Node from, std::string_view text) {
  for (std::size_t at = 0; at < text.size();) {
    const Node to = node();
    if (const TokenTable::Named named = tokens_->named_at(text, at); named.id >= 0) {
      places_[index(from)].tokens.push_back({named.id, to});
      at += named.size;
    } else {
      const auto byte = static_cast<std::uint8_t>(text[at++]);
      bytes(from, byte, byte, to);
    }
    from = to;
  }
  return from;
}

void Graph::chars(Node from, const CharSet& set, Node to) {
  std::map<std::tuple<std::uint8_t, std::uint8_t, Node>, Node> shared;  // nodes with one edge
  for (const CharSet::Range& range : set.ranges())
    split_range(range.first, range.last, [&](const std::vector<ByteRange>& ranges) {
      Node next = to;
      for (std::size_t i = ranges.size() - 1; i > 0; --i) {
        const auto [entry, is_new] = shared.try_emplace({ranges[i].first, ranges[i].last, next}, -1);
        if (is_new) {
          entry->second = node();
          bytes(entry->second, ranges[i].first, ranges[i].last, next);
        }
        next = entry->second;
      }
      bytes(from, ranges[0].first, ranges[0].last, next);
    });
}

Graph::Node Graph::call(Node from, Node rule) {
  const Node at = node(), behind = node();
  link(from, at);
  places_[index(at)].call = rule;
  places_[index(at)].behind = behind;
  return behind;
}

Graph::Node Graph::machine(Node from, std::shared_ptr<const Machine> machine) {
  const Node at = node(), behind = node();
  link(from, at);
  places_[index(at)].machine = static_cast<std::int32_t>(machines_.size());
  places_[index(at)].behind = behind;
  machines_.push_back(std::move(machine));
  return behind;
}

Graph::Node Graph::rule(const std::function<Node(Node)>& fill) {
  const Node start = node();
  end(fill(start));
  return start;
}

Graph::Node Graph::optional(Node from, const std::function<Node(Node)>& fill) {
  const Node to = node();
  link(from, to);
  link(fill(from), to);
  return to;
}

// Returns whether something was taken out.
bool Graph::leave_available_bytes() {
  bool changed = false;
  for (Place& place : places_) {
    std::vector<ByteEdge> kept;
    for (const ByteEdge& edge : place.bytes) {
      for (int byte = edge.first; byte <= edge.last; ++byte) {
        if (!tokens_->has_byte(static_cast<std::uint8_t>(byte))) {
          changed = true;
        } else if (!kept.empty() && kept.back().to == edge.to && kept.back().last + 1 == byte) {
          ++kept.back().last;
        } else {
          kept.push_back({static_cast<std::uint8_t>(byte), static_cast<std::uint8_t>(byte), edge.to});
        }
      }
    }
    place.bytes = std::move(kept);
  }
  return changed;
}

void Graph::finish(Node start) {
  start_ = start;
  const bool bytes_missing = leave_available_bytes();
  // From which nodes the end of their rule can be reached: found from the ends backwards.
  std::vector<std::vector<Node>> users(places_.size());  // by node: those that may be waiting for it
  for (std::size_t i = 0; i < places_.size(); ++i) {
    const Place& place = places_[i];
    const auto user = static_cast<Node>(i);
    for (const ByteEdge& edge : place.bytes) users[index(edge.to)].push_back(user);
    for (const TokenEdge& edge : place.tokens) users[index(edge.to)].push_back(user);
    for (const Node to : place.empty) users[index(to)].push_back(user);
    if (place.call >= 0) users[index(place.call)].push_back(user);
    if (place.behind >= 0) users[index(place.behind)].push_back(user);
  }
  std::vector<bool> lives(places_.size());
  const auto may_pass = [&](const Place& place) {
    if (place.call >= 0) return lives[index(place.call)] && lives[index(place.behind)];
    if (place.machine < 0) return false;
    const std::string_view needed = machine_at(place).bytes();
    return lives[index(place.behind)] && std::all_of(needed.begin(), needed.end(), [&](char byte) {
             return tokens_->has_byte(static_cast<std::uint8_t>(byte));
           });
  };
  std::vector<Node> open;
  for (std::size_t i = 0; i < places_.size(); ++i)
    if (places_[i].ends) {
      lives[i] = true;
      open.push_back(static_cast<Node>(i));
    }
  while (!open.empty()) {
    const Node reached = open.back();
    open.pop_back();
    for (const Node user : users[index(reached)]) {
      const Place& place = places_[index(user)];
      if (lives[index(user)]) continue;
      const bool by_edge = place.call != reached && place.behind != reached;
      if (!by_edge && !may_pass(place)) continue;
      lives[index(user)] = true;
      open.push_back(user);
    }
  }
  if (!lives[index(start)])
    throw_invalid("no text satisfies the grammar{}",
                  bytes_missing ? " that this vocabulary can write: it lacks tokens for single bytes" : "");
  for (Place& place : places_) {
    std::erase_if(place.bytes, [&](const ByteEdge& edge) { return !lives[index(edge.to)]; });
    std::erase_if(place.tokens, [&](const TokenEdge& edge) { return !lives[index(edge.to)]; });
    std::erase_if(place.empty, [&](Node to) { return !lives[index(to)]; });
    if (place.behind >= 0 && !may_pass(place)) place.call = place.machine = place.behind = -1;
  }
  find_classes();
}

void Graph::find_classes() {
  std::array<bool, 257> begins{};
  begins[0] = true;
  for (const Place& place : places_) {
    for (const ByteEdge& edge : place.bytes) begins[edge.first] = begins[edge.last + std::size_t{1}] = true;
    if (place.machine < 0) continue;
    for (const char c : machine_at(place).bytes()) {
      const auto byte = static_cast<std::uint8_t>(c);
      begins[byte] = begins[byte + std::size_t{1}] = true;
    }
  }
  num_classes_ = 0;
  for (std::size_t byte = 0; byte < 256; ++byte) {
    if (begins[byte]) byte_of_class_[static_cast<std::size_t>(num_classes_++)] = static_cast<std::uint8_t>(byte);
    class_of_[byte] = static_cast<std::uint8_t>(num_classes_ - 1);
  }
}

}  // namespace thinkvg::text
