#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "thinkvg/core/settings.h"

// Overlap metrics of free text. All functions take any bytes, never throw on text, and may run concurrently.
namespace thinkvg::eval {

// The variant of BLEU, which is half of the score: printed with it.
struct BleuOptions {
  std::string tokenize = "13a";
  std::string smooth = "exp";
  double smooth_value = -1;
  bool lowercase = false;

  void visit(SettingsVisitor& v) {
    v.setting("tokenize", tokenize,
              "13a (mteval-v13a, the usual one), char, or none (text that is tokenized already).");
    v.setting("smooth", smooth, "exp, floor, add-k or none.");
    v.setting("smooth_value", smooth_value, "Of floor and add-k; below 0: 0.1 and 1.");
    v.setting("lowercase", lowercase, "Compare without regard to case (ASCII letters).");
  }
  // Throws std::invalid_argument on an unknown tokenizer or smoothing.
  void check() const;
  // sacrebleu's way of naming it: "case:mixed|eff:no|tok:13a|smooth:exp".
  std::string signature() const;
};

inline constexpr int kMaxBleuOrder = 4;

// What BLEU is computed from; the statistics of a corpus are the sums of those of its segments.
struct BleuStats {
  double predicted_length = 0, reference_length = 0;
  std::array<double, kMaxBleuOrder> correct{}, total{};  // n-grams, n = 1 .. 4

  BleuStats& operator+=(const BleuStats& other);
  bool operator==(const BleuStats&) const = default;
};

// One segment against one reference.
BleuStats bleu_stats(std::string_view predicted, std::string_view reference, const BleuOptions& options);

// BLEU with n-grams up to `order` (1 to 4), in [0, 1] (sacrebleu: 0 to 100), as sacrebleu computes it.
// `effective_order`: leave out orders that the text is too short for; usual for single sentences, not for a corpus.
double bleu(const BleuStats& stats, int order, const BleuOptions& options, bool effective_order = false);

// Tokens as sacrebleu's tokenizer of that name gives them, joined by single spaces.
std::string bleu_tokenize(std::string_view text, const BleuOptions& options);

// ROUGE-L F-measure of the rouge-score package without its stemmer: lower case, words of [a-z0-9], longest common
// subsequence. 0 when either side has no word.
double rouge_l(std::string_view predicted, std::string_view reference);

// Words of normalize_text that the two share, counted with multiplicity.
struct TokenOverlap {
  double precision = 0, recall = 0, f1 = 0;
};
// Both without words: 1; one of them: 0.
TokenOverlap token_overlap(std::string_view predicted, std::string_view reference);

// Equal after lower-casing, trimming and dropping the final full stop: the rule of VQA-RAD, SLAKE and PathVQA.
bool equal_answers(std::string_view predicted, std::string_view reference);

// Number of words between white space.
std::int64_t count_words(std::string_view text);

}  // namespace thinkvg::eval
