#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "thinkvg/core/json.h"
#include "thinkvg/core/settings.h"
#include "thinkvg/text/token_constraint.h"
#include "thinkvg/text/tokenizer.h"

namespace thinkvg::text {

struct JsonGrammarOptions {
  // Values inside of values, and schemas that refer to themselves, go at most this deep.
  std::int64_t max_depth = 16;
  // One space, or one line break with up to 32 spaces or tabs, where people put them: behind { [ , and :, and before
  // } and ]. Off: none. More is never allowed, so that a model cannot go on with spaces for ever.
  bool whitespace = true;

  void visit(SettingsVisitor& v) {
    v.setting("max_depth", max_depth, "Values inside of values, and schemas in themselves, go at most this deep.");
    v.setting("whitespace", whitespace, "Allow a space or an indented line break between the parts.");
  }
};

// The response format of grounding/response.h:
//   <think>..</think><response><answer>..</answer><location><ref>..</ref><box>[x1, y1, x2, y2]</box>..</location>
//   </response>
// Free text holds no "<", and "[" only where it begins a box. Every box, those of the reasoning too, is made of whole
// numbers with 0 <= x1 < x2 <= frame_width and 0 <= y1 < y2 <= frame_height, as format_box() writes them.
struct ResponseGrammar {
  bool think = true;                 // with <think>..</think>
  std::vector<std::string> answers;  // the known answers ("A", "B"); empty: any text
  bool several_answers = false;      // one or more of them, in their order, joined by ", "
  std::vector<std::string> regions;  // what <ref> may name; empty: any text
  std::int64_t frame_width = 0;      // of the frame that the model writes boxes in; up to 999,999
  std::int64_t frame_height = 0;
  std::int64_t min_regions = 0;  // ref/box pairs; <location> is left out where there are none
  std::int64_t max_regions = 16;
};

// Compiles grammars to constraints for one vocabulary. Making a compiler reads the whole vocabulary; a constraint is
// small and quick to make, finds out about a state when it is first asked for it, and keeps what it has found: a mask
// that was asked for before costs one look-up. Memory grows with the number of different states, so make boxes'
// grammars once for each size of frame and drop them when that size is gone; past about a gigabyte a constraint throws
// std::runtime_error.
// Thread-safe; the constraints outlive the compiler, and the tokenizer is not needed any more.
//
// How tokens stand for text:
//  - A text is what Tokenizer::decode gives for all ids behind the prompt: bytes, so that tokens may end within a
//    character; where decode() takes the leading space off a text, the first token may carry one.
//  - Special tokens, and added tokens that are more than white space, never stand in free text. Where the grammar has
//    their content as literal text ("<answer>"), that token, and nothing else, writes it. Vocabularies without such a
//    token spell it in pieces.
//  - Characters whose bytes are no tokens of their own are left out of all sets, so that no text gets stuck.
// All methods throw std::invalid_argument that says what is wrong or not supported and what is, also where a grammar is
// too large.
class GrammarCompiler {
 public:
  // end_ids: what ends a completion; allowed where the text is complete. vocab_size: of the model's logits, which may
  // have more ids than the tokenizer.
  GrammarCompiler(const Tokenizer& tokenizer, const std::vector<std::int64_t>& end_ids, std::int64_t vocab_size);
  ~GrammarCompiler();

  // The whole text matches. Characters, ".", classes, groups, "|", greedy and lazy * + ? {m,n}, the escapes
  // \d \w \s \D \W \S (ASCII), \p{L} and the other general categories, \n \t \r \f \v \0 \xHH \x{H..} \uHHHH; "^" and
  // "$" only at the ends, where they change nothing. No look-around, back-references, word boundaries or flags.
  std::shared_ptr<const TokenConstraint> regex(std::string_view pattern) const;
  // Any JSON object.
  std::shared_ptr<const TokenConstraint> json_object(const JsonGrammarOptions& options = {}) const;
  // JSON that satisfies a schema. Properties come in the schema's order. Supported:
  //   type (one or a list), enum, const, anyOf, allOf with one member, $ref inside the document ("#/$defs/..")
  //   properties, required, additionalProperties (where it is not said: none beside `properties`), items, prefixItems,
  //   minItems, maxItems, minLength, maxLength, pattern, format (date, time, date-time, uuid, email, ipv4),
  //   minimum, maximum, exclusiveMinimum, exclusiveMaximum
  // Numbers have at most 15 digits before and behind the point (10 and 5 where they have bounds). Other keywords but
  // annotations are errors, and so are schemas that nothing satisfies.
  std::shared_ptr<const TokenConstraint> json_schema(const Json& schema, const JsonGrammarOptions& options = {}) const;
  std::shared_ptr<const TokenConstraint> response(const ResponseGrammar& grammar) const;

 private:
  std::shared_ptr<const class TokenTable> tokens_;
};

}  // namespace thinkvg::text
