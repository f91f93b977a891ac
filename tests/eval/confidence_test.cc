#include "eval/confidence.h"

#include <gtest/gtest.h>

#include <cmath>

namespace thinkvg::eval {
namespace {

double confidence(const std::vector<std::string>& pieces, const std::vector<float>& logprobs) {
  const auto prefix = [&](std::size_t count) {
    std::string text;
    for (std::size_t i = 0; i < count; ++i) text += pieces[i];
    return text;
  };
  return answer_confidence(prefix, logprobs).value_or(-1);
}

TEST(AnswerConfidence, IsTheProbabilityOfTheAnswersTokens) {
  const std::vector<std::string> pieces = {"<think>", "x", "</think>", "<answer>", "ye", "s", "</answer>", ""};
  const std::vector<float> logprobs = {-1, -2, -3, -4, -0.25f, -0.5f, -6, -7};
  EXPECT_NEAR(confidence(pieces, logprobs), std::exp(-0.75), 1e-6);
}

TEST(AnswerConfidence, TagsMayBeSplitOverTokens) {
  // "<answer>yes</answer>": the token "r>y" holds the answer's first letter, "s<" its last.
  const std::vector<std::string> pieces = {"<answe", "r>y", "e", "s<", "/answer>"};
  EXPECT_NEAR(confidence(pieces, {-1, -0.1f, -0.2f, -0.3f, -5}), std::exp(-0.6), 1e-6);
}

TEST(AnswerConfidence, WithoutTagsItIsTheWholeText) {
  EXPECT_NEAR(confidence({"ye", "s"}, {-0.1f, -0.2f}), std::exp(-0.3), 1e-6);
  EXPECT_NEAR(confidence({"<answer>", "cut"}, {-1, -0.5f}), std::exp(-0.5), 1e-6);
  EXPECT_EQ(confidence({"<answer>", "</answer>"}, {-1, -1}), -1) << "an empty answer has none";
  EXPECT_EQ(confidence({}, {}), -1);
}

}  // namespace
}  // namespace thinkvg::eval
