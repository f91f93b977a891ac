#include "thinkvg/data/image_size.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>

#include "thinkvg/core/random.h"
#include "thinkvg/image/picture.h"

namespace thinkvg::data {
namespace {

using grounding::ImageSize;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

image::Picture make_picture(std::int64_t width, std::int64_t height) {
  image::Picture picture{width, height, {}};
  picture.pixels.assign(static_cast<std::size_t>(width * height * 3), 90);
  return picture;
}

std::string big_endian(std::uint32_t value, int count) {
  std::string bytes;
  for (int i = count - 1; i >= 0; --i) bytes += static_cast<char>(value >> (8 * i) & 0xFF);
  return bytes;
}

std::string little_endian(std::uint32_t value, int count) {
  std::string bytes = big_endian(value, count);
  std::reverse(bytes.begin(), bytes.end());
  return bytes;
}

// A TIFF block with one directory: some other entry, then the orientation.
std::string tiff_with_orientation(int orientation, bool little) {
  const auto number = [&](std::uint32_t value, int count) {
    return little ? little_endian(value, count) : big_endian(value, count);
  };
  const auto entry = [&](std::uint32_t tag, std::uint32_t value) {
    return number(tag, 2) + number(3, 2) + number(1, 4) + number(value, 2) + number(0, 2);
  };
  return std::string(little ? "II" : "MM") + number(42, 2) + number(8, 4) + number(2, 2) + entry(0x0106, 2) +
         entry(0x0112, static_cast<std::uint32_t>(orientation)) + number(0, 4);
}

std::string jpeg_with_orientation(const std::string& jpeg, int orientation, bool little) {
  const std::string body = std::string("Exif\0\0", 6) + tiff_with_orientation(orientation, little);
  return jpeg.substr(0, 2) + "\xFF\xE1" + big_endian(static_cast<std::uint32_t>(body.size() + 2), 2) + body +
         jpeg.substr(2);
}

TEST(ImageSize, JpegAndPng) {
  for (const ImageSize size : {ImageSize{1, 1}, ImageSize{336, 224}, ImageSize{17, 300}, ImageSize{1000, 3}}) {
    const auto picture = make_picture(size.width, size.height);
    EXPECT_EQ(parse_image_size(image::encode_jpeg(picture), "x.jpg"), size);
    EXPECT_EQ(parse_image_size(image::encode_png(picture), "x.png"), size);
  }
}

TEST(ImageSize, OrientationAgreesWithThePictureReader) {
  const std::string jpeg = image::encode_jpeg(make_picture(40, 24));
  for (int orientation = 1; orientation <= 8; ++orientation) {
    for (bool little : {false, true}) {
      const std::string turned = jpeg_with_orientation(jpeg, orientation, little);
      const auto read = image::decode_picture(turned, "x.jpg");
      EXPECT_EQ(parse_image_size(turned, "x.jpg"), (ImageSize{read.width, read.height})) << orientation;
      EXPECT_EQ(read.width, orientation >= 5 ? 24 : 40);
    }
  }
  EXPECT_EQ(parse_image_size(jpeg_with_orientation(jpeg, 77, true), "x.jpg"), (ImageSize{40, 24}));
}

TEST(ImageSize, ProgressiveFramesAndPaddingAreHeaders) {
  const std::string head("\xFF\xD8\xFF\xFF\xFF\xFE\0\4ab\xFF\xC2\0\x11\x08", 15);
  EXPECT_EQ(parse_image_size(head + big_endian(2544, 2) + big_endian(3056, 2) + std::string(20, '\3'), "x.jpg"),
            (ImageSize{3056, 2544}));
}

TEST(ImageSize, ReadsFiles) {
  const auto file = std::filesystem::path(testing::TempDir()) / "thinkvg_image_size_test.png";
  std::ofstream(file, std::ios::binary) << image::encode_png(make_picture(31, 7));
  EXPECT_EQ(read_image_size(file), (ImageSize{31, 7}));
  std::filesystem::remove(file);
  EXPECT_THAT([&] { read_image_size(file); }, ThrowsMessage<std::runtime_error>(HasSubstr(file.string())));
}

TEST(ImageSize, BadFilesAreNamed) {
  const std::string jpeg = image::encode_jpeg(make_picture(40, 24)), png = image::encode_png(make_picture(40, 24));
  for (const std::string& bad : {std::string(), std::string("hello"), jpeg.substr(0, 20), png.substr(0, 20),
                                 std::string("\xFF\xD8\xFF\xDA\0\4", 6), std::string("\xFF\xD8\xFF\xC0\0\2\x08", 7)}) {
    EXPECT_THAT([&] { parse_image_size(bad, "bad.jpg"); }, ThrowsMessage<std::runtime_error>(HasSubstr("bad.jpg")));
  }
}

TEST(ImageSize, DamagedHeadersNeverHang) {
  RandomStream random({61});
  const std::string jpeg = jpeg_with_orientation(image::encode_jpeg(make_picture(40, 24)), 6, true);
  const std::string png = image::encode_png(make_picture(40, 24));
  for (int round = 0; round < 3000; ++round) {
    std::string bytes = round % 2 == 0 ? jpeg : png;
    for (int i = 0; i < 4; ++i)
      bytes[random.below(std::min<std::size_t>(bytes.size(), 200))] = static_cast<char>(random.below(256));
    try {
      const ImageSize size = parse_image_size(bytes, "x");
      EXPECT_GT(size.width, 0);
      EXPECT_GT(size.height, 0);
    } catch (const std::runtime_error&) {
    }
  }
}

}  // namespace
}  // namespace thinkvg::data
