#include "thinkvg/text/grammar.h"

#include "text/grammar_graph.h"
#include "thinkvg/core/error.h"

namespace thinkvg::text {
namespace {

template <class Fill>
std::shared_ptr<const TokenConstraint> compile(const std::shared_ptr<const TokenTable>& tokens, const Fill& fill) {
  Graph graph(tokens);
  const Graph::Node start = graph.node();
  graph.end(fill(graph, start));
  graph.finish(start);
  return make_constraint(std::move(graph));
}

}  // namespace

GrammarCompiler::GrammarCompiler(const Tokenizer& tokenizer, const std::vector<std::int64_t>& end_ids,
                                 std::int64_t vocab_size)
    : tokens_(std::make_shared<const TokenTable>(tokenizer, end_ids, vocab_size)) {}

GrammarCompiler::~GrammarCompiler() = default;

std::shared_ptr<const TokenConstraint> GrammarCompiler::regex(std::string_view pattern) const {
  return compile(tokens_, [&](Graph& graph, Graph::Node from) { return add_regex(graph, from, pattern); });
}

std::shared_ptr<const TokenConstraint> GrammarCompiler::json_object(const JsonGrammarOptions& options) const {
  return compile(tokens_, [&](Graph& graph, Graph::Node from) { return add_json_object(graph, from, options); });
}

std::shared_ptr<const TokenConstraint> GrammarCompiler::json_schema(const Json& schema,
                                                                    const JsonGrammarOptions& options) const {
  return compile(tokens_,
                 [&](Graph& graph, Graph::Node from) { return add_json_schema(graph, from, schema, options); });
}

std::shared_ptr<const TokenConstraint> GrammarCompiler::response(const ResponseGrammar& grammar) const {
  return compile(tokens_, [&](Graph& graph, Graph::Node from) { return add_response(graph, from, grammar); });
}

}  // namespace thinkvg::text
