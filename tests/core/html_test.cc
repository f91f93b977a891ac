#include "thinkvg/core/html.h"

#include <gtest/gtest.h>

namespace thinkvg {
namespace {

TEST(Html, EscapesWhatCouldEndATagOrAnAttribute) {
  EXPECT_EQ(html::escape("<b a=\"1\" c='2'>&\x01"), "&lt;b a=&quot;1&quot; c=&#39;2&#39;&gt;&amp;\xEF\xBF\xBD");
}

TEST(Html, Base64GivesThePublishedVectors) {
  EXPECT_EQ(html::base64(""), "");
  EXPECT_EQ(html::base64("f"), "Zg==");
  EXPECT_EQ(html::base64("fo"), "Zm8=");
  EXPECT_EQ(html::base64("foobar"), "Zm9vYmFy");
  EXPECT_EQ(html::base64(std::string_view("\xff\x00\xfe", 3)), "/wD+");
}

TEST(Html, ShortensBetweenCharacters) {
  EXPECT_EQ(html::shorten("short", 5), "short");
  // The cut at 3 would go through the second two-byte character.
  EXPECT_EQ(html::shorten("\u00e9\u00e9\u00e9", 3), "\u00e9 \u2026 (4 more bytes)");
}

TEST(Html, NumbersAndNamesForPeople) {
  EXPECT_EQ(html::spaced("single_choice"), "single choice");
  EXPECT_EQ(html::plural(1, "question"), "1 question");
  EXPECT_EQ(html::plural(1200, "question"), "1,200 questions");
  EXPECT_EQ(html::number(0), "0");
  EXPECT_EQ(html::number(0.012346), "0.01235");
  EXPECT_EQ(html::number(-2.5e-5), "-2.5e-05");
  EXPECT_EQ(html::number(12345), "12.35k");
}

}  // namespace
}  // namespace thinkvg
