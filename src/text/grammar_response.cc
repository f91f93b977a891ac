#include "text/grammar_graph.h"
#include "thinkvg/core/error.h"

namespace thinkvg::text {
namespace {

constexpr std::int64_t kLargestFrame = 999'999;
constexpr std::int64_t kMostRegions = 1000;

// What free text is made of: no tags, no brackets of boxes, no control characters but line breaks and tabs.
const CharSet& text_chars() {
  static const CharSet kChars =
      CharSet({{'\t', '\n'}, {' ', 0x7E}, {0xA0, 0x10FFFF}}).without({{'<', '<'}, {'[', '['}});
  return kChars;
}

// No white space, so that something is left when it is trimmed.
const CharSet& first_chars() {
  static const CharSet kChars = text_chars().without({{'\t', '\n'}, {' ', ' '}});
  return kChars;
}

Graph::Node add_text(Graph& graph, Graph::Node from) {
  const Graph::Node to = graph.chars(from, first_chars());
  graph.chars(to, text_chars(), to);
  return to;
}

Graph::Node add_one_of(Graph& graph, Graph::Node from, const std::vector<std::string>& texts) {
  const Graph::Node to = graph.node();
  for (const std::string& text : texts) graph.link(graph.literal(from, text), to);
  return to;
}

// Some of the texts in their order.
Graph::Node add_several_of(Graph& graph, Graph::Node from, const std::vector<std::string>& texts) {
  Graph::Node none = from, some = graph.node();  // behind the texts so far: whether one of them was taken
  for (const std::string& text : texts) {
    const Graph::Node take = graph.node(), next_some = graph.literal(take, text), next_none = graph.node();
    graph.link(none, take);
    graph.link(graph.literal(some, ", "), take);
    graph.link(some, next_some);
    graph.link(none, next_none);
    none = next_none;
    some = next_some;
  }
  return some;
}

void check_texts(const char* name, const std::vector<std::string>& texts) {
  for (const std::string& text : texts)
    if (text.empty() || text.find_first_of("<>") != std::string::npos)
      throw_invalid("a response's {} must be texts without < and >, but one is '{}'", name, text);
}

}  // namespace

Graph::Node add_response(Graph& graph, Graph::Node from, const ResponseGrammar& grammar) {
  for (const std::int64_t side : {grammar.frame_width, grammar.frame_height})
    if (side < 1 || side > kLargestFrame)
      throw_invalid("the frame of a response's boxes must have sides of 1 to {}, but is {} x {}", kLargestFrame,
                    grammar.frame_width, grammar.frame_height);
  if (grammar.min_regions < 0 || grammar.max_regions < grammar.min_regions || grammar.max_regions > kMostRegions)
    throw_invalid("a response may have 0 to {} regions, but from {} to {} are asked for", kMostRegions,
                  grammar.min_regions, grammar.max_regions);
  check_texts("answers", grammar.answers);
  check_texts("regions", grammar.regions);

  const auto box = box_machine(grammar.frame_width, grammar.frame_height);
  if (grammar.think) {
    from = graph.literal(from, "<think>");
    const Graph::Node inside = graph.node();
    graph.chars(from, first_chars(), inside);
    graph.link(graph.machine(from, box), inside);
    graph.chars(inside, text_chars(), inside);
    graph.link(graph.machine(inside, box), inside);
    from = graph.literal(inside, "</think>");
  }
  from = graph.literal(from, "<response><answer>");
  if (grammar.answers.empty())
    from = add_text(graph, from);
  else if (grammar.several_answers)
    from = add_several_of(graph, from, grammar.answers);
  else
    from = add_one_of(graph, from, grammar.answers);
  from = graph.literal(from, "</answer>");
  const Graph::Node end = graph.node();
  if (grammar.min_regions == 0) graph.link(graph.literal(from, "</response>"), end);
  if (grammar.max_regions > 0) {
    const Graph::Node region = graph.rule([&](Graph::Node at) {
      at = graph.literal(at, "<ref>");
      at = grammar.regions.empty() ? add_text(graph, at) : add_one_of(graph, at, grammar.regions);
      at = graph.literal(at, "</ref><box>");
      return graph.literal(graph.machine(at, box), "</box>");
    });
    const Graph::Node close = graph.node();
    Graph::Node at = graph.literal(from, "<location>");
    for (std::int64_t i = 1; i <= grammar.max_regions; ++i) {
      at = graph.call(at, region);
      if (i >= grammar.min_regions) graph.link(at, close);
    }
    graph.link(graph.literal(close, "</location></response>"), end);
  }
  return end;
}

}  // namespace thinkvg::text
