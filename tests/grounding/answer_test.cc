#include "thinkvg/grounding/answer.h"

#include <gtest/gtest.h>

#include <chrono>
#include <set>

namespace thinkvg::grounding {
namespace {

constexpr auto kStrict = AnswerReading::strict;
constexpr auto kLenient = AnswerReading::lenient;

TEST(YesNo, Table) {
  struct Case {
    const char* text;
    std::optional<bool> strict, lenient;
  };
  const std::vector<Case> cases = {
      {"yes", true, true},
      {"Yes.", true, true},
      {" NO ", false, false},
      {"\"No\"", false, false},
      {"**yes**", true, true},
      {"no, the lungs are clear", {}, false},
      {"Yes, there is no effusion", {}, true},
      {"The answer is yes.", {}, true},
      {"answer: No", {}, false},
      {"normal", {}, {}},
      {"The heart is normal", {}, {}},
      {"not seen", {}, {}},
      {"nodule", {}, {}},
      {"none", {}, {}},
      {"There is no effusion", {}, {}},
      {"yesterday", {}, {}},
      {"", {}, {}},
      {"...", {}, {}},
  };
  for (const Case& test : cases) {
    EXPECT_EQ(read_yes_no(test.text, kStrict), test.strict) << test.text;
    EXPECT_EQ(read_yes_no(test.text, kLenient), test.lenient) << test.text;
  }
}

TEST(YesNo, Matching) {
  EXPECT_TRUE(yes_no_matches("Yes.", "yes", kStrict));
  EXPECT_FALSE(yes_no_matches("normal", "no", kStrict));
  EXPECT_FALSE(yes_no_matches("normal", "no", kLenient));
  EXPECT_FALSE(yes_no_matches("no", "yes", kStrict));
  EXPECT_FALSE(yes_no_matches("", "", kStrict)) << "no answer is never right";
  EXPECT_TRUE(yes_no_matches("Yes", "Yes, the heart is enlarged.", kStrict));
  EXPECT_TRUE(yes_no_matches("Yes, the heart is enlarged.", "Yes, the heart is enlarged.", kStrict));
  EXPECT_FALSE(yes_no_matches("no, clear", "no", kStrict));
  EXPECT_TRUE(yes_no_matches("no, clear", "no", kLenient));
  EXPECT_TRUE(yes_no_matches("The apex", "apex", kStrict)) << "other references are compared as text";
}

TEST(OptionLetters, Table) {
  struct Case {
    const char* text;
    const char *strict, *lenient;  // "-": no letters
  };
  const std::vector<Case> cases = {
      {"A", "A", "A"},
      {"b", "B", "B"},
      {"(c)", "C", "C"},
      {"A.", "A", "A"},
      {"A: left lung", "A", "A"},
      {"B. the right lung, lower zone", "B", "B"},
      {"A, C", "AC", "AC"},
      {"C, A", "AC", "AC"},
      {"A,C.", "AC", "AC"},
      {"A and C", "AC", "AC"},
      {"A, B and D", "ABD", "ABD"},
      {"A, B, and D", "ABD", "ABD"},
      {"A & C", "AC", "AC"},
      {"A; C", "AC", "AC"},
      {"A, A", "A", "A"},
      {"['A', 'C']", "AC", "AC"},
      {"[\"A\", \"C\"]", "AC", "AC"},
      {"['A']", "A", "A"},
      {"[A, C]", "AC", "AC"},
      {"['A: left lung', 'C: right lung, upper']", "AC", "AC"},
      {"A: left lung, C: right lung", "AC", "AC"},
      {"A: opacity, likely pneumonia, B", "A", "A"},
      {"A\n", "A", "A"},
      {"AC", "-", "AC"},
      {"CA", "-", "-"},
      {"**B**", "-", "B"},
      {"The answer is B.", "-", "B"},
      {"The correct answers are A and C", "-", "AC"},
      {"Options A, D", "-", "AD"},
      {"option b", "-", "B"},
      {"A small nodule", "-", "-"},
      {"I think so", "-", "-"},
      {"none of them", "-", "-"},
      {"", "-", "-"},
      {"[]", "-", "-"},
      {",", "-", "-"},
      {"A or B", "-", "-"},
      {"\xC3\x84", "-", "-"},
      {"A\xC3\xA4", "-", "-"},
  };
  for (const Case& test : cases) {
    EXPECT_EQ(read_option_letters(test.text, kStrict).value_or("-"), test.strict) << test.text;
    EXPECT_EQ(read_option_letters(test.text, kLenient).value_or("-"), test.lenient) << test.text;
  }
}

TEST(OptionLetters, ChoiceTextsAreReadLeniently) {
  const std::vector<std::string> choices = {"A: Left lung", "B: Right lung", "C: The heart", "D: heart"};
  EXPECT_EQ(read_option_letters("the right lung.", kLenient, choices), "B");
  EXPECT_EQ(read_option_letters("the right lung.", kStrict, choices), std::nullopt);
  EXPECT_EQ(read_option_letters("lung", kLenient, choices), std::nullopt);
  EXPECT_EQ(read_option_letters("heart", kLenient, choices), std::nullopt) << "two options with one text";
}

TEST(OptionLetters, Matching) {
  EXPECT_TRUE(match_option_letters("A, C", "['A', 'C']", kStrict).exact);
  EXPECT_EQ(match_option_letters("A, C", "A, C", kStrict).jaccard, 1);
  const auto part = match_option_letters("A", "A, C", kStrict);
  EXPECT_FALSE(part.exact);
  EXPECT_EQ(part.jaccard, 0.5);
  EXPECT_EQ(part.problem, "answered A, the reference is AC");
  EXPECT_EQ(match_option_letters("B", "A, C", kStrict).jaccard, 0);
  EXPECT_EQ(match_option_letters("left lung", "A", kStrict).jaccard, 0);
  EXPECT_TRUE(match_option_letters("left lung", "left lung", kStrict).exact) << "reference without letters";
  EXPECT_FALSE(match_option_letters("", "", kStrict).exact);
}

TEST(NormalizeText, Table) {
  EXPECT_EQ(normalize_text("The heart's size: 2.5 cm."), "hearts size 2.5 cm");
  EXPECT_EQ(normalize_text("Right-sided  pleural\neffusion"), "right sided pleural effusion");
  EXPECT_EQ(normalize_text("a, an; the"), "");
  EXPECT_EQ(normalize_text("Apex of A lung"), "apex of lung");
  EXPECT_EQ(normalize_text("\xC3\x96"
                           "dem"),
            "\xC3\x96"
            "dem");
}

TEST(TokenF1, KnownValues) {
  EXPECT_EQ(token_f1("The heart is large.", "heart is large"), 1);
  EXPECT_DOUBLE_EQ(token_f1("heart large", "heart is large"), 0.8);
  EXPECT_EQ(token_f1("lung", "heart"), 0);
  EXPECT_EQ(token_f1("", ""), 1);
  EXPECT_EQ(token_f1("heart", ""), 0);
  EXPECT_EQ(token_f1("", "heart"), 0);
  EXPECT_DOUBLE_EQ(token_f1("no no no", "no finding"), 0.4) << "a repeated word counts once";
}

TEST(RegionNames, KnownNamesAreTheirOwnNormalForm) {
  EXPECT_GE(region_names().size(), 33u);
  EXPECT_EQ(std::set<std::string>(region_names().begin(), region_names().end()).size(), region_names().size());
  for (const std::string& name : region_names()) EXPECT_EQ(normalize_region_name(name), name);
}

TEST(RegionNames, Synonyms) {
  const std::vector<std::pair<const char*, const char*>> cases = {
      {"Right Lower Lung Zone", "right lower lung zone"},
      {"the right lower zone", "right lower lung zone"},
      {"left_costophrenic_angle", "left costophrenic angle"},
      {"Left CP angle", "left costophrenic angle"},
      {"both lungs", "bilateral lung"},
      {"bilateral lungs", "bilateral lung"},
      {"left and right hemidiaphragms", "bilateral hemidiaphragm"},
      {"bilateral lower lung zones", "bilateral lower lung zone"},
      {"left hilum", "left hilar structures"},
      {"bilateral hila", "bilateral hilar structures"},
      {"heart", "cardiac silhouette"},
      {"SVC", "svc"},
      {"superior vena cava", "svc"},
      {"right apex", "right apical zone"},
      {"pacemaker pocket", "pacemaker pocket"},
      {"", ""},
  };
  for (const auto& [text, expected] : cases) EXPECT_EQ(normalize_region_name(text), expected) << text;
}

TEST(Answers, LongTextsAreRead) {
  const auto start = std::chrono::steady_clock::now();
  for (const char* part : {"A, ", "A: ", ", A:", "[", "and ", "answer is ", "' "}) {
    std::string text;
    while (text.size() < 100'000) text += part;
    for (auto reading : {kStrict, kLenient}) {
      read_option_letters(text, reading, {"A: x"});
      read_yes_no(text, reading);
      token_f1(text, text);
    }
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  EXPECT_LT(seconds, 2) << "14 readings of 100 kB";
}

}  // namespace
}  // namespace thinkvg::grounding
