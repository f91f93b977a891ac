#include "thinkvg/image/dicom.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <numeric>

#include "thinkvg/core/files.h"
#include "thinkvg/core/json.h"
#include "thinkvg/core/random.h"
#include "thinkvg/image/picture.h"
#include "thinkvg/image/picture_info.h"

namespace thinkvg::image {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

fs::path dicom_folder() { return fs::path(THINKVG_TEST_DATA) / "dicom"; }

std::string sha256_of(const void* data, std::size_t size) {
  return sha256_text({static_cast<const char*>(data), size});
}

enum class Equality { to_the_bit, close };

void compare_values(const DicomValues& got, const Json& expected, const std::string& place, Equality equality) {
  const auto& values = got.values;
  ASSERT_FALSE(values.empty()) << place;
  const auto [least, largest] = std::minmax_element(values.begin(), values.end());
  const double scale = 1 + std::abs(expected["largest"].get<double>());
  EXPECT_NEAR(*least, expected["least"].get<double>(), 1e-9 * scale) << place;
  EXPECT_NEAR(*largest, expected["largest"].get<double>(), 1e-9 * scale) << place;
  const auto step = expected["step"].get<std::size_t>();
  std::size_t at = 0;
  for (const Json& value : expected["values"]) {
    ASSERT_LT(at, values.size()) << place;
    ASSERT_NEAR(values[at], value.get<double>(), 1e-9 * scale) << place << ", value " << at;
    at += step;
  }
  if (equality == Equality::to_the_bit)
    EXPECT_EQ(sha256_of(values.data(), values.size() * sizeof(double)), expected["sha256"].get<std::string>()) << place;
}

// Decoders of lossy JPEG with 12 bits differ in the rounding of their transform.
bool is_lossy_12(const std::string& name) { return name == "JPGExtended.dcm"; }

void compare_file(const fs::path& file, const Json& expected) {
  const std::string name = file.filename().string();
  const std::string bytes = read_file(file);
  const auto width = expected["width"].get<std::int64_t>(), height = expected["height"].get<std::int64_t>();
  EXPECT_EQ(read_picture_info(file).shown(), (grounding::ImageSize{width, height})) << name;
  EXPECT_EQ(parse_picture_info(bytes, name).format, PictureFormat::dicom) << name;
  const DicomValues stored = read_dicom_values(bytes, name, DicomStage::stored);
  if (is_lossy_12(name)) {
    std::size_t at = 0;
    for (const Json& value : expected["stored"]["values"]) {
      EXPECT_NEAR(stored.values.at(at), value.get<double>(), 1.0) << name << ", value " << at;
      at += expected["stored"]["step"].get<std::size_t>();
    }
    return;
  }
  EXPECT_EQ(stored.width, width) << name;
  EXPECT_EQ(stored.height, height) << name;
  compare_values(stored, expected["stored"], name + ", stored", Equality::to_the_bit);
  if (stored.channels == 3) {
    // pydicom's pixels are those of the picture.
    const Picture picture = read_picture(file);
    ASSERT_EQ(picture.pixels.size(), stored.values.size()) << name;
    for (std::size_t i = 0; i < picture.pixels.size(); ++i) ASSERT_EQ(picture.pixels[i], stored.values[i]) << name;
    return;
  }
  EXPECT_EQ(stored.photometric, expected["photometric"].get<std::string>()) << name;
  compare_values(read_dicom_values(bytes, name, DicomStage::modality), expected["modality"], name + ", modality",
                 Equality::to_the_bit);
  for (std::size_t i = 0; i < expected["voi"].size(); ++i) {
    ReadOptions options;
    options.dicom_window = static_cast<std::int64_t>(i);
    // The C library's exp and numpy's differ in the last bit.
    compare_values(read_dicom_values(bytes, name, DicomStage::voi, options), expected["voi"][i],
                   name + ", window " + std::to_string(i),
                   name == "sigmoid.dcm" ? Equality::close : Equality::to_the_bit);
  }
  for (const auto& [rendering, sha256] : expected["eight"].items()) {
    ReadOptions options;
    options.dicom = rendering;
    const Raster raster = decode_raster(bytes, name, options);
    EXPECT_EQ(raster.channels, 1) << name;
    EXPECT_EQ(sha256_of(raster.pixels.data(), raster.pixels.size()), sha256.get<std::string>())
        << name << " as " << rendering;
  }
}

TEST(DicomParity, EqualsPydicom) {
  const Json expected = read_json_file(dicom_folder() / "made.json");
  EXPECT_GE(expected.size(), 33u);
  for (const auto& [name, entry] : expected.items()) compare_file(dicom_folder() / name, entry);
}

TEST(DicomParity, EqualsPydicomOnPublishedFiles) {
  const char* folder = THINKVG_TEST_WHEELS;
  if (!fs::is_directory(fs::path(folder) / "pydicom")) {
    GTEST_SKIP() << folder << " does not hold the files of third_party/test-wheels.txt; third_party/install.sh does";
  }
  const Json expected = read_json_file(dicom_folder() / "published.json");
  EXPECT_GE(expected.size(), 40u);
  for (const auto& [name, entry] : expected.items()) compare_file(fs::path(folder) / name, entry);
}

std::string failure_of(const std::string& bytes, const ReadOptions& options = {}) {
  try {
    decode_raster(bytes, "chest.dcm", options);
  } catch (const std::exception& error) {
    return error.what();
  }
  return "no failure";
}

TEST(Dicom, BoneIsBrightWhateverThePhotometricInterpretation) {
  const std::string bytes = read_file(dicom_folder() / "unsigned_12.dcm");
  ASSERT_EQ(read_dicom_values(bytes, "x", DicomStage::stored).photometric, "MONOCHROME1");
  std::string other = bytes;
  other.replace(other.find("MONOCHROME1"), 11, "MONOCHROME2");
  const Raster inverted = decode_raster(bytes, "x"), plain = decode_raster(other, "x");
  for (std::size_t i = 0; i < plain.pixels.size(); ++i) ASSERT_EQ(inverted.pixels[i], 255 - plain.pixels[i]);
}

TEST(Dicom, WrongWindowsAreNamed) {
  const std::string bytes = read_file(dicom_folder() / "two_windows.dcm");
  ReadOptions second;
  second.dicom_window = 1;
  EXPECT_NE(decode_raster(bytes, "x", second).pixels, decode_raster(bytes, "x").pixels);
  second.dicom_window = 2;
  EXPECT_THAT(failure_of(bytes, second), HasSubstr("dicom_window is 2, but the file has 2"));
}

TEST(Dicom, BombsCutAndDamagedFilesAreErrors) {
  const std::string bytes = read_file(dicom_folder() / "unsigned_12.dcm");
  ReadOptions few;
  few.max_pixels = 1000;
  EXPECT_THAT(failure_of(bytes, few), HasSubstr("chest.dcm: 51 x 40 pixels are more than max_pixels = 1000"));
  EXPECT_THAT(failure_of(bytes.substr(0, bytes.size() - 500)), HasSubstr("cut off"));
  EXPECT_THAT(failure_of(bytes.substr(0, 200)), HasSubstr("chest.dcm"));
  for (const char* name : {"rle_12.dcm", "jpeg_ls_12.dcm", "jpeg_2000_12.dcm", "deflated.dcm"}) {
    const std::string compressed = read_file(dicom_folder() / name);
    EXPECT_NE(failure_of(compressed.substr(0, compressed.size() - 600)), "no failure") << name;
  }
}

// Some of what GDCM would stop the process for.
TEST(Dicom, OtherKindsAreNamed) {
  std::string bytes = read_file(dicom_folder() / "unsigned_12.dcm");
  const std::string allocated("\x28\0\0\1US\2\0\x10\0", 10);
  const std::size_t at = bytes.find(allocated);
  ASSERT_NE(at, std::string::npos);
  bytes[at + 8] = 32;
  EXPECT_THAT(failure_of(bytes), HasSubstr("32 allocated bits; expected 8 or 16"));
  EXPECT_THAT(failure_of(std::string(128, '\0') + "DICM"), HasSubstr("does not name its transfer syntax"));
}

TEST(Dicom, RandomDamageNeverCrashes) {
  RandomStream random({78});
  ReadOptions options;
  options.max_pixels = 1 << 20;
  for (const char* name : {"unsigned_12.dcm", "rle_12.dcm", "voi_lut.dcm", "jpeg_ls_12.dcm"}) {
    const std::string whole = read_file(dicom_folder() / name);
    for (int round = 0; round < 100; ++round) {
      std::string bytes = whole;
      for (int i = 0; i < 3; ++i) bytes[132 + random.below(bytes.size() - 132)] = static_cast<char>(random.below(256));
      try {
        const Raster raster = decode_raster(bytes, "x", options);
        EXPECT_EQ(raster.pixels.size(), static_cast<std::size_t>(raster.width * raster.height * raster.channels));
      } catch (const std::exception&) {
      }
    }
  }
}

}  // namespace
}  // namespace thinkvg::image
