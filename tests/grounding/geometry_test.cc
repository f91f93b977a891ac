#include "thinkvg/grounding/geometry.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "thinkvg/core/random.h"

namespace thinkvg::grounding {
namespace {

const std::vector<BoxFrame>& all_frames() {
  static const std::vector<BoxFrame> frames = {
      BoxFrame::original(),       BoxFrame::letterbox(224), BoxFrame::letterbox(336), BoxFrame::stretch(448, 448),
      BoxFrame::stretch(640, 96), BoxFrame::unit(),         BoxFrame::hundred(),      BoxFrame::thousand()};
  return frames;
}

void expect_near(const Box& a, const Box& b, double tolerance) {
  EXPECT_EQ(a.frame, b.frame);
  EXPECT_NEAR(a.x1, b.x1, tolerance);
  EXPECT_NEAR(a.y1, b.y1, tolerance);
  EXPECT_NEAR(a.x2, b.x2, tolerance);
  EXPECT_NEAR(a.y2, b.y2, tolerance);
}

TEST(ImageGeometry, NeedsAPicture) {
  EXPECT_THROW(ImageGeometry({0, 10}), std::invalid_argument);
  EXPECT_THROW(ImageGeometry({10, -1}), std::invalid_argument);
}

TEST(ImageGeometry, MimicLetterboxPadsAsPublished) {
  // 3056 x 2544 pictures are padded by 18.76 pixels of 224 above and below, 28.15 of 336.
  const ImageGeometry geometry({3056, 2544});
  const Box picture{0, 0, 3056, 2544, BoxFrame::original()};
  const Box in224 = geometry.convert(picture, BoxFrame::letterbox(224));
  EXPECT_NEAR(in224.y1, 18.76, 0.01);
  EXPECT_NEAR(in224.y2, 224 - 18.76, 0.01);
  EXPECT_EQ(in224.x1, 0);
  EXPECT_EQ(in224.x2, 224);
  EXPECT_NEAR(geometry.convert(picture, BoxFrame::letterbox(336)).y1, 28.15, 0.01);
  const ImageGeometry tall({2544, 3056});
  EXPECT_NEAR(tall.convert({0, 0, 2544, 3056, BoxFrame::original()}, BoxFrame::letterbox(224)).x1, 18.76, 0.01);
}

TEST(ImageGeometry, LetterboxFollowsTheFormula) {
  // x_orig = (x - (N - W s) / 2) / s with s = N / max(W, H).
  RandomStream random({21});
  for (int i = 0; i < 200; ++i) {
    const ImageSize size{random.between(1, 4000), random.between(1, 4000)};
    const double s = 224.0 / static_cast<double>(std::max(size.width, size.height));
    const Box box{random.uniform(0, 100), random.uniform(0, 100), random.uniform(100, 224), random.uniform(100, 224),
                  BoxFrame::letterbox(224)};
    const double pad_x = (224 - static_cast<double>(size.width) * s) / 2;
    const double pad_y = (224 - static_cast<double>(size.height) * s) / 2;
    const Box got = ImageGeometry(size).convert(box, BoxFrame::original());
    expect_near(got, {(box.x1 - pad_x) / s, (box.y1 - pad_y) / s, (box.x2 - pad_x) / s, (box.y2 - pad_y) / s, {}},
                1e-8);
  }
}

TEST(ImageGeometry, RoundTripsBetweenAllFrames) {
  RandomStream random({22});
  for (int i = 0; i < 200; ++i) {
    const ImageSize size{random.between(1, 5000), random.between(1, 5000)};
    const ImageGeometry geometry(size);
    const double x1 = random.uniform(), y1 = random.uniform();
    const Box unit{x1, y1, x1 + random.uniform(0.01, 1), y1 + random.uniform(0.01, 1), BoxFrame::unit()};
    for (const BoxFrame& from : all_frames()) {
      const Box box = geometry.convert(unit, from);
      for (const BoxFrame& to : all_frames()) {
        const Box there = geometry.convert(box, to);
        EXPECT_EQ(there.frame, to);
        const Box back = geometry.convert(there, from);
        expect_near(back, box, 1e-9);
        // Any path gives the same box.
        expect_near(geometry.convert(geometry.convert(box, BoxFrame::original()), to), there, 1e-9);
      }
    }
  }
}

TEST(ImageGeometry, FramesOfOneFamilyDifferByAScaleForAnyPicture) {
  const Box box{10, 20, 110, 220, BoxFrame::letterbox(224)};
  for (const ImageSize size : {ImageSize{1, 1}, ImageSize{3056, 2544}, ImageSize{17, 4000}}) {
    const Box got = ImageGeometry(size).convert(box, BoxFrame::letterbox(336));
    EXPECT_EQ(got, (Box{15, 30, 165, 330, BoxFrame::letterbox(336)}));
  }
  EXPECT_FALSE(conversion_needs_picture(BoxFrame::letterbox(224), BoxFrame::letterbox(336)));
  EXPECT_FALSE(conversion_needs_picture(BoxFrame::unit(), BoxFrame::thousand()));
  EXPECT_FALSE(conversion_needs_picture(BoxFrame::stretch(448, 448), BoxFrame::hundred()));
  EXPECT_FALSE(conversion_needs_picture(BoxFrame::original(), BoxFrame::original()));
  EXPECT_TRUE(conversion_needs_picture(BoxFrame::original(), BoxFrame::unit()));
  EXPECT_TRUE(conversion_needs_picture(BoxFrame::letterbox(224), BoxFrame::unit()));
  EXPECT_TRUE(conversion_needs_picture(BoxFrame::thousand(), BoxFrame::letterbox(224)));
  // What is said not to need the picture does not depend on it.
  for (const BoxFrame& from : all_frames()) {
    for (const BoxFrame& to : all_frames()) {
      const Box start{1, 2, 30, 40, from};
      const bool same = ImageGeometry({1, 1}).convert(start, to) == ImageGeometry({300, 1200}).convert(start, to);
      EXPECT_EQ(same, !conversion_needs_picture(from, to)) << from.name() << " to " << to.name();
    }
  }
}

TEST(ImageGeometry, ConversionKeepsIouAmongThePictureFrames) {
  const ImageGeometry geometry({900, 1300});
  const Box a{100, 100, 500, 800, {}}, b{200, 150, 700, 900, {}};
  for (const BoxFrame& frame : all_frames()) {
    EXPECT_NEAR(iou(geometry.convert(a, frame), geometry.convert(b, frame)), iou(a, b), 1e-12) << frame.name();
  }
}

TEST(ImageGeometry, ClipKeepsThePartInsideThePicture) {
  const ImageGeometry geometry({200, 100});
  EXPECT_EQ(geometry.clip({-10, 20, 300, 50, {}}), (Box{0, 20, 200, 50, {}}));
  // In a letterbox of 200 the picture fills rows 50 to 150.
  const BoxFrame square = BoxFrame::letterbox(200);
  EXPECT_EQ(geometry.clip({10, 0, 20, 200, square}), (Box{10, 50, 20, 150, square}));
  EXPECT_FALSE(geometry.clip({10, 0, 20, 40, square}).is_valid()) << "padding only";
  EXPECT_FALSE(geometry.clip({300, 10, 310, 20, {}}).is_valid());
  EXPECT_FALSE(geometry.clip({20, 20, 10, 10, {}}).is_valid()) << "reversed stays reversed";
}

TEST(ImageGeometry, RoundedIsWholeAndInsideTheFrame) {
  const ImageGeometry geometry({200, 100});
  const BoxFrame square = BoxFrame::letterbox(336);
  EXPECT_EQ(geometry.rounded({10.4, 10.5, 20.49, 400, square}), (Box{10, 11, 20, 336, square}));
  EXPECT_EQ(geometry.rounded({-5, -0.2, 250, 99.6, {}}), (Box{0, 0, 200, 100, {}}));
  EXPECT_EQ(geometry.rounded({0.12344, 0.2, 0.98765, 1.4, BoxFrame::unit()}),
            (Box{0.1234, 0.2, 0.9877, 1, BoxFrame::unit()}));
}

TEST(ImageGeometry, RoundedKeepsSmallBoxesValid) {
  const ImageGeometry geometry({200, 100});
  const BoxFrame square = BoxFrame::letterbox(112);
  RandomStream random({23});
  for (int i = 0; i < 500; ++i) {
    const double x = random.uniform(0, 111.9), y = random.uniform(0, 111.9);
    const Box box{x, y, x + random.uniform(0.001, 0.9), y + random.uniform(0.001, 0.9), square};
    const Box rounded = geometry.rounded(box);
    EXPECT_TRUE(rounded.is_valid()) << box.x1 << " " << box.x2;
    EXPECT_GE(rounded.x1, 0);
    EXPECT_LE(rounded.x2, 112);
    EXPECT_EQ(rounded.x1, std::floor(rounded.x1));
    EXPECT_LE(std::abs(rounded.x1 - box.x1), 1);
    EXPECT_EQ(geometry.rounded(rounded), rounded) << "rounding again changes nothing";
  }
  EXPECT_FALSE(geometry.rounded({-20, 1, -10, 5, square}).is_valid()) << "outside stays outside";
}

}  // namespace
}  // namespace thinkvg::grounding
