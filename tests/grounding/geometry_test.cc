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
      BoxFrame::stretch(640, 96), BoxFrame::unit(),         BoxFrame::hundred(),      BoxFrame::thousand(),
      BoxFrame::crop(224),        BoxFrame::crop(336),      BoxFrame::stored(),       BoxFrame::view()};
  return frames;
}

void expect_near(const Box& a, const Box& b, double tolerance) {
  EXPECT_EQ(a.frame, b.frame);
  EXPECT_NEAR(a.x1, b.x1, tolerance);
  EXPECT_NEAR(a.y1, b.y1, tolerance);
  EXPECT_NEAR(a.x2, b.x2, tolerance);
  EXPECT_NEAR(a.y2, b.y2, tolerance);
}

// Any orientation, and a few random crops, pads and resizes.
ImageGeometry random_chain(RandomStream& random, ImageSize size) {
  ImageGeometry geometry(size, static_cast<int>(random.between(1, 8)));
  for (std::int64_t steps = random.between(0, 4); steps > 0; --steps) {
    const ImageSize now = geometry.view();
    const auto some = [&](std::int64_t extent) {
      return std::floor(random.uniform(0, 0.2) * static_cast<double>(extent));
    };
    const ImageGeometry::Sides sides{some(now.width), some(now.height), some(now.width), some(now.height)};
    switch (random.between(0, 2)) {
      case 0:
        geometry = geometry.cropped(sides);
        break;
      case 1:
        geometry = geometry.padded(sides);
        break;
      default:
        geometry = geometry.resized({random.between(16, 2000), random.between(16, 2000)});
    }
  }
  return geometry;
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
    const ImageGeometry geometry = random_chain(random, size);
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
      // Without orientation and chain `stored` and `view` are the original, whatever the picture.
      const auto alike = [](const BoxFrame& f) {
        return f.kind() == BoxFrame::Kind::original || f.kind() == BoxFrame::Kind::stored ||
               f.kind() == BoxFrame::Kind::view;
      };
      if (alike(from) && alike(to)) continue;
      const Box start{1, 2, 30, 40, from};
      const bool same = ImageGeometry({1, 1}).convert(start, to) == ImageGeometry({300, 1200}).convert(start, to);
      EXPECT_EQ(same, !conversion_needs_picture(from, to)) << from.name() << " to " << to.name();
    }
  }
}

TEST(ImageGeometry, ChainOfALetterboxIsTheLetterbox) {
  RandomStream random({41});
  for (int i = 0; i < 100; ++i) {
    // Even differences, so that the padding is whole.
    const std::int64_t height = random.between(1, 2000), width = height + 2 * random.between(0, 1000);
    const auto pad = static_cast<double>(width - height) / 2;
    const ImageGeometry geometry =
        ImageGeometry({width, height}).padded({.top = pad, .bottom = pad}).resized({336, 336});
    EXPECT_EQ(geometry.view(), (ImageSize{336, 336}));
    const Box box{random.uniform(0, 300), random.uniform(0, 300), 310, 320, BoxFrame::letterbox(336)};
    Box view = geometry.convert(box, BoxFrame::view());
    view.frame = box.frame;
    expect_near(view, box, 1e-9);
  }
}

TEST(ImageGeometry, CropFrameIsResizeThenCentredCut) {
  // 3056 x 2544 to 224: the shorter side is scaled by 224 / 2544, (3056 * s - 224) / 2 go on the left.
  const double s = 224.0 / 2544, cut = (3056 * s - 224) / 2;
  const Box got = ImageGeometry({3056, 2544}).convert({1000, 500, 1500, 800, {}}, BoxFrame::crop(224));
  expect_near(got, {1000 * s - cut, 500 * s, 1500 * s - cut, 800 * s, BoxFrame::crop(224)}, 1e-9);
  const Box corner = ImageGeometry({3056, 2544}).convert({0, 0, 10, 10, {}}, BoxFrame::crop(224));
  EXPECT_LT(corner.x2, 0) << "cut away";
}

TEST(ImageGeometry, StoredFrameFollowsExif) {
  // A pixel's place in a file of 4 x 2 pixels, and where each orientation shows it (EXIF 2.32, tag 0x0112).
  const Box stored{1, 0, 2, 1, BoxFrame::stored()};
  const std::vector<Box> shown = {{1, 0, 2, 1, {}}, {2, 0, 3, 1, {}}, {2, 1, 3, 2, {}}, {1, 1, 2, 2, {}},
                                  {0, 1, 1, 2, {}}, {1, 1, 2, 2, {}}, {1, 2, 2, 3, {}}, {0, 2, 1, 3, {}}};
  for (int orientation = 1; orientation <= 8; ++orientation) {
    const ImageSize size = orientation >= 5 ? ImageSize{2, 4} : ImageSize{4, 2};
    const ImageGeometry geometry(size, orientation);
    EXPECT_EQ(geometry.stored(), (ImageSize{4, 2}));
    EXPECT_EQ(geometry.convert(stored, BoxFrame::original()), shown[static_cast<std::size_t>(orientation - 1)])
        << orientation;
    EXPECT_EQ(geometry.convert(shown[static_cast<std::size_t>(orientation - 1)], BoxFrame::stored()), stored)
        << orientation;
  }
  EXPECT_THROW(ImageGeometry({4, 2}, 9), std::invalid_argument);
  EXPECT_THROW(ImageGeometry({4, 2}).cropped({.left = 4}), std::invalid_argument);
  EXPECT_THROW(ImageGeometry({4, 2}).resized({0, 2}), std::invalid_argument);
}

TEST(ImageGeometry, FitReportsClippingAndWhatIsNoBox) {
  RandomStream random({42});
  for (int i = 0; i < 500; ++i) {
    const ImageSize size{random.between(1, 3000), random.between(1, 3000)};
    const ImageGeometry geometry = random_chain(random, size);
    for (const BoxFrame& frame : all_frames()) {
      const double x = random.uniform(-0.5, 1.2), y = random.uniform(-0.5, 1.2);
      const Box unit{x, y, x + random.uniform(0.01, 0.6), y + random.uniform(0.01, 0.6), BoxFrame::unit()};
      const FittedBox fitted = geometry.fit(geometry.convert(unit, frame));
      const double left = std::max(0.0, unit.x1), top = std::max(0.0, unit.y1);
      const double right = std::min(1.0, unit.x2), bottom = std::min(1.0, unit.y2);
      const bool inside = unit.x1 > 1e-6 && unit.y1 > 1e-6 && unit.x2 < 1 - 1e-6 && unit.y2 < 1 - 1e-6;
      if (right - left < 1e-6 || bottom - top < 1e-6) {
        if (right < left - 1e-6 || bottom < top - 1e-6) EXPECT_NE(fitted.problem, "") << frame.name();
        continue;
      }
      EXPECT_EQ(fitted.problem, "") << frame.name();
      EXPECT_NEAR(fitted.kept, (right - left) * (bottom - top) / unit.area(), 1e-6) << frame.name();
      if (inside) EXPECT_FALSE(fitted.clipped) << frame.name();
      if (fitted.kept < 1 - 1e-6) EXPECT_TRUE(fitted.clipped) << frame.name();
      expect_near(geometry.convert(fitted.box, BoxFrame::unit()), {left, top, right, bottom, BoxFrame::unit()}, 1e-9);
    }
  }
  const ImageGeometry geometry({200, 100});
  EXPECT_EQ(geometry.fit({30, 2, 3, 40, {}}).problem, "x1 = 30 is not below x2 = 3: the corners are reversed");
  EXPECT_EQ(geometry.fit({3, 40, 30, 40, {}}).problem, "y1 and y2 are both 40: the box is empty");
  EXPECT_EQ(geometry.fit({3, std::nan(""), 30, 40, {}}).problem, "a coordinate is not a finite number");
  EXPECT_EQ(geometry.fit({300, 4, 310, 40, {}}).problem, "the box lies outside the picture of 200 x 100 pixels");
}

TEST(MakeBox, TakesEveryOrder) {
  const BoxFrame frame = BoxFrame::thousand();
  const Box box{10, 20, 40, 60, frame};
  EXPECT_EQ(make_box({10, 20, 40, 60}, BoxOrder::xyxy, frame), box);
  EXPECT_EQ(make_box({20, 10, 60, 40}, BoxOrder::yxyx, frame), box);
  EXPECT_EQ(make_box({10, 20, 30, 40}, BoxOrder::xywh, frame), box);
  EXPECT_EQ(make_box({25, 40, 30, 40}, BoxOrder::cxcywh, frame), box);
  for (const char* name : {"xyxy", "yxyx", "xywh", "cxcywh"}) EXPECT_EQ(box_order_name(parse_box_order(name)), name);
  EXPECT_THROW(parse_box_order("xyhw"), std::invalid_argument);
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
