#include "thinkvg/grounding/response.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <ctime>

#include "thinkvg/core/error.h"
#include "thinkvg/core/random.h"

namespace thinkvg::grounding {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

const BoxFrame kFrame = BoxFrame::letterbox(336);

Box box(double x1, double y1, double x2, double y2) { return {x1, y1, x2, y2, kFrame}; }

ParsedResponse parse(std::string_view text, bool expect_think = false) {
  return parse_response(text, kFrame, expect_think);
}

constexpr char kFull[] =
    "<think>The right lower zone (region [51, 190, 140, 281]) shows an opacity. In the left lung (region [180, 60, "
    "300, "
    "290]) nothing is seen.</think><response><answer>Yes</answer><location><ref>right lower lung zone</ref><box>[51, "
    "190, "
    "140, 281]</box></location></response>";

TEST(ParseResponse, TheReleasesForm) {
  const ParsedResponse parsed = parse(kFull, true);
  EXPECT_TRUE(parsed.complete) << parsed.problem;
  EXPECT_EQ(parsed.problem, "");
  EXPECT_TRUE(parsed.has_think);
  EXPECT_TRUE(parsed.has_answer);
  EXPECT_EQ(parsed.answer, "Yes");
  EXPECT_THAT(parsed.regions, ElementsAre(Region{"right lower lung zone", box(51, 190, 140, 281)}));
  EXPECT_THAT(parsed.think_regions, ElementsAre(Region{"right lower zone", box(51, 190, 140, 281)},
                                                Region{"left lung", box(180, 60, 300, 290)}));
  EXPECT_THAT(parsed.bad_boxes, IsEmpty());
  EXPECT_THAT(parsed.think, HasSubstr("nothing is seen."));
}

TEST(ParseResponse, ThinkIsExpectedOnDemand) {
  const char* text = "<response><answer>A</answer></response>";
  EXPECT_TRUE(parse(text, false).complete);
  EXPECT_FALSE(parse(text, true).complete);
  EXPECT_EQ(parse(text, true).problem, "no <think>");
  EXPECT_TRUE(parse(kFull, false).complete) << "a reasoning that was not asked for is no fault";
}

TEST(ParseResponse, BoxVariants) {
  const auto regions = [](const std::string& location) {
    const auto parsed = parse("<response><answer>A</answer><location>" + location + "</location></response>");
    EXPECT_TRUE(parsed.complete) << location << ": " << parsed.problem;
    EXPECT_THAT(parsed.bad_boxes, IsEmpty()) << location;
    return parsed.regions;
  };
  const Region a{"a", box(1, 2, 3, 4)}, b{"b", box(5, 6, 7, 8)};
  EXPECT_THAT(regions("<ref>a</ref><box>[1, 2, 3, 4]</box>"), ElementsAre(a));
  EXPECT_THAT(regions("<ref> a </ref>\n<box>\n[1,2,\n3,4]\n</box>\n"), ElementsAre(a));
  EXPECT_THAT(regions("<ref>a</ref><box>[[1, 2, 3, 4]]</box>"), ElementsAre(a));
  EXPECT_THAT(regions("<ref>a</ref><box>[1 2 3 4]</box>"), ElementsAre(a));
  EXPECT_THAT(regions("<ref>a</ref><box>[1.0, 2.0, 3e0, 4.]</box>"), ElementsAre(a));
  EXPECT_THAT(regions("<ref>a</ref><box>[1, 2, 3, 4]</box><ref>b</ref><box>[5, 6, 7, 8]</box>"), ElementsAre(a, b));
  EXPECT_THAT(regions("<ref>a</ref><ref>b</ref><box>[[1, 2, 3, 4], [5, 6, 7, 8]]</box>"), ElementsAre(a, b));
  EXPECT_THAT(regions("<ref>a</ref><box>[[1, 2, 3, 4], [5, 6, 7, 8]]</box>"),
              ElementsAre(a, Region{"a", box(5, 6, 7, 8)}));
  EXPECT_THAT(regions("<ref>a</ref><box>[1, 2, 3, 4], [5, 6, 7, 8]</box>"),
              ElementsAre(a, Region{"a", box(5, 6, 7, 8)}));
  EXPECT_THAT(regions("<ref>a</ref><box>[1, 2, 3, 4]</box><box>[5, 6, 7, 8]</box>"),
              ElementsAre(a, Region{"a", box(5, 6, 7, 8)}));
  EXPECT_THAT(regions("<box>[1, 2, 3, 4]</box>"), ElementsAre(Region{"", box(1, 2, 3, 4)}));
  EXPECT_THAT(regions("<ref>a</ref><box>[-1.5, 0.25, 3, 4]</box>"), ElementsAre(Region{"a", box(-1.5, 0.25, 3, 4)}));
  EXPECT_THAT(regions(""), IsEmpty());
  // A box given twice is kept twice: who scores it has to know.
  EXPECT_THAT(regions("<ref>a</ref><box>[1, 2, 3, 4]</box><ref>a</ref><box>[1, 2, 3, 4]</box>"), ElementsAre(a, a));
}

TEST(ParseResponse, BadBoxesAreKeptAsText) {
  for (const char* bad :
       {"[140, 281, 51, 190]", "[1, 2, 1, 4]", "[1, 2, 3]", "[1, 2, 3, 4, 5]", "[nan, 2, 3, 4]", "[1, 2, inf, 4]",
        "[1e999, 2, 3, 4]", "[a, b, c, d]", "[1px, 2, 3, 4]", "[]", "1, 2, 3, 4", "[1, 2, 3, 4", "", "[1,,2,3]",
        "[1, 2, 3, 4,]", "[0x1, 2, 3, 4]", "[12, 34 56 78, 9, 9]", "None"}) {
    const auto parsed =
        parse(std::string("<response><answer>A</answer><location><box>") + bad + "</box></location></response>");
    EXPECT_TRUE(parsed.complete) << bad << ": " << parsed.problem;
    EXPECT_THAT(parsed.regions, IsEmpty()) << bad;
    EXPECT_THAT(parsed.bad_boxes, ElementsAre(bad));
    ASSERT_EQ(parsed.bad_box_problems.size(), 1u) << bad;
    EXPECT_FALSE(parsed.bad_box_problems[0].empty()) << bad;
  }
  const auto mixed =
      parse("<response><answer>A</answer><location><box>[1, 2, 3, 4] or [9, 9, 3, 3]</box></location></response>");
  EXPECT_THAT(mixed.regions, ElementsAre(Region{"", box(1, 2, 3, 4)}));
  EXPECT_THAT(mixed.bad_boxes, ElementsAre("or", "[9, 9, 3, 3]"));
}

TEST(ParseBoxList, SaysWhyATextIsNoBox) {
  const std::vector<std::pair<const char*, const char*>> cases = {
      {"[140, 281, 51, 190]", "x1 = 140 is not below x2 = 51: the corners are reversed"},
      {"[1, 2, 1, 4]", "x1 and x2 are both 1: the box is empty"},
      {"[1, 2, 3]", "3 of 4 numbers"},
      {"[]", "0 of 4 numbers"},
      {"[1, 2, 3, 4, 5]", "5 numbers, not 4"},
      {"[nan, 2, 3, 4]", "a coordinate is not a finite number"},
      {"[1e999, 2, 3, 4]", "a coordinate is not a finite number"},
      {"[a, b, c, d]", "'a' is not a number"},
      {"[1px, 2, 3, 4]", "'px' stands behind a number"},
      {"[1, 2, 3, 4,]", "a number is missing beside a comma"},
      {"[1,,2,3]", "a number is missing beside a comma"},
      {"1, 2, 3, 4", "no [x1, y1, x2, y2] with both brackets"},
      {"", "no box"},
      {"[1, 2, 3, 4] or", "text between the boxes"}};
  for (const auto& [text, problem] : cases) {
    const BoxList list = parse_box_list(text, kFrame);
    EXPECT_THAT(list.problems, ElementsAre(problem)) << text;
    EXPECT_EQ(list.bad.size(), 1u) << text;
  }
  EXPECT_THAT(parse_box_list("[[1, 2, 3, 4], [5, 6, 7, 8]]", kFrame).boxes,
              ElementsAre(box(1, 2, 3, 4), box(5, 6, 7, 8)));
  EXPECT_EQ(read_four_numbers(" [30, 2, 3, 40] "), (std::array<double, 4>{30, 2, 3, 40}));
  EXPECT_EQ(read_four_numbers("1 2 3"), std::nullopt);
}

TEST(ParseSectionedReply, ReadsGemexTrainingReplies) {
  const auto parsed =
      parse_sectioned_reply("<answer> B <reason>: it is dense <location> [[1, 2, 3, 4], [5, 6, 7, 8]]", kFrame);
  EXPECT_TRUE(parsed.complete) << parsed.problem;
  EXPECT_EQ(parsed.answer, "B");
  EXPECT_EQ(parsed.think, "it is dense");
  EXPECT_THAT(parsed.regions, ElementsAre(Region{"", box(1, 2, 3, 4)}, Region{"", box(5, 6, 7, 8)}));
  EXPECT_TRUE(parse_sectioned_reply("<answer>no", kFrame).complete);
  EXPECT_TRUE(parse_sectioned_reply("<answer>no<location>[]", kFrame).complete);
  const std::vector<std::pair<const char*, const char*>> cases = {{"no", "no <answer>"},
                                                                  {"<reason> r", "no <answer>"},
                                                                  {"<answer><reason> r", "<answer> is empty"},
                                                                  {"<answer>a<answer>b", "<answer> stands twice"},
                                                                  {"<reason>r<answer>a", "<reason> comes too early"},
                                                                  {"so <answer>a", "text before the first tag"}};
  for (const auto& [text, problem] : cases) EXPECT_EQ(parse_sectioned_reply(text, kFrame).problem, problem) << text;
  const auto bad = parse_sectioned_reply("<answer>a<location>nowhere", kFrame);
  EXPECT_THAT(bad.bad_boxes, ElementsAre("nowhere"));
}

TEST(ParseResponse, IncompleteTextsSayWhy) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "no <response>"},
      {"Yes", "no <response>"},
      {"<answer>A</answer>", "no <response>"},
      {"<response></response>", "no <answer>"},
      {"<response><answer></answer></response>", "<answer> is empty"},
      {"<response><answer>A</response>", "<answer> is not closed"},
      {"<response><answer>A</answer>", "<response> is not closed"},
      {"<response><answer>A</answer></response> and more", "text after </response>"},
      {"<response><answer>A</answer></response><response><answer>B</answer></response>", "text after </response>"},
      {"well <response><answer>A</answer></response>", "text outside the tags before <response>"},
      {"<response>so <answer>A</answer></response>", "text outside the tags before <answer>"},
      {"<response><answer>A</answer><answer>B</answer></response>", "<response> is not closed"},
      {"<response><answer>A</answer><location><ref>a</ref></location></response>", "<ref> without <box>"},
      {"<response><answer>A</answer><location>[1, 2, 3, 4]</location></response>",
       "text outside the tags before </location>"},
      {"<response><answer>A</answer><location><box>[1, 2, 3, 4]</box></response>", "<location> is not closed"},
      {"<response><answer>A</answer><location><box>[1, 2, 3, 4]", "<box> is not closed"},
      {"<response><location><box>[1, 2, 3, 4]</box></location><answer>A</answer></response>",
       "<answer> comes too late"},
      {"<think>a<response><answer>A</answer></response>", "<think> is not closed"},
      {"a</think><response><answer>A</answer></response>", "</think> without <think>"},
      {"hm <think>a</think><response><answer>A</answer></response>", "text before <think>"},
      {"<think>a</think> so <response><answer>A</answer></response>", "text outside the tags before <response>"},
      {"<response><answer><box>A</box></answer></response>", "a tag inside <answer>"},
  };
  for (const auto& [text, problem] : cases) {
    const auto parsed = parse(text);
    EXPECT_FALSE(parsed.complete) << text;
    EXPECT_EQ(parsed.problem, problem) << text;
  }
}

TEST(ParseResponse, WhatCanBeReadOfIncompleteTextIsRead) {
  EXPECT_EQ(parse("<answer>A</answer>").answer, "A");
  EXPECT_FALSE(parse("<response><answer>A").has_answer) << "a cut-off answer is no answer";
  EXPECT_EQ(parse("<think>so far (region [1, 2, 3, 4]) and").think, "so far (region [1, 2, 3, 4]) and");
  EXPECT_THAT(parse("<think>the heart (region [1, 2, 3, 4]) and").think_regions,
              ElementsAre(Region{"heart", box(1, 2, 3, 4)}));
  EXPECT_EQ(parse("<think>a<response><answer>A</answer></response>").answer, "A");
  EXPECT_THAT(parse("<response><answer>A</answer><location><ref>a</ref><box>[1, 2, 3, 4]").regions,
              ElementsAre(Region{"a", box(1, 2, 3, 4)}));
  EXPECT_THAT(parse("<response><answer>A</answer><location><ref>a</ref><box>[1, 2, 3").regions, IsEmpty());
}

TEST(ParseResponse, EveryPrefixIsIncompleteAndSafe) {
  const std::string_view full = kFull;
  for (std::size_t length = 0; length < full.size(); ++length) {
    const auto parsed = parse(full.substr(0, length), true);
    EXPECT_FALSE(parsed.complete) << full.substr(0, length);
    EXPECT_FALSE(parsed.problem.empty());
  }
  EXPECT_TRUE(parse(full, true).complete);
}

TEST(ParseResponse, ThinkRegionNames) {
  const auto name = [](const std::string& think) {
    const auto parsed = parse("<think>" + think + "</think><response><answer>A</answer></response>");
    EXPECT_TRUE(parsed.complete);
    EXPECT_EQ(parsed.think_regions.size(), 1u) << think;
    return parsed.think_regions.empty() ? "" : parsed.think_regions[0].name;
  };
  EXPECT_EQ(name("the right lower zone (region [1, 2, 3, 4]) shows"), "right lower zone");
  EXPECT_EQ(name("There is an opacity in the left mid lung zone (region [1, 2, 3, 4])."), "left mid lung zone");
  EXPECT_EQ(name("No effusion, bilateral lungs (regions: [1, 2, 3, 4])"), "bilateral lungs");
  EXPECT_EQ(name("look at the pacemaker pocket (region [1, 2, 3, 4])"), "pacemaker pocket");
  EXPECT_EQ(name("The heart [1, 2, 3, 4] is large"), "heart");
  EXPECT_EQ(name("[1, 2, 3, 4]"), "");
}

TEST(ParseResponse, ThinkLists) {
  const auto parsed = parse(
      "<think>the lungs (region [[1, 2, 3, 4], [5, 6, 7, 8]]) are clear [see note], but [9, 9, 1, 1] is odd; "
      "item [1]</think><response><answer>A</answer></response>");
  EXPECT_THAT(parsed.think_regions, ElementsAre(Region{"lungs", box(1, 2, 3, 4)}, Region{"lungs", box(5, 6, 7, 8)}));
  EXPECT_THAT(parsed.bad_think_boxes, ElementsAre("[9, 9, 1, 1]", "[1]"));
  EXPECT_THAT(parsed.bad_boxes, IsEmpty());
}

// A build of the kind that users run: no sanitizer, no debugging build.
constexpr bool is_optimized() {
#if defined(__OPTIMIZE__) && !defined(__SANITIZE_ADDRESS__)
  return true;
#else
  return false;
#endif
}

TEST(ParseResponse, HostileTextIsLinear) {
  double slowest = 0;
  const std::vector<std::string> parts = {"[",
                                          "]",
                                          "[]",
                                          "[1",
                                          "[[1,2,3,4]",
                                          "<",
                                          "<think>",
                                          "</think>",
                                          "<box>",
                                          "<box>[1,2,3,4]</box>",
                                          "<ref>",
                                          "<answer>",
                                          "<response>",
                                          "<location>",
                                          "9",
                                          "the a b (region [1,2,3,4]) ",
                                          "region",
                                          " ",
                                          "(",
                                          "\xFF",
                                          std::string(1, '\0')};
  const std::vector<std::pair<std::string, std::string>> frames = {
      {"", ""},
      {"<think>", "</think><response><answer>A</answer></response>"},
      {"<response><answer>A</answer><location><box>", "</box></location></response>"},
      {"<response><answer>", "</answer></response>"}};
  for (const std::string& part : parts) {
    for (const auto& [before, after] : frames) {
      std::string text = before;
      while (text.size() < 100'000) text += part;
      text += after;
      // Processor time, the shortest of three, so that a busy machine counts little; quadratic work would take seconds.
      double seconds = 1e9;
      for (int round = 0; round < 3; ++round) {
        const std::clock_t start = std::clock();
        parse(text);
        seconds = std::min(seconds, static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC);
      }
      slowest = std::max(slowest, seconds);
      EXPECT_LT(seconds, 0.25) << before << part << after;
      const bool brackets = part.find_first_not_of("[]") == std::string::npos;
      if (brackets && is_optimized()) EXPECT_LT(seconds, 0.010) << before << part << after;
      convert_inline_boxes(text, ImageGeometry({10, 20}), kFrame, BoxFrame::letterbox(224));
    }
  }
  RecordProperty("slowest_milliseconds", fmt::format("{:.2f}", 1000 * slowest));
}

TEST(ParseResponse, RandomPiecesNeverThrow) {
  const std::vector<std::string> pieces = {
      "<think>",      "</think>",    "<response>", "</response>", "<answer>", "</answer>",
      "<location>",   "</location>", "<ref>",      "</ref>",      "<box>",    "</box>",
      "[1, 2, 3, 4]", "[",           "]",          "A",           " ",        "text (region [5, 6, 7, 8])"};
  RandomStream random({31});
  for (int round = 0; round < 5000; ++round) {
    std::string text;
    for (std::int64_t i = random.between(0, 25); i > 0; --i) text += pieces[random.below(pieces.size())];
    ParsedResponse parsed;
    ASSERT_NO_THROW(parsed = parse(text, round % 2 == 0)) << text;
    EXPECT_EQ(parsed.complete, parsed.problem.empty());
    if (parsed.complete) {
      EXPECT_TRUE(parsed.has_answer);
      EXPECT_FALSE(parsed.answer.empty());
    }
    for (const Region& region : parsed.regions) EXPECT_TRUE(region.box.is_valid());
  }
}

TEST(FormatResponse, IsReadBackEqual) {
  RandomStream random({32});
  for (int round = 0; round < 200; ++round) {
    std::vector<Region> regions;
    for (std::int64_t i = random.between(0, 4); i > 0; --i) {
      const auto x = static_cast<double>(random.between(0, 300)), y = static_cast<double>(random.between(0, 300));
      regions.push_back({random.chance(0.5) ? "left lung" : "trachea",
                         box(x, y, x + static_cast<double>(random.between(1, 36)), y + 5)});
    }
    const auto parsed = parse(format_response("A, C", regions));
    EXPECT_TRUE(parsed.complete) << parsed.problem;
    EXPECT_EQ(parsed.answer, "A, C");
    EXPECT_EQ(parsed.regions, regions);
  }
}

TEST(FormatResponse, IsTheReleasesText) {
  EXPECT_EQ(format_response("A", {{"left lung", box(1, 2, 3, 4)}}),
            "<response><answer>A</answer><location><ref>left lung</ref><box>[1, 2, 3, 4]</box></location></response>");
  EXPECT_EQ(format_response("A", {}), "<response><answer>A</answer></response>");
  EXPECT_EQ(format_box(box(0.4, -0.4, 2.6, 3)), "[0, 0, 3, 3]");
  EXPECT_EQ(format_box({0.25, 0.5, 0.75, 1, BoxFrame::unit()}), "[0.2500, 0.5000, 0.7500, 1.0000]");
}

TEST(ConvertInlineBoxes, RewritesBoxesAndNothingElse) {
  const ImageGeometry geometry({3056, 2544});
  const std::string text = "the heart (region [30, 60, 150, 300]) [see 2], [1, 2], [9, 9, 1, 1] and [[3, 6, 9, 12]].";
  EXPECT_EQ(convert_inline_boxes(text, geometry, kFrame, BoxFrame::letterbox(224)),
            "the heart (region [20, 40, 100, 200]) [see 2], [1, 2], [9, 9, 1, 1] and [[2, 4, 6, 8]].");
  EXPECT_EQ(convert_inline_boxes("no box", geometry, kFrame, BoxFrame::unit()), "no box");
  EXPECT_EQ(convert_inline_boxes("[0, 0, 900, 900]", geometry, kFrame, kFrame), "[0, 0, 336, 336]") << "clipped";
}

TEST(ConvertInlineBoxes, ThereAndBackStaysNear) {
  const ImageGeometry geometry({2544, 3056});
  RandomStream random({33});
  for (int i = 0; i < 200; ++i) {
    const auto x = static_cast<double>(random.between(30, 200)), y = static_cast<double>(random.between(0, 200));
    const Box start = box(x, y, x + 40, y + 60);
    const auto there = convert_inline_boxes(format_box(start), geometry, kFrame, BoxFrame::thousand());
    const auto back = convert_inline_boxes(there, geometry, BoxFrame::thousand(), kFrame);
    EXPECT_EQ(back, format_box(start)) << there;
  }
}

}  // namespace
}  // namespace thinkvg::grounding
