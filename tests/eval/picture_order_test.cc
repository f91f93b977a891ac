#include "eval/picture_order.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>

namespace thinkvg::eval {
namespace {

std::string ordered(const std::vector<std::pair<std::string, std::string>>& questions) {
  std::vector<data::Sample> samples;
  for (const auto& [id, image] : questions) {
    data::Sample& sample = samples.emplace_back();
    sample.id = id;
    sample.image = image;
  }
  std::string ids;
  for (const data::Sample& sample : by_picture(samples)) ids += sample.id;
  return ids;
}

TEST(PictureOrder, QuestionsAboutOnePictureStandTogether) {
  EXPECT_EQ(ordered({{"1", "b"}, {"2", "a"}, {"3", "b"}, {"4", "c"}, {"5", "a"}, {"6", "b"}}), "136254");
  EXPECT_EQ(ordered({{"1", "a"}, {"2", "b"}, {"3", "c"}}), "123");
  EXPECT_EQ(ordered({}), "");
}

}  // namespace
}  // namespace thinkvg::eval
