#include "thinkvg/grounding/sentences.h"

#include <gtest/gtest.h>

namespace thinkvg::grounding {
namespace {

const BoxFrame kFrame = BoxFrame::letterbox(336);

std::vector<std::string> texts(const std::vector<GroundedSentence>& sentences) {
  std::vector<std::string> list;
  for (const GroundedSentence& sentence : sentences) list.push_back(sentence.text);
  return list;
}

TEST(GroundedSentences, EachHasItsRegionsAndItsPlace) {
  const std::string text =
      "<think>The heart (region [1, 2, 30, 40]) is large. The right lung (region [5, 6, 70, 80]) and the left lung "
      "(region [90, 6, 150, 80]) are clear.</think><response><answer>A. B</answer></response>";
  const auto sentences = grounded_sentences(text, kFrame);
  ASSERT_EQ(sentences.size(), 2u);
  EXPECT_EQ(sentences[0].text, "The heart (region [1, 2, 30, 40]) is large.");
  ASSERT_EQ(sentences[0].regions.size(), 1u);
  EXPECT_EQ(sentences[0].regions[0].name, "heart");
  EXPECT_EQ(sentences[0].regions[0].box, (Box{1, 2, 30, 40, kFrame}));
  ASSERT_EQ(sentences[1].regions.size(), 2u);
  EXPECT_EQ(sentences[1].regions[1].name, "left lung");
  for (const GroundedSentence& sentence : sentences) {
    EXPECT_TRUE(sentence.complete);
    EXPECT_EQ(text.substr(sentence.begin, sentence.end - sentence.begin), sentence.text);
  }
}

TEST(GroundedSentences, DotsInNumbersAndBracketsDoNotEndOne) {
  EXPECT_EQ(
      texts(grounded_sentences("<think>A 1.5 cm nodule (see fig. 2 below) is seen. It is \"new.\" Yes!\nNext "
                               "line</think>",
                               kFrame)),
      (std::vector<std::string>{"A 1.5 cm nodule (see fig. 2 below) is seen.", "It is \"new.\"", "Yes!", "Next line"}));
}

TEST(GroundedSentences, WithoutReasoningThereAreNone) {
  EXPECT_TRUE(grounded_sentences("", kFrame).empty());
  EXPECT_TRUE(grounded_sentences("A plain answer. Two.", kFrame).empty());
  EXPECT_TRUE(grounded_sentences("<response><answer>A. B.</answer></response>", kFrame).empty());
  EXPECT_TRUE(grounded_sentences("<response><answer>A.</answer></response><think>Late.</think>", kFrame).empty());
  EXPECT_TRUE(grounded_sentences("<think>  \n </think>", kFrame).empty());
  EXPECT_EQ(texts(grounded_sentences("One. Two.</think>", kFrame)), (std::vector<std::string>{"One.", "Two."}));
  EXPECT_EQ(texts(grounded_sentences("<think>One. Two<response>", kFrame)), (std::vector<std::string>{"One.", "Two"}));
}

// A page that shows sentences while they are written must never have to take one back.
TEST(GroundedSentences, WhatIsCompleteStaysAsTheTextGrows) {
  const std::string text =
      "<think>The heart (region [1.5, 2, 30, 40]) is 1.5 times large... Is it? \"Yes.\" The lung (region [5, 6, 70, "
      "80]) is clear.</think><response><answer>A</answer></response>";
  const auto all = grounded_sentences(text, kFrame);
  std::size_t most = 0;
  for (std::size_t size = 0; size <= text.size(); ++size) {
    const auto part = grounded_sentences(std::string_view(text).substr(0, size), kFrame, false);
    std::size_t complete = 0;
    for (const GroundedSentence& sentence : part) {
      if (!sentence.complete) continue;
      ASSERT_LT(complete, all.size()) << size;
      EXPECT_EQ(sentence.text, all[complete].text) << size;
      EXPECT_EQ(sentence.regions, all[complete].regions) << size;
      ++complete;
    }
    EXPECT_GE(complete, most) << size;
    most = complete;
  }
  EXPECT_EQ(most, all.size());
}

}  // namespace
}  // namespace thinkvg::grounding
