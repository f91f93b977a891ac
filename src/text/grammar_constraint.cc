// Tokens against a grammar: the graph is made deterministic state by state, as texts get there.
#include <algorithm>
#include <atomic>
#include <deque>
#include <mutex>
#include <unordered_map>
#include <utility>

#include "text/grammar_graph.h"
#include "thinkvg/core/error.h"

namespace thinkvg::text {
namespace {

// Where a text may stand: at a node, called from `context`, with the state of its machine.
struct Place {
  Graph::Node node;
  std::int32_t context;
  std::uint64_t data;
  auto operator<=>(const Place&) const = default;  // NOLINT(modernize-use-nullptr): clang-tidy 14 sees a 0 here
};

std::uint64_t mix(std::uint64_t hash, std::uint64_t value) {
  hash = (hash ^ value) * 0x9E3779B97F4A7C15u;
  return hash ^ hash >> 29;
}

struct PlaceHash {
  std::size_t operator()(const Place& place) const {
    const auto high = static_cast<std::uint64_t>(static_cast<std::uint32_t>(place.context)) << 32;
    return mix(mix(0, high | static_cast<std::uint32_t>(place.node)), place.data);
  }
};

// A set of places that is emptied often: small ones are searched through.
class PlaceSet {
 public:
  bool insert(const Place& place) {
    if (list_.size() < kSmall) {
      if (std::find(list_.begin(), list_.end(), place) != list_.end()) return false;
      list_.push_back(place);
      return true;
    }
    if (found_.empty()) {
      found_.resize(8 * kSmall, -1);
      for (std::size_t i = 0; i < list_.size(); ++i) found_[slot(list_[i])] = static_cast<std::int32_t>(i);
    }
    const std::size_t at = slot(place);
    if (found_[at] >= 0) return false;
    found_[at] = static_cast<std::int32_t>(list_.size());
    list_.push_back(place);
    if (2 * list_.size() > found_.size()) {
      found_.assign(4 * found_.size(), -1);
      for (std::size_t i = 0; i < list_.size(); ++i) found_[slot(list_[i])] = static_cast<std::int32_t>(i);
    }
    return true;
  }
  void clear() {
    list_.clear();
    found_.clear();
  }

 private:
  static constexpr std::size_t kSmall = 24;
  std::size_t slot(const Place& place) const {
    std::size_t at = PlaceHash()(place) % found_.size();
    while (found_[at] >= 0 && list_[static_cast<std::size_t>(found_[at])] != place) at = (at + 1) % found_.size();
    return at;
  }
  std::vector<Place> list_;
  std::vector<std::int32_t> found_;  // by hash: place in list_, or -1; empty while small
};

class GraphConstraint final : public TokenConstraint {
 public:
  explicit GraphConstraint(Graph graph)
      : graph_(std::move(graph)), tokens_(graph_.tokens()), num_words_((tokens_.vocab_size() + 63) / 64) {
    contexts_.push_back({-1, -1});
    const std::lock_guard lock(mutex_);
    add_place(graph_.start(), 0);
    start_ = kFirstDfa + take_state();
    Words end(static_cast<std::size_t>(num_words_));
    for (const std::int64_t id : tokens_.end_ids()) set_bit(end, id);
    ended_mask_ = keep(std::move(end));
  }

  State start() const override { return tokens_.first_differs() ? kFirst : start_; }

  std::span<const std::uint64_t> allowed(State state) const override {
    if (state == kEnded) return span_of(*ended_mask_);
    const bool first = state == kFirst;
    const DfaState& at = dfa_state(first ? start_ : state);
    std::atomic<const Words*>& place = first ? first_mask_ : at.mask;
    if (const Words* known = place.load(std::memory_order_acquire)) return span_of(*known);
    const std::lock_guard lock(mutex_);
    if (const Words* known = place.load(std::memory_order_relaxed)) return span_of(*known);
    const Words* made = keep(find_allowed(static_cast<std::int32_t>((first ? start_ : state) - kFirstDfa), first));
    place.store(made, std::memory_order_release);
    return span_of(*made);
  }

  State next(State state, std::int64_t id) const override {
    if (state == kDead || id < 0 || id >= tokens_.vocab_size()) return kDead;
    if (tokens_.is_end(id)) return accepts(state) ? kEnded : kDead;
    if (state == kEnded) return kDead;
    const bool first = state == kFirst;
    auto at = static_cast<std::int32_t>((first ? start_ : state) - kFirstDfa);
    std::string_view text = tokens_.text(id);
    if (text.empty()) return as_state(step_token(dfa_state(at + kFirstDfa), id));
    if (first) {
      text = tokens_.first_text(id);
      const auto& spaces = tokens_.first_spaces();
      if (text.empty()) return std::find(spaces.begin(), spaces.end(), id) != spaces.end() ? start_ : kDead;
    }
    for (const char byte : text) {
      at = step(dfa_state(at + kFirstDfa), graph_.class_of(static_cast<std::uint8_t>(byte)));
      if (at < 0) return kDead;
    }
    return as_state(at);
  }

  bool accepts(State state) const override {
    if (state == kDead) return false;
    return state == kEnded || dfa_state(state == kFirst ? start_ : state).accepts;
  }

 private:
  using Words = std::vector<std::uint64_t>;
  static constexpr State kFirst = 0, kEnded = 1, kFirstDfa = 2;  // behind them the states of the automaton
  static constexpr std::int32_t kNone = -1, kUnknown = -2;
  static constexpr std::size_t kChunk = 1024, kMaxChunks = 4096;
  static constexpr std::size_t kMaxBytes = std::size_t{1} << 30;
  static constexpr std::uint32_t kWorthALook = 4;  // nodes

  // Neither changes nor moves but for what is found out about it.
  struct DfaState {
    enum class Loop : std::uint8_t { kUnknown, kNo, kYes };
    std::vector<Place> places;
    std::vector<std::int64_t> named;                          // tokens that the grammar names here
    std::unique_ptr<std::atomic<std::int32_t>[]> next;        // by byte class
    std::unique_ptr<std::atomic<std::int32_t>[]> next_named;  // for each of `named`
    mutable std::atomic<const Words*> mask{nullptr};
    bool accepts = false;
    mutable Loop plain_loop = Loop::kUnknown;
  };
  struct Context {
    Graph::Node behind;
    std::int32_t parent;
  };

  static State as_state(std::int32_t at) { return at < 0 ? kDead : at + kFirstDfa; }
  static std::span<const std::uint64_t> span_of(const Words& words) { return {words.data(), words.size()}; }
  static void set_bit(Words& words, std::int64_t id) {
    words[static_cast<std::size_t>(id >> 6)] |= std::uint64_t{1} << (id & 63);
  }

  const DfaState& dfa_state(State state) const {
    const auto i = static_cast<std::size_t>(state - kFirstDfa);
    if (state < kFirstDfa || i >= num_states_.load(std::memory_order_acquire))
      throw_invalid("{} is no state of this grammar", state);
    return chunks_[i / kChunk][i % kChunk];
  }

  std::int32_t step(const DfaState& from, int byte_class) const {
    std::atomic<std::int32_t>& next = from.next[static_cast<std::size_t>(byte_class)];
    const std::int32_t known = next.load(std::memory_order_acquire);
    if (known != kUnknown) return known;
    const std::lock_guard lock(mutex_);
    return find_step(from, byte_class);
  }

  std::int32_t step_token(const DfaState& from, std::int64_t id) const {
    const auto found = std::lower_bound(from.named.begin(), from.named.end(), id);
    if (found == from.named.end() || *found != id) return kNone;
    std::atomic<std::int32_t>& next = from.next_named[static_cast<std::size_t>(found - from.named.begin())];
    const std::int32_t known = next.load(std::memory_order_acquire);
    if (known != kUnknown) return known;
    const std::lock_guard lock(mutex_);
    if (next.load(std::memory_order_relaxed) == kUnknown) {
      for (const Place& place : from.places)
        for (const Graph::TokenEdge& edge : graph_.place(place.node).tokens)
          if (edge.id == id) add_place(edge.to, place.context);
      next.store(take_state(), std::memory_order_release);
    }
    return next.load(std::memory_order_relaxed);
  }

  // All below: with the lock.

  std::int32_t find_step(const DfaState& from, int byte_class) const {
    std::atomic<std::int32_t>& next = from.next[static_cast<std::size_t>(byte_class)];
    if (const std::int32_t known = next.load(std::memory_order_relaxed); known != kUnknown) return known;
    const std::uint8_t byte = graph_.byte_of_class(byte_class);
    for (const Place& place : from.places) {
      const Graph::Place& at = graph_.place(place.node);
      for (const Graph::ByteEdge& edge : at.bytes)
        if (edge.first <= byte && byte <= edge.last) add_place(edge.to, place.context);
      if (at.machine < 0) continue;
      if (const auto data = graph_.machine_at(at).step(place.data, byte))
        open_.push_back({place.node, place.context, *data});
    }
    const std::int32_t made = take_state();
    next.store(made, std::memory_order_release);
    return made;
  }

  void add_place(Graph::Node node, std::int32_t context) const {
    const Graph::Place& at = graph_.place(node);
    open_.push_back({node, context, at.machine >= 0 ? graph_.machine_at(at).start() : 0});
  }

  std::int32_t context_of(Graph::Node behind, std::int32_t parent) const {
    const std::uint64_t key =
        static_cast<std::uint64_t>(static_cast<std::uint32_t>(behind)) << 32 | static_cast<std::uint32_t>(parent);
    const auto [entry, is_new] = context_ids_.try_emplace(key, static_cast<std::int32_t>(contexts_.size()));
    if (is_new) {
      contexts_.push_back({behind, parent});
      take_memory(64);
    }
    return entry->second;
  }

  void take_memory(std::size_t bytes) const {
    used_bytes_ += bytes;
    if (used_bytes_ > kMaxBytes)
      throw_failure(
          "a grammar has grown beyond {} MB of states; make the constraint anew from time to time, or use a simpler "
          "pattern",
          kMaxBytes >> 20);
  }

  // The state of all places that can be reached from `open_` without a byte; kNone where there is none.
  std::int32_t take_state() const {
    std::vector<Place> places;
    bool accepts = false;
    seen_.clear();
    try {
      while (!open_.empty()) {
        const Place place = open_.back();
        open_.pop_back();
        if (!seen_.insert(place)) continue;
        const Graph::Place& at = graph_.place(place.node);
        if (at.ends) {
          if (place.context == 0) {
            accepts = true;
          } else {
            const Context context = contexts_[static_cast<std::size_t>(place.context)];
            add_place(context.behind, context.parent);
          }
        }
        for (const Graph::Node to : at.empty) add_place(to, place.context);
        if (at.call >= 0) add_place(at.call, context_of(at.behind, place.context));
        if (at.machine >= 0 && graph_.machine_at(at).done(place.data)) add_place(at.behind, place.context);
        if (!at.bytes.empty() || !at.tokens.empty() || at.machine >= 0) places.push_back(place);
      }
      if (places.empty() && !accepts) return kNone;
      std::sort(places.begin(), places.end());
      return state_of(std::move(places), accepts);
    } catch (...) {
      open_.clear();
      throw;
    }
  }

  std::int32_t state_of(std::vector<Place> places, bool accepts) const {
    std::uint64_t hash = accepts ? 1 : 0;
    for (const Place& place : places) hash = mix(hash, PlaceHash()(place));
    const auto [begin, end] = state_ids_.equal_range(hash);
    for (auto found = begin; found != end; ++found) {
      const auto i = static_cast<std::size_t>(found->second);
      const DfaState& known = chunks_[i / kChunk][i % kChunk];
      if (known.accepts == accepts && known.places == places) return found->second;
    }
    const std::size_t i = num_states_.load(std::memory_order_relaxed);
    const auto num_classes = static_cast<std::size_t>(graph_.num_classes());
    take_memory(sizeof(DfaState) + 64 + places.size() * sizeof(Place) + num_classes * sizeof(std::int32_t));
    if (i == kChunk * kMaxChunks) take_memory(kMaxBytes);
    if (i % kChunk == 0) chunks_[i / kChunk] = std::make_unique<DfaState[]>(kChunk);
    DfaState& made = chunks_[i / kChunk][i % kChunk];
    made.next = std::make_unique<std::atomic<std::int32_t>[]>(num_classes);
    for (std::size_t k = 0; k < num_classes; ++k) made.next[k].store(kUnknown, std::memory_order_relaxed);
    for (const Place& place : places)
      for (const Graph::TokenEdge& edge : graph_.place(place.node).tokens) made.named.push_back(edge.id);
    std::sort(made.named.begin(), made.named.end());
    made.named.erase(std::unique(made.named.begin(), made.named.end()), made.named.end());
    made.next_named = std::make_unique<std::atomic<std::int32_t>[]>(made.named.size());
    for (std::size_t k = 0; k < made.named.size(); ++k) made.next_named[k].store(kUnknown, std::memory_order_relaxed);
    made.places = std::move(places);
    made.accepts = accepts;
    state_ids_.emplace(hash, static_cast<std::int32_t>(i));
    num_states_.store(i + 1, std::memory_order_release);
    return static_cast<std::int32_t>(i);
  }

  // Whether every plain byte leads back to the state itself.
  bool loops_on_plain(const DfaState& state, std::int32_t itself) const {
    if (state.plain_loop == DfaState::Loop::kUnknown) {
      state.plain_loop = DfaState::Loop::kYes;
      for (int byte = 0; byte < 256; ++byte)
        if (TokenTree::is_plain(static_cast<std::uint8_t>(byte)) &&
            find_step(state, graph_.class_of(static_cast<std::uint8_t>(byte))) != itself) {
          state.plain_loop = DfaState::Loop::kNo;
          break;
        }
    }
    return state.plain_loop == DfaState::Loop::kYes;
  }

  Words find_allowed(std::int32_t from, bool first) const {
    Words words(static_cast<std::size_t>(num_words_));
    const TokenTree& tree = first ? tokens_.first_tree() : tokens_.tree();
    std::vector<const DfaState*> path(tree.max_depth + 1);
    path[0] = &dfa_state(from + kFirstDfa);
    const auto num_nodes = static_cast<std::uint32_t>(tree.nodes.size());
    for (std::uint32_t i = 0; i < num_nodes;) {
      const TokenTree::Node& node = tree.nodes[i];
      const std::int32_t to = find_step(*path[node.depth - std::size_t{1}], graph_.class_of(node.byte));
      if (to < 0) {
        i = node.behind;
        continue;
      }
      path[node.depth] = &chunks_[static_cast<std::size_t>(to) / kChunk][static_cast<std::size_t>(to) % kChunk];
      // Free text: what is made of letters needs no closer look.
      const bool whole = node.plain && node.behind - i > kWorthALook && loops_on_plain(*path[node.depth], to);
      const std::uint32_t end = whole ? tree.end_of(node) : node.first + node.count;
      for (std::uint32_t k = node.first; k < end; ++k) set_bit(words, tree.ids[k]);
      i = whole ? node.behind : i + 1;
    }
    for (const std::int64_t id : path[0]->named) set_bit(words, id);
    if (first)
      for (const std::int64_t id : tokens_.first_spaces()) set_bit(words, id);
    if (path[0]->accepts)
      for (const std::int64_t id : tokens_.end_ids()) set_bit(words, id);
    return words;
  }

  // Equal masks are kept once.
  const Words* keep(Words words) const {
    std::uint64_t hash = 0;
    for (const std::uint64_t word : words) hash = mix(hash, word);
    const auto [begin, end] = mask_ids_.equal_range(hash);
    for (auto found = begin; found != end; ++found)
      if (*found->second == words) return found->second;
    take_memory(words.size() * sizeof(std::uint64_t) + 64);
    masks_.push_back(std::move(words));
    mask_ids_.emplace(hash, &masks_.back());
    return &masks_.back();
  }

  const Graph graph_;
  const TokenTable& tokens_;
  const std::int64_t num_words_;
  State start_ = 0;
  const Words* ended_mask_ = nullptr;
  mutable std::atomic<const Words*> first_mask_{nullptr};

  mutable std::array<std::unique_ptr<DfaState[]>, kMaxChunks> chunks_;
  mutable std::atomic<std::size_t> num_states_{0};

  mutable std::mutex mutex_;  // for all below, and for finding out about states
  mutable std::size_t used_bytes_ = 0;
  mutable std::vector<Context> contexts_;
  mutable std::unordered_map<std::uint64_t, std::int32_t> context_ids_;
  mutable std::unordered_multimap<std::uint64_t, std::int32_t> state_ids_;
  mutable std::deque<Words> masks_;
  mutable std::unordered_multimap<std::uint64_t, const Words*> mask_ids_;
  mutable std::vector<Place> open_;  // work of take_state()
  mutable PlaceSet seen_;
};

}  // namespace

std::shared_ptr<const TokenConstraint> make_constraint(Graph graph) {
  return std::make_shared<GraphConstraint>(std::move(graph));
}

}  // namespace thinkvg::text
