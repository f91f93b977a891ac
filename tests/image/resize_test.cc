#include "thinkvg/image/resize.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "thinkvg/core/random.h"
#include "thinkvg/image/patches.h"
#include "thinkvg/image/picture.h"

namespace thinkvg::image {
namespace {

Raster noise(std::int64_t width, std::int64_t height, std::int64_t channels) {
  RandomStream random({static_cast<std::uint64_t>(width), static_cast<std::uint64_t>(height)});
  Raster raster{width, height, channels, {}};
  for (std::int64_t i = 0; i < width * height * channels; ++i)
    raster.pixels.push_back(static_cast<std::uint8_t>(random.below(256)));
  return raster;
}

// A smooth picture with an edge, like a radiograph.
Raster smooth(std::int64_t width, std::int64_t height) {
  Raster raster{width, height, 1, {}};
  for (std::int64_t y = 0; y < height; ++y) {
    for (std::int64_t x = 0; x < width; ++x) {
      const double u = static_cast<double>(x) / static_cast<double>(width);
      const double v = static_cast<double>(y) / static_cast<double>(height);
      const double rib = 25 * std::sin(60 * v + 4 * u);
      raster.pixels.push_back(static_cast<std::uint8_t>(u > 0.4 && u < 0.6 ? 220 : 110 + rib + 40 * u * v));
    }
  }
  return raster;
}

// The definition in doubles, without any rounding between: what the integers approximate.
double reference(const Raster& in, std::int64_t x, std::int64_t y, grounding::ImageSize size) {
  const auto weights = [](std::int64_t input, std::int64_t output, std::int64_t at) {
    const double scale = static_cast<double>(input) / static_cast<double>(output), wide = std::max(scale, 1.0);
    const double center = (static_cast<double>(at) + 0.5) * scale;
    std::vector<double> result(static_cast<std::size_t>(input), 0.0);
    double total = 0;
    for (std::int64_t i = 0; i < input; ++i) {
      const double d = std::abs((static_cast<double>(i) + 0.5 - center) / wide);
      const double w =
          d < 1 ? 1.5 * d * d * d - 2.5 * d * d + 1 : (d < 2 ? -0.5 * d * d * d + 2.5 * d * d - 4 * d + 2 : 0.0);
      result[static_cast<std::size_t>(i)] = w;
      total += w;
    }
    for (double& w : result) w /= total;
    return result;
  };
  const auto across = weights(in.width, size.width, x), down = weights(in.height, size.height, y);
  double sum = 0;
  for (std::int64_t j = 0; j < in.height; ++j)
    for (std::int64_t i = 0; i < in.width; ++i)
      sum += down[static_cast<std::size_t>(j)] * across[static_cast<std::size_t>(i)] *
             in.pixels[static_cast<std::size_t>(j * in.width + i)];
  return sum;
}

TEST(Resize, IsWithinRoundingOfTheDefinition) {
  const Raster in = smooth(61, 47);
  for (const grounding::ImageSize size : {grounding::ImageSize{20, 31}, {61, 20}, {90, 100}, {7, 5}, {1, 1}}) {
    const Raster out = resize_bicubic(in, size);
    ASSERT_EQ(out.size(), size);
    for (std::int64_t y = 0; y < size.height; ++y)
      for (std::int64_t x = 0; x < size.width; ++x)
        ASSERT_NEAR(out.pixels[static_cast<std::size_t>(y * size.width + x)],
                    std::clamp(reference(in, x, y, size), 0.0, 255.0), 1.6)
            << x << ", " << y << " of " << size.width << " x " << size.height;
  }
}

TEST(Resize, ChannelsAreIndependent) {
  const Raster colour = noise(53, 38, 3);
  const Raster small = resize_bicubic(colour, {20, 17});
  for (std::int64_t c = 0; c < 3; ++c) {
    const Raster plane{53, 38, 1, {colour.plane(c), colour.plane(c) + 53 * 38}};
    const Raster alone = resize_bicubic(plane, {20, 17});
    EXPECT_EQ(alone.pixels, std::vector<std::uint8_t>(small.plane(c), small.plane(c) + 20 * 17));
  }
}

// Sixteen rows at once have a kernel of their own; a row alone is done by the plain one.
TEST(Resize, ManyRowsAreAsEachRowAlone) {
  RandomStream random({11});
  for (int round = 0; round < 60; ++round) {
    const std::int64_t width = 1 + static_cast<std::int64_t>(random.below(round % 3 == 0 ? 700 : 70));
    const std::int64_t wanted = 1 + static_cast<std::int64_t>(random.below(90));
    const std::int64_t height = 1 + static_cast<std::int64_t>(random.below(100));
    const ResizeFilter filter = round % 2 == 0 ? ResizeFilter::bicubic : ResizeFilter::bilinear;
    const Raster all = noise(width, height, 1);
    const Raster narrow = resize(all, {wanted, height}, filter);
    for (std::int64_t y = 0; y < height; ++y) {
      const Raster row{width, 1, 1, {all.plane(0) + y * width, all.plane(0) + (y + 1) * width}};
      const Raster alone = resize(row, {wanted, 1}, filter);
      ASSERT_TRUE(std::equal(alone.pixels.begin(), alone.pixels.end(), narrow.plane(0) + y * wanted))
          << "row " << y << " of " << width << " x " << height << " to " << wanted;
    }
  }
}

// Black and white at the steepest: the sums that leave 0..255 are cut off, not wrapped.
TEST(Resize, OvershootIsCutOff) {
  Raster edge{96, 40, 1, {}};
  for (std::int64_t i = 0; i < 96 * 40; ++i) edge.pixels.push_back(i % 96 / 8 % 2 == 0 ? 0 : 255);
  const Raster large = resize_bicubic(edge, {288, 40});
  for (std::int64_t x = 0; x < 288; ++x) {
    const int value = large.pixels[static_cast<std::size_t>(x)];
    const std::int64_t inside = x % 24;
    if (inside >= 3 && inside < 21) ASSERT_TRUE(x / 24 % 2 == 0 ? value < 20 : value > 235) << x << ": " << value;
  }
}

TEST(Resize, ConstantsStayAndSizesAreChecked) {
  const Raster grey{300, 200, 1, std::vector<std::uint8_t>(300 * 200, 130)};
  for (const std::uint8_t value : resize_bicubic(grey, {77, 413}).pixels) ASSERT_EQ(value, 130);
  EXPECT_EQ(resize_bicubic(grey, {300, 200}).pixels, grey.pixels);
  EXPECT_THROW(resize_bicubic(grey, {0, 5}), std::invalid_argument);
  EXPECT_THROW(resize_bicubic(Raster{}, {5, 5}), std::invalid_argument);
  // One pixel, and a picture so large that more than one block of taps is needed.
  EXPECT_EQ(resize_bicubic({1, 1, 1, {9}}, {28, 28}).pixels, std::vector<std::uint8_t>(28 * 28, 9));
  const Raster line{5000, 1, 1, std::vector<std::uint8_t>(5000, 200)};
  EXPECT_EQ(resize_bicubic(line, {28, 28}).pixels, std::vector<std::uint8_t>(28 * 28, 200));
}

TEST(Resize, PaddingAgreesWithPictures) {
  for (const auto& [width, height] : {std::pair<int, int>{10, 4}, {4, 9}, {5, 5}, {6, 1}}) {
    const Raster raster = noise(width, height, 3);
    EXPECT_EQ(to_picture(pad_to_square(raster)).pixels, pad_to_square(to_picture(raster)).pixels);
  }
}

// What reduced_jpeg costs, as README states it: differences of the resized picture on smooth content, in grey levels.
TEST(Resize, ReducedJpegStaysNear) {
  const Raster large = smooth(1272, 1528);
  const std::string jpeg = encode_jpeg(to_picture(large), 95);
  const grounding::ImageSize target{336, 392};
  const Raster exact = resize_bicubic(decode_raster(jpeg, "x"), target);
  const Raster reduced_input = decode_raster_reduced(jpeg, "x", target);
  ASSERT_EQ(reduced_input.size(), (grounding::ImageSize{636, 764}));
  const Raster reduced = resize_bicubic(reduced_input, target);
  double sum = 0;
  int largest = 0;
  for (std::size_t i = 0; i < exact.pixels.size(); ++i) {
    const int difference = std::abs(exact.pixels[i] - reduced.pixels[i]);
    sum += difference;
    largest = std::max(largest, difference);
  }
  EXPECT_LT(sum / static_cast<double>(exact.pixels.size()), 0.5);
  EXPECT_LE(largest, 12);
}

TEST(Patches, FollowTheOrderOfCells) {
  Raster raster{8, 4, 1, {}};
  for (int i = 0; i < 32; ++i) raster.pixels.push_back(static_cast<std::uint8_t>(i));
  PatchOptions options;
  options.patch_size = 2;
  options.merge_size = 2;
  options.temporal_patch_size = 2;
  options.mean = {0, 1, 2};
  options.deviation = {1, 2, 4};
  const PatchValues patches = cut_patches(raster, options);
  ASSERT_EQ(patches.rows, 8);
  ASSERT_EQ(patches.columns, 3 * 2 * 4);
  const auto value = [&](std::int64_t row, std::int64_t channel, std::int64_t frame, std::int64_t at) {
    return patches.values[static_cast<std::size_t>((row * 6 + channel * 2 + frame) * 4 + at)];
  };
  // Left upper corners of the patches, cell by cell.
  const int corners[] = {0, 2, 16, 18, 4, 6, 20, 22};
  for (std::int64_t row = 0; row < 8; ++row) {
    for (std::int64_t frame = 0; frame < 2; ++frame) {
      const auto corner = static_cast<float>(corners[row]);
      EXPECT_EQ(value(row, 0, frame, 0), corner);
      EXPECT_EQ(value(row, 0, frame, 3), corner + 9);
      EXPECT_EQ(value(row, 1, frame, 1), (corner + 1 - 1) / 2);
      EXPECT_EQ(value(row, 2, frame, 2), (corner + 8 - 2) / 4);
    }
  }
  options.patch_size = 3;
  EXPECT_THROW(cut_patches(raster, options), std::invalid_argument);
}

TEST(Patches, GreyStandsForThreeEqualChannels) {
  const Raster grey = noise(28, 56, 1);
  Raster colour{28, 56, 3, {}};
  for (int c = 0; c < 3; ++c) colour.pixels.insert(colour.pixels.end(), grey.pixels.begin(), grey.pixels.end());
  PatchOptions options;
  options.mean = {120, 110, 100};
  options.deviation = {60, 61, 62};
  const PatchValues a = cut_patches(grey, options), b = cut_patches(colour, options);
  ASSERT_EQ(a.rows, b.rows);
  EXPECT_TRUE(std::equal(a.values.get(), a.values.get() + a.rows * a.columns, b.values.get()));
}

}  // namespace
}  // namespace thinkvg::image
