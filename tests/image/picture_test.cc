#include "thinkvg/image/picture.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <opencv2/imgcodecs.hpp>

#include "thinkvg/core/files.h"

namespace thinkvg::image {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

std::array<int, 3> pixel(const Picture& picture, std::int64_t x, std::int64_t y) {
  const std::uint8_t* p = picture.pixels.data() + (y * picture.width + x) * 3;
  return {p[0], p[1], p[2]};
}

// Red grows with x, green with y, blue is fixed.
Picture gradient(std::int64_t width, std::int64_t height) {
  Picture picture{width, height, {}};
  for (std::int64_t y = 0; y < height; ++y) {
    for (std::int64_t x = 0; x < width; ++x) {
      picture.pixels.push_back(static_cast<std::uint8_t>(x * 255 / std::max<std::int64_t>(1, width - 1)));
      picture.pixels.push_back(static_cast<std::uint8_t>(y * 255 / std::max<std::int64_t>(1, height - 1)));
      picture.pixels.push_back(40);
    }
  }
  return picture;
}

std::string encoded(const char* extension, const cv::Mat& mat) {
  std::vector<std::uint8_t> bytes;
  cv::imencode(extension, mat, bytes);
  return {bytes.begin(), bytes.end()};
}

// The same JPEG with an EXIF segment that says how it is to be turned.
std::string with_orientation(const std::string& jpeg, char orientation) {
  std::string exif(
      "\xff\xe1\x00\x22"
      "Exif\0\0"
      "II*\0\x08\0\0\0"
      "\x01\0"
      "\x12\x01\x03\0\x01\0\0\0",
      4 + 6 + 8 + 2 + 8);
  exif += orientation;
  exif += std::string(
      "\0\0\0"
      "\0\0\0\0",
      7);
  return jpeg.substr(0, 2) + exif + jpeg.substr(2);
}

std::string failure_of(std::string_view bytes) {
  try {
    decode_picture(bytes, "chest.jpg");
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "no failure";
}

TEST(Picture, PngRoundTripKeepsEveryPixel) {
  const Picture picture = gradient(17, 9);
  const Picture read = decode_picture(encode_png(picture), "x");
  EXPECT_EQ(read.width, 17);
  EXPECT_EQ(read.height, 9);
  EXPECT_EQ(read.pixels, picture.pixels);
}

TEST(Picture, ReadsASinglePixel) {
  const Picture read = decode_picture(encode_png({1, 1, {10, 200, 30}}), "x");
  EXPECT_EQ(pixel(read, 0, 0), (std::array<int, 3>{10, 200, 30}));
}

TEST(Picture, GreyBecomesRgbAndIsStoredGrey) {
  cv::Mat grey(2, 3, CV_8U, cv::Scalar(0));
  grey.at<std::uint8_t>(1, 2) = 77;
  const Picture read = decode_picture(encoded(".png", grey), "x");
  EXPECT_EQ(pixel(read, 2, 1), (std::array<int, 3>{77, 77, 77}));
  const std::string again = encode_jpeg(read);
  const cv::Mat stored = cv::imdecode(std::vector<std::uint8_t>(again.begin(), again.end()), cv::IMREAD_UNCHANGED);
  EXPECT_EQ(stored.channels(), 1);
}

TEST(Picture, AlphaIsDrawnOverBlack) {
  const cv::Mat bgra(1, 1, CV_8UC4, cv::Scalar(50, 100, 200, 128));
  const Picture read = decode_picture(encoded(".png", bgra), "x");
  EXPECT_EQ(pixel(read, 0, 0), (std::array<int, 3>{100, 50, 25}));
}

TEST(Picture, SixteenBitsAreScaledToEight) {
  cv::Mat deep(1, 3, CV_16U);
  deep.at<std::uint16_t>(0, 0) = 0;
  deep.at<std::uint16_t>(0, 1) = 32896;  // 128 * 257
  deep.at<std::uint16_t>(0, 2) = 65535;
  const Picture read = decode_picture(encoded(".png", deep), "x");
  EXPECT_EQ(pixel(read, 0, 0)[0], 0);
  EXPECT_EQ(pixel(read, 1, 0)[0], 128);
  EXPECT_EQ(pixel(read, 2, 0)[0], 255);
}

TEST(Picture, ExifOrientationIsApplied) {
  const std::string jpeg = encode_jpeg(gradient(32, 16), 95);
  const Picture upright = decode_picture(with_orientation(jpeg, 1), "x");
  EXPECT_EQ(upright.width, 32);
  // 6: the stored picture is shown turned clockwise by a quarter, so its left bottom corner comes to the left top.
  const Picture turned = decode_picture(with_orientation(jpeg, 6), "x");
  ASSERT_EQ(turned.width, 16);
  ASSERT_EQ(turned.height, 32);
  EXPECT_LT(pixel(turned, 1, 1)[0], 30);
  EXPECT_GT(pixel(turned, 1, 1)[1], 225);
  EXPECT_EQ(turned.geometry().original(), (grounding::ImageSize{16, 32}));
}

TEST(Picture, BadDataIsNamed) {
  EXPECT_THAT(failure_of(""), HasSubstr("chest.jpg: expected a JPEG, PNG or DICOM picture, but it is empty"));
  EXPECT_THAT(failure_of("GIF89a"), HasSubstr("expected a JPEG, PNG or DICOM"));
  const std::string jpeg = encode_jpeg(gradient(64, 64));
  EXPECT_THAT(failure_of(std::string_view(jpeg).substr(0, jpeg.size() / 2)), HasSubstr("cut off"));
  const std::string png = encode_png(gradient(64, 64));
  EXPECT_THAT(failure_of(std::string_view(png).substr(0, png.size() / 2)), HasSubstr("cut off"));
  std::string damaged = png;
  for (std::size_t i = 40; i < 60; ++i) damaged[i] = 'x';
  EXPECT_THAT(failure_of(damaged), HasSubstr("damaged"));
  EXPECT_THROW(read_picture("/no/such/file.jpg"), std::runtime_error);
}

TEST(Picture, CutJpegWithAThumbnailIsNoticed) {
  const std::string jpeg = encode_jpeg(gradient(64, 64));
  const std::string thumbnail = encode_jpeg(gradient(4, 4));
  std::string segment("\xff\xe2", 2);
  segment += static_cast<char>((thumbnail.size() + 2) >> 8);
  segment += static_cast<char>((thumbnail.size() + 2) & 255);
  const std::string with_thumbnail = jpeg.substr(0, 2) + segment + thumbnail + jpeg.substr(2);
  EXPECT_EQ(decode_picture(with_thumbnail, "x").width, 64);
  EXPECT_THAT(failure_of(with_thumbnail.substr(0, with_thumbnail.size() - 20)), HasSubstr("cut off"));
}

TEST(Picture, WritesByExtension) {
  const fs::path folder = fs::path(::testing::TempDir()) / "thinkvg_picture_test";
  fs::create_directories(folder);
  write_picture(gradient(8, 6), folder / "a.png");
  write_picture(gradient(8, 6), folder / "a.JPG");
  EXPECT_EQ(read_picture(folder / "a.png").pixels, gradient(8, 6).pixels);
  EXPECT_EQ(read_picture(folder / "a.JPG").height, 6);
  EXPECT_THROW(write_picture(gradient(8, 6), folder / "a.gif"), std::invalid_argument);
  EXPECT_THROW(write_picture({8, 6, {1, 2, 3}}, folder / "b.png"), std::invalid_argument);
  EXPECT_FALSE(fs::exists(folder / "b.png"));
  fs::remove_all(folder);
}

TEST(Picture, PaddingIsCentredAsTheLetterboxFrameSays) {
  const Picture wide = pad_to_square(gradient(10, 4), 7);
  ASSERT_EQ(wide.height, 10);
  EXPECT_EQ(pixel(wide, 0, 2), (std::array<int, 3>{7, 7, 7}));
  EXPECT_EQ(pixel(wide, 0, 3), (std::array<int, 3>{0, 0, 40}));
  EXPECT_EQ(pixel(wide, 9, 6), (std::array<int, 3>{255, 255, 40}));
  EXPECT_EQ(pixel(wide, 0, 7), (std::array<int, 3>{7, 7, 7}));
  const Picture square = gradient(5, 5);
  EXPECT_EQ(pad_to_square(square).pixels, square.pixels);
}

TEST(Picture, ThumbnailAveragesAreas) {
  Picture halves{4, 2, {}};
  for (int i = 0; i < 8; ++i) halves.pixels.insert(halves.pixels.end(), 3, i % 2 == 0 ? 0 : 200);
  const Picture small = thumbnail(halves, 2);
  EXPECT_EQ(small.width, 2);
  EXPECT_EQ(small.height, 1);
  EXPECT_EQ(pixel(small, 0, 0)[0], 100);
  EXPECT_EQ(thumbnail(halves, 100).width, 4);
  EXPECT_EQ(thumbnail(gradient(300, 1), 10).height, 1);
}

TEST(Picture, DrawsBoxesOfAnyFrameAtTheirPlace) {
  const Picture black{100, 50, std::vector<std::uint8_t>(100 * 50 * 3, 0)};
  // The upper half of the letterbox square is 25 pixels of padding and 25 of the picture.
  const grounding::Box box{0.2, 0.5, 0.6, 0.7, grounding::BoxFrame::unit()};
  const Picture drawn = draw_boxes(black, {{box, "", 255, 0, 0, false}});
  EXPECT_EQ(pixel(drawn, 20, 30), (std::array<int, 3>{255, 0, 0}));
  EXPECT_EQ(pixel(drawn, 59, 30), (std::array<int, 3>{255, 0, 0}));
  EXPECT_EQ(pixel(drawn, 40, 30), (std::array<int, 3>{0, 0, 0}));
  const grounding::Box same{20, 50, 60, 60, grounding::BoxFrame::letterbox(100)};
  EXPECT_EQ(draw_boxes(black, {{same, "", 255, 0, 0, false}}).pixels, drawn.pixels);
  // Labels, dashes, boxes far outside and reversed ones leave the size as it is.
  const grounding::Box outside{-1e9, 40, 1e9, 2000, grounding::BoxFrame::original()};
  const grounding::Box reversed{9, 9, 3, 3, grounding::BoxFrame::original()};
  const Picture many = draw_boxes(black, {{outside, "no\xc3\xa4", 0, 255, 0, true}, {reversed, "x", 1, 2, 3, false}});
  EXPECT_EQ(many.pixels.size(), black.pixels.size());
  EXPECT_NE(many.pixels, black.pixels);
  EXPECT_EQ(draw_boxes(black, {{reversed, "x", 1, 2, 3, false}}).pixels, black.pixels);
}

}  // namespace
}  // namespace thinkvg::image
