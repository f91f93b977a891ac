#include "thinkvg/eval/text_metrics.h"

#include <gtest/gtest.h>

#include "thinkvg/core/json.h"
#include "thinkvg/grounding/answer.h"

namespace thinkvg::eval {
namespace {

BleuOptions variant_of(const Json& entry) {
  BleuOptions options;
  options.tokenize = entry["variant"][0].get<std::string>();
  options.smooth = entry["variant"][1].get<std::string>();
  options.lowercase = entry["variant"][2].get<bool>();
  return options;
}

TEST(TextMetricsParity, SegmentsEqualSacrebleuAndRougeScore) {
  const Json stored = read_json_file(THINKVG_TEST_DATA "/eval/text_metrics.json");
  ASSERT_GE(stored["segments"].size(), 200u);
  int above_zero = 0;
  for (const Json& entry : stored["segments"]) {
    const BleuOptions options = variant_of(entry);
    const auto predicted = entry["predicted"].get<std::string>(), reference = entry["reference"].get<std::string>();
    SCOPED_TRACE(entry.dump());
    if (options.tokenize == "13a") EXPECT_EQ(bleu_tokenize(predicted, options), entry["tokens"]);
    const BleuStats stats = bleu_stats(predicted, reference, options);
    for (int order = 1; order <= kMaxBleuOrder; ++order) {
      const double expected = entry["bleu"][static_cast<std::size_t>(order - 1)].get<double>();
      EXPECT_NEAR(bleu(stats, order, options, true), expected, 1e-9) << order;
      above_zero += expected > 0 ? 1 : 0;
    }
    EXPECT_NEAR(rouge_l(predicted, reference), entry["rouge_l"].get<double>(), 1e-12);
  }
  EXPECT_GT(above_zero, 200);
}

TEST(TextMetricsParity, CorporaEqualSacrebleu) {
  const Json stored = read_json_file(THINKVG_TEST_DATA "/eval/text_metrics.json");
  ASSERT_GE(stored["corpora"].size(), 20u);
  for (const Json& entry : stored["corpora"]) {
    const BleuOptions options = variant_of(entry);
    BleuStats stats;
    for (const Json& index : entry["segments"]) {
      const Json& segment = stored["segments"][index.get<std::size_t>()];
      stats += bleu_stats(segment["predicted"].get<std::string>(), segment["reference"].get<std::string>(), options);
    }
    for (int order = 1; order <= kMaxBleuOrder; ++order) {
      EXPECT_NEAR(bleu(stats, order, options), entry["bleu"][static_cast<std::size_t>(order - 1)].get<double>(), 1e-9)
          << order << " " << entry.dump();
    }
  }
}

TEST(Bleu, NamesItsVariant) {
  BleuOptions options;
  EXPECT_EQ(options.signature(), "case:mixed|eff:no|tok:13a|smooth:exp");
  options.smooth = "floor";
  options.lowercase = true;
  EXPECT_EQ(options.signature(), "case:lc|eff:no|tok:13a|smooth:floor[0.10]");
  options.tokenize = "words";
  EXPECT_THROW(options.check(), std::invalid_argument);
  options = {};
  options.smooth = "some";
  EXPECT_THROW(options.check(), std::invalid_argument);
  EXPECT_THROW(bleu({}, 5, {}), std::invalid_argument);
}

TEST(Bleu, BrokenUtf8IsText) {
  const std::string broken = "a \xff\xc3 b \xe2\x80 c \xf0\x9f";
  const BleuStats stats = bleu_stats(broken, broken, {});
  EXPECT_NEAR(bleu(stats, 1, {}), 1, 1e-12);
  BleuOptions characters;
  characters.tokenize = "char";
  EXPECT_NEAR(bleu(bleu_stats(broken, broken, characters), 4, characters), 1, 1e-12);
  EXPECT_EQ(rouge_l(broken, broken), 1);
}

TEST(TokenOverlap, CountsWordsWithMultiplicity) {
  const TokenOverlap overlap = token_overlap("The heart heart is big.", "a heart is enlarged");
  EXPECT_DOUBLE_EQ(overlap.precision, 2.0 / 4);
  EXPECT_DOUBLE_EQ(overlap.recall, 2.0 / 3);
  EXPECT_DOUBLE_EQ(overlap.f1, grounding::token_f1("The heart heart is big.", "a heart is enlarged"));
  EXPECT_EQ(token_overlap("", "").f1, 1);
  EXPECT_EQ(token_overlap("the", "a").recall, 1) << "articles are no words";
  EXPECT_EQ(token_overlap("", "x").recall, 0);
  EXPECT_EQ(token_overlap("x", "").precision, 0);
}

TEST(EqualAnswers, CaseSpaceAndOneFullStopDoNotMatter) {
  EXPECT_TRUE(equal_answers(" Yes. ", "yes"));
  EXPECT_TRUE(equal_answers("Right  lung", "right lung."));
  EXPECT_FALSE(equal_answers("normal", "no"));
  EXPECT_FALSE(equal_answers("yes, it is", "yes"));
}

TEST(CountWords, BetweenAnyWhiteSpace) {
  EXPECT_EQ(count_words(""), 0);
  EXPECT_EQ(count_words(" a\tb\u00a0c\n"), 3);
}

}  // namespace
}  // namespace thinkvg::eval
