#include "thinkvg/image/processor_geometry.h"

#include <gtest/gtest.h>

#include <stdexcept>

#include "thinkvg/core/json.h"

namespace thinkvg::image {
namespace {

using grounding::ImageSize;

ImageSize size_of(const Json& pair) { return {pair.at(0), pair.at(1)}; }
Crop crop_of(const Json& four) { return {four.at(0), four.at(1), four.at(2), four.at(3)}; }

TEST(ProcessorGeometryParity, IsThatOfTransformers) {
  const Json rows = read_json_file(std::filesystem::path(THINKVG_TEST_DATA) / "processor_geometry.json");
  int panned = 0;
  for (const Json& row : rows) {
    SCOPED_TRACE(row.dump());
    const ImageSize size = size_of(row.at("size"));
    const ImageSize resized = resize_shortest_edge(size, row.at("side"));
    EXPECT_EQ(resized, size_of(row.at("resized")));
    EXPECT_EQ(center_crop(resized, size_of(row.at("crop"))), crop_of(row.at("cropped")));
    const Json& options = row.at("options");
    const auto crops = pan_and_scan(size, {options.at(0), options.at(1), options.at(2)});
    std::vector<Crop> expected;
    for (const Json& crop : row.at("crops")) expected.push_back(crop_of(crop));
    EXPECT_EQ(crops, expected);
    if (!crops.empty()) ++panned;
  }
  EXPECT_GE(rows.size(), 200u);
  EXPECT_GE(panned, 50);
}

TEST(ProcessorGeometry, CropsCoverThePicture) {
  const ImageSize size{1999, 600};
  std::int64_t next = 0;
  for (const Crop& crop : pan_and_scan(size, {})) {
    EXPECT_EQ(crop.left, next);
    EXPECT_EQ(crop.height, size.height);
    next += crop.width;
  }
  EXPECT_EQ(next, size.width);
}

TEST(ProcessorGeometry, BadSizesAreErrors) {
  EXPECT_THROW(resize_shortest_edge({0, 5}, 224), std::invalid_argument);
  EXPECT_THROW(resize_shortest_edge({5, 5}, 0), std::invalid_argument);
  EXPECT_THROW(center_crop({100, 100}, {101, 10}), std::invalid_argument);
  EXPECT_THROW(pan_and_scan({10, 0}, {}), std::invalid_argument);
  EXPECT_THROW(pan_and_scan({10, 10}, {0, 4, 1.2}), std::invalid_argument);
}

}  // namespace
}  // namespace thinkvg::image
