#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/grammar_tokens.h"
#include "thinkvg/core/json.h"
#include "thinkvg/text/grammar.h"

namespace thinkvg::text {

// A set of characters; surrogates are never in it.
class CharSet {
 public:
  struct Range {
    char32_t first, last;
  };
  CharSet() = default;
  CharSet(std::initializer_list<Range> ranges);
  static const CharSet& all();
  static CharSet one(char32_t character) { return CharSet({{character, character}}); }

  void add(char32_t first, char32_t last);
  void add(const CharSet& other);
  CharSet complement() const;
  CharSet without(const CharSet& other) const;
  CharSet both(const CharSet& other) const { return without(other.complement()); }
  bool contains(char32_t character) const;
  bool empty() const { return ranges_.empty(); }
  const std::vector<Range>& ranges() const { return ranges_; }  // sorted, apart

 private:
  std::vector<Range> ranges_;
};

// A part of a text that is followed by computing with a number, its state: what a graph would need too many nodes for.
class Machine {
 public:
  virtual ~Machine() = default;
  virtual std::uint64_t start() const = 0;
  // The state behind one more byte; nothing where the text cannot go on so. An end can be reached from every state.
  virtual std::optional<std::uint64_t> step(std::uint64_t state, std::uint8_t byte) const = 0;
  virtual bool done(std::uint64_t state) const = 0;
  virtual std::string_view bytes() const = 0;  // all that step() may take
};

// "[x1, y1, x2, y2]" inside of a frame.
std::shared_ptr<const Machine> box_machine(std::int64_t width, std::int64_t height);
// Numbers as JSON writes them, without an exponent, in [low, high]: units of 10^-decimals, below 10^15 in size.
std::shared_ptr<const Machine> number_machine(std::int64_t low, std::int64_t high, int decimals);

// A grammar as a nondeterministic automaton over bytes, with rules that are called (never from themselves). Built from
// left to right: each method goes on from a node and returns the node behind.
class Graph {
 public:
  using Node = std::int32_t;
  struct ByteEdge {
    std::uint8_t first, last;
    Node to;
  };
  struct TokenEdge {
    std::int64_t id;
    Node to;
  };
  struct Place {
    std::vector<ByteEdge> bytes;
    std::vector<TokenEdge> tokens;
    std::vector<Node> empty;    // reached without a byte
    Node call = -1;             // start of a rule; `behind` it the text goes on
    std::int32_t machine = -1;  // this node stands in a machine; `behind` where it is done
    Node behind = -1;
    bool ends = false;  // of its rule, or of the text
  };

  explicit Graph(std::shared_ptr<const TokenTable> tokens) : tokens_(std::move(tokens)) {}

  // Throws std::invalid_argument where the grammar becomes too large.
  Node node();
  void link(Node from, Node to) { places_[index(from)].empty.push_back(to); }
  void end(Node at) { places_[index(at)].ends = true; }
  void bytes(Node from, std::uint8_t first, std::uint8_t last, Node to) {
    places_[index(from)].bytes.push_back({first, last, to});
  }
  Node literal(Node from, std::string_view text);
  Node chars(Node from, const CharSet& set) {
    const Node to = node();
    chars(from, set, to);
    return to;
  }
  void chars(Node from, const CharSet& set, Node to);
  Node call(Node from, Node rule);
  Node machine(Node from, std::shared_ptr<const Machine> machine);
  // A rule of its own, to be called: `fill` goes from its start to its end.
  Node rule(const std::function<Node(Node)>& fill);
  // One or none of the texts that `fill` makes.
  Node optional(Node from, const std::function<Node(Node)>& fill);

  // Takes out what leads nowhere. Throws std::invalid_argument where no text is left. To be called once, at the end.
  void finish(Node start);

  Node start() const { return start_; }
  const Place& place(Node at) const { return places_[index(at)]; }
  const Machine& machine_at(const Place& place) const { return *machines_[static_cast<std::size_t>(place.machine)]; }
  const TokenTable& tokens() const { return *tokens_; }
  std::shared_ptr<const TokenTable> shared_tokens() const { return tokens_; }
  // Bytes that no part of the grammar tells apart share a class.
  int num_classes() const { return num_classes_; }
  int class_of(std::uint8_t byte) const { return class_of_[byte]; }
  std::uint8_t byte_of_class(int byte_class) const { return byte_of_class_[static_cast<std::size_t>(byte_class)]; }

 private:
  static std::size_t index(Node at) { return static_cast<std::size_t>(at); }
  bool leave_available_bytes();
  void find_classes();

  std::shared_ptr<const TokenTable> tokens_;
  std::vector<Place> places_;
  std::vector<std::shared_ptr<const Machine>> machines_;
  Node start_ = 0;
  int num_classes_ = 0;
  std::array<std::uint8_t, 256> class_of_{};
  std::array<std::uint8_t, 256> byte_of_class_{};
};

// How characters of a pattern stand in the text.
enum class CharForm {
  kPlain,
  kJson,  // inside a JSON string; "^" and "$" then mean its ends, and a pattern may match anywhere between
};
Graph::Node add_regex(Graph& graph, Graph::Node from, std::string_view pattern, CharForm form = CharForm::kPlain);
Graph::Node add_json_object(Graph& graph, Graph::Node from, const JsonGrammarOptions& options);
Graph::Node add_json_schema(Graph& graph, Graph::Node from, const Json& schema, const JsonGrammarOptions& options);
Graph::Node add_response(Graph& graph, Graph::Node from, const ResponseGrammar& grammar);

// The constraint of a finished graph.
std::shared_ptr<const TokenConstraint> make_constraint(Graph graph);

}  // namespace thinkvg::text
