#include "thinkvg/image/raster.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <opencv2/imgcodecs.hpp>

#include "thinkvg/core/files.h"
#include "thinkvg/core/json.h"
#include "thinkvg/core/random.h"
#include "thinkvg/image/picture.h"
#include "thinkvg/image/picture_info.h"

namespace thinkvg::image {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

fs::path picture_folder() { return fs::path(THINKVG_TEST_DATA) / "pictures"; }

std::string bytes_of(const std::string& name) { return read_file(picture_folder() / name); }

std::string failure_of(std::string_view bytes, const ReadOptions& options = {}) {
  try {
    decode_raster(bytes, "chest.jpg", options);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "no failure";
}

std::string sha256_of(const Picture& picture) {
  return sha256_text({reinterpret_cast<const char*>(picture.pixels.data()), picture.pixels.size()});
}

std::string big_endian(std::uint32_t value) {
  std::string bytes;
  for (int shift = 24; shift >= 0; shift -= 8) bytes += static_cast<char>(value >> shift & 0xFF);
  return bytes;
}

TEST(RasterParity, PixelsEqualThoseOfPillow) {
  const Json expected = read_json_file(picture_folder() / "expected.json");
  EXPECT_GE(expected.size(), 25u);
  for (const auto& [name, entry] : expected.items()) {
    const Picture picture = read_picture(picture_folder() / name);
    EXPECT_EQ(picture.width, entry["width"].get<std::int64_t>()) << name;
    EXPECT_EQ(picture.height, entry["height"].get<std::int64_t>()) << name;
    EXPECT_EQ(sha256_of(picture), entry["sha256"].get<std::string>()) << name;
    const grounding::ImageSize shown = read_picture_info(picture_folder() / name).shown();
    EXPECT_EQ(shown, (grounding::ImageSize{picture.width, picture.height})) << name;
  }
}

TEST(Raster, GreyStaysOneChannel) {
  for (const char* name : {"grey.jpg", "grey.png", "grey_16.png", "grey_alpha.png", "one_bit.png", "one_pixel.jpg"})
    EXPECT_EQ(read_raster(picture_folder() / name).channels, 1) << name;
  for (const char* name : {"colour_420.jpg", "cmyk.jpg", "rgba.png", "palette.png"})
    EXPECT_EQ(read_raster(picture_folder() / name).channels, 3) << name;
  const Raster grey = read_raster(picture_folder() / "grey.png");
  const Picture picture = to_picture(grey);
  EXPECT_EQ(to_raster(picture).pixels, grey.pixels);
  const Raster colour = read_raster(picture_folder() / "colour.png");
  EXPECT_EQ(to_raster(to_picture(colour)).pixels, colour.pixels);
}

// Boxes stay on what they mark: the geometry is that of the shown picture. The bright rectangle of the scene lies at
// x 5..25, y 10..20 of 50 x 34 stored pixels; orientation 6 shows it at x 34 - 20 .. 34 - 10, y 5..25.
TEST(Raster, BoxesFitTheShownPicture) {
  for (const char* name : {"exif_6.jpg", "exif_6.png"}) {
    const Picture picture = read_picture(picture_folder() / name);
    ASSERT_EQ(picture.geometry().original(), (grounding::ImageSize{34, 50})) << name;
    const grounding::Box box{14.0 / 34, 5.0 / 50, 24.0 / 34, 25.0 / 50, grounding::BoxFrame::unit()};
    const grounding::Box pixels = picture.geometry().convert(box, grounding::BoxFrame::original());
    double inside = 0, outside = 0;
    std::int64_t num_inside = 0;
    for (std::int64_t y = 0; y < picture.height; ++y) {
      for (std::int64_t x = 0; x < picture.width; ++x) {
        const bool in = static_cast<double>(x) + 0.5 > pixels.x1 && static_cast<double>(x) + 0.5 < pixels.x2 &&
                        static_cast<double>(y) + 0.5 > pixels.y1 && static_cast<double>(y) + 0.5 < pixels.y2;
        (in ? inside : outside) += picture.pixels[static_cast<std::size_t>((y * picture.width + x) * 3)];
        num_inside += in ? 1 : 0;
      }
    }
    ASSERT_EQ(num_inside, 200) << name;
    EXPECT_GT(inside / 200, 225) << name;
    EXPECT_LT(outside / static_cast<double>(picture.width * picture.height - 200), 150) << name;
  }
}

TEST(Raster, ABombIsRefusedOnItsHeader) {
  // 30,000 x 40,000 pixels of one value make a PNG of 3 kB here: only the header is honest, decoding would fail first.
  std::string png = bytes_of("grey.png");
  png.replace(16, 8, big_endian(30000) + big_endian(40000));
  EXPECT_THAT(failure_of(png),
              AllOf(HasSubstr("chest.jpg: 30000 x 40000 pixels"), HasSubstr("max_pixels = 178956970")));
  std::string huge = bytes_of("grey.png");
  huge.replace(16, 8, big_endian(0xFFFFFFFF) + big_endian(0xFFFFFFFF));
  EXPECT_THAT(failure_of(huge), HasSubstr("max_pixels"));
  std::string jpeg = bytes_of("grey.jpg");
  const std::size_t frame = jpeg.find("\xff\xc0");
  ASSERT_NE(frame, std::string::npos);
  jpeg.replace(frame + 5, 4, "\xff\xff\xff\xff");
  EXPECT_THAT(failure_of(jpeg), HasSubstr("65535 x 65535 pixels"));

  ReadOptions few;
  few.max_pixels = 50 * 34 - 1;
  EXPECT_THAT(failure_of(bytes_of("grey.jpg"), few), HasSubstr("max_pixels = 1699"));
  few.max_pixels = 50 * 34;
  EXPECT_EQ(failure_of(bytes_of("grey.jpg"), few), "no failure");
}

// A progressive file may ask for thousands of passes: 600 more copies of its last scan.
TEST(Raster, EndlessScansAreRefused) {
  const std::string jpeg = bytes_of("grey_progressive.jpg");
  const std::size_t scan = jpeg.rfind("\xff\xda");
  ASSERT_NE(scan, std::string::npos);
  const std::string last = jpeg.substr(scan, jpeg.size() - 2 - scan);
  std::string endless = jpeg.substr(0, jpeg.size() - 2);
  for (int i = 0; i < 600; ++i) endless += last;
  endless += jpeg.substr(jpeg.size() - 2);
  EXPECT_THAT(failure_of(endless), HasSubstr("damaged"));
}

TEST(Raster, EveryCutFileIsNoticed) {
  for (const char* name : {"grey.jpg", "colour_420.jpg", "grey_progressive.jpg", "grey.png", "interlaced.png"}) {
    const std::string whole = bytes_of(name);
    for (std::size_t size = 0; size < whole.size(); size += 1 + whole.size() / 97) {
      // PNG's last 4 bytes are a checksum of nothing; JPEG's last 2 are the end mark.
      EXPECT_NE(failure_of(std::string_view(whole).substr(0, size)), "no failure") << name << " cut to " << size;
    }
    EXPECT_THAT(failure_of(std::string_view(whole).substr(0, whole.size() - 20)), HasSubstr("cut off")) << name;
  }
}

TEST(Raster, DamageInTheMiddleIsNoticed) {
  std::string png = bytes_of("colour.png");
  png[png.size() / 2] = static_cast<char>(png[png.size() / 2] ^ 0x55);
  EXPECT_THAT(failure_of(png), HasSubstr("damaged"));
  std::string jpeg = bytes_of("grey.jpg");
  for (std::size_t i = jpeg.size() - 300; i < jpeg.size() - 200; ++i) jpeg[i] = static_cast<char>(0xFF);
  EXPECT_THAT(failure_of(jpeg), ::testing::AnyOf(HasSubstr("damaged"), HasSubstr("cut off")));
}

TEST(Raster, RandomDamageNeverCrashes) {
  RandomStream random({77});
  std::vector<std::string> files;
  for (const auto& entry : fs::directory_iterator(picture_folder()))
    if (entry.path().extension() != ".json") files.push_back(read_file(entry.path()));
  ReadOptions options;
  options.max_pixels = 1 << 20;
  int num_decoded = 0;
  for (int round = 0; round < 3000; ++round) {
    std::string bytes = files[random.below(files.size())];
    const std::uint64_t changes = 1 + random.below(8);
    for (std::uint64_t i = 0; i < changes; ++i)
      bytes[random.below(bytes.size())] = static_cast<char>(random.below(256));
    try {
      const Raster raster = decode_raster(bytes, "x", options);
      EXPECT_EQ(raster.pixels.size(), static_cast<std::size_t>(raster.width * raster.height * raster.channels));
      ++num_decoded;
    } catch (const std::runtime_error&) {
    }
  }
  EXPECT_GT(num_decoded, 50);
}

TEST(Raster, AReducedJpegCoversWhatIsNeeded) {
  Picture picture{200, 120, {}};
  for (std::int64_t i = 0; i < 200 * 120; ++i)
    picture.pixels.insert(picture.pixels.end(), 3, static_cast<std::uint8_t>(i % 200));
  const std::string jpeg = encode_jpeg(picture, 95), png = encode_png(picture);
  const auto size = [&](const std::string& bytes, std::int64_t width, std::int64_t height) {
    return decode_raster_reduced(bytes, "x", {width, height}).size();
  };
  EXPECT_EQ(size(jpeg, 200, 120), (grounding::ImageSize{200, 120}));
  EXPECT_EQ(size(jpeg, 101, 60), (grounding::ImageSize{200, 120}));
  EXPECT_EQ(size(jpeg, 100, 60), (grounding::ImageSize{100, 60}));
  EXPECT_EQ(size(jpeg, 28, 28), (grounding::ImageSize{50, 30}));
  EXPECT_EQ(size(jpeg, 1, 1), (grounding::ImageSize{25, 15}));
  EXPECT_EQ(size(png, 1, 1), (grounding::ImageSize{200, 120}));
}

TEST(ReadOptions, AreChecked) {
  ReadOptions options;
  options.dicom = "nice";
  EXPECT_THROW(decode_raster(bytes_of("grey.jpg"), "x", options), std::invalid_argument);
  options = {};
  options.max_pixels = 0;
  EXPECT_THROW(options.check(), std::invalid_argument);
  options = {};
  options.dicom_window = -1;
  EXPECT_THROW(options.check(), std::invalid_argument);
}

}  // namespace
}  // namespace thinkvg::image
