// Measures grammars on a vocabulary: grammar_speed FOLDER END_TOKEN [VOCAB_SIZE]   prints JSON
//   FOLDER: a tokenizer's, such as one with dashscope's qwen.tiktoken; END_TOKEN: "<|im_end|>"; VOCAB_SIZE: of the
//   logits.
// For each grammar a usual text is followed token by token: next(), allowed(), and the pass that puts the mask on the
// logits. The first time masks are found out (first_*), then they are looked up (again_*).
#include <algorithm>
#include <chrono>
#include <iostream>
#include <limits>

#include "thinkvg/core/files.h"
#include "thinkvg/text/grammar.h"

namespace {

using thinkvg::text::TokenConstraint;
using Clock = std::chrono::steady_clock;

double micros_since(Clock::time_point start) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

// As an engine does: what is not allowed becomes -infinity.
void apply(std::span<const std::uint64_t> words, std::vector<float>& logits) {
  for (std::size_t i = 0; i < logits.size(); ++i)
    logits[i] = (words[i >> 6] >> (i & 63) & 1) != 0 ? logits[i] : -std::numeric_limits<float>::infinity();
}

struct Costs {
  double mean = 0, most = 0, mask = 0;
};

Costs follow(const TokenConstraint& constraint, const std::vector<std::int64_t>& ids, std::vector<float>& logits) {
  Costs costs;
  TokenConstraint::State state = constraint.start();
  for (const std::int64_t id : ids) {
    const auto start = Clock::now();
    const auto words = constraint.allowed(state);
    state = constraint.next(state, id);
    const double found = micros_since(start);
    if (state == TokenConstraint::kDead) throw std::runtime_error("the sample text does not satisfy the grammar");
    const auto mask_start = Clock::now();
    apply(words, logits);
    costs.mask += micros_since(mask_start) / static_cast<double>(ids.size());
    costs.mean += found / static_cast<double>(ids.size());
    costs.most = std::max(costs.most, found);
  }
  return costs;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc < 3) throw std::invalid_argument("usage: grammar_speed FOLDER END_TOKEN [VOCAB_SIZE]");
    const auto tokenizer = thinkvg::text::load_tokenizer(argv[1]);
    const std::int64_t vocab_size = argc > 3 ? std::stoll(argv[3]) : tokenizer->vocab_size();
    const auto table_start = Clock::now();
    const thinkvg::text::GrammarCompiler compiler(*tokenizer, {tokenizer->token_id(argv[2])}, vocab_size);
    thinkvg::Json result = {{"vocab_size", vocab_size}, {"vocabulary_ms", micros_since(table_start) / 1e3}};
    const auto measure = [&](const char* name, const auto& compile, const std::string& text) {
      const auto start = Clock::now();
      const std::shared_ptr<const TokenConstraint> constraint = compile();
      const double compile_ms = micros_since(start) / 1e3;
      const auto ids = tokenizer->encode(text);
      std::vector<float> logits(static_cast<std::size_t>(vocab_size), 1.0F);
      const Costs first = follow(*constraint, ids, logits);
      Costs again = follow(*constraint, ids, logits);
      for (int round = 0; round < 5; ++round) {
        const Costs next = follow(*constraint, ids, logits);
        again = {std::min(again.mean, next.mean), std::min(again.most, next.most), std::min(again.mask, next.mask)};
      }
      result[name] = {{"tokens", ids.size()},        {"compile_ms", compile_ms},    {"first_mean_us", first.mean},
                      {"first_most_us", first.most}, {"again_mean_us", again.mean}, {"apply_mask_us", again.mask}};
    };
    measure(
        "response", [&] { return compiler.response({.frame_width = 336, .frame_height = 336}); },
        "<think>The right lower lung zone (region [51, 190, 140, 281]) shows a patchy opacity; the left costophrenic "
        "angle "
        "(region [243, 252, 270, 280]) is sharp. No pleural effusion or pneumothorax is seen, and the cardiac "
        "silhouette "
        "(region [120, 150, 252, 260]) is of normal size.</think><response><answer>yes</answer><location><ref>right "
        "lower "
        "lung zone</ref><box>[51, 190, 140, 281]</box></location></response>");
    const thinkvg::Json value = {{"finding", "opacity"},
                                 {"side", "right"},
                                 {"boxes", {{51, 190, 140, 281}, {243, 252, 270, 280}}},
                                 {"report", "A patchy opacity in the right lower zone, most likely pneumonia."},
                                 {"certain", true}};
    measure(
        "json_object", [&] { return compiler.json_object(); }, value.dump(2));
    const thinkvg::Json box = {{"type", "array"},
                               {"items", {{"type", "integer"}, {"minimum", 0}, {"maximum", 336}}},
                               {"minItems", 4},
                               {"maxItems", 4}};
    const thinkvg::Json schema = {{"type", "object"},
                                  {"properties",
                                   {{"finding", {{"type", "string"}, {"maxLength", 40}}},
                                    {"side", {{"enum", {"left", "right", "both"}}}},
                                    {"boxes", {{"type", "array"}, {"items", box}}},
                                    {"report", {{"type", "string"}}},
                                    {"certain", {{"type", "boolean"}}}}},
                                  {"required", {"finding", "side", "boxes", "report", "certain"}}};
    measure(
        "json_schema", [&] { return compiler.json_schema(schema); }, value.dump(2));
    measure(
        "regex", [&] { return compiler.regex(R"((yes|no), [^\n]{10,200}\.)"); },
        "yes, a patchy opacity in the right lower zone, most likely pneumonia.");
    std::cout << result.dump(2) << '\n';
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
