#include "thinkvg/image/picture_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>

#include "tests/support/temporary_folder.h"
#include "thinkvg/core/files.h"
#include "thinkvg/core/random.h"
#include "thinkvg/image/picture.h"
#include "thinkvg/image/processor_geometry.h"
#include "thinkvg/image/resize.h"

namespace thinkvg::image {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr std::int64_t kSide = 32;  // 1,024 bytes a prepared grey picture

class PictureStoreFiles : public ::testing::Test {
 protected:
  PictureStoreFiles() {
    for (int i = 0; i < 24; ++i) {
      Picture picture{40 + i, 30, {}};
      RandomStream random({static_cast<std::uint64_t>(i)});
      for (std::int64_t p = 0; p < picture.width * picture.height; ++p)
        picture.pixels.insert(picture.pixels.end(), 3, static_cast<std::uint8_t>(random.below(256)));
      files_.push_back(folder_ / (std::to_string(i) + ".png"));
      write_picture(picture, files_.back());
    }
  }

  ResizeRule rule(bool pad = false) {
    return {[this](grounding::ImageSize) {
              ++num_prepared_;
              return grounding::ImageSize{kSide, kSide};
            },
            pad};
  }
  static PictureStoreOptions options(std::int64_t memory, std::int64_t threads) {
    PictureStoreOptions options;
    options.memory_bytes = memory;
    options.num_threads = threads;
    return options;
  }
  std::vector<PictureRequest> requests(std::size_t begin, std::size_t end) const {
    std::vector<PictureRequest> list;
    for (std::size_t i = begin; i < end; ++i) list.push_back({files_[i], "sample " + std::to_string(i)});
    return list;
  }
  std::vector<fs::path> files(std::size_t begin, std::size_t end) const {
    return {files_.begin() + static_cast<std::ptrdiff_t>(begin), files_.begin() + static_cast<std::ptrdiff_t>(end)};
  }
  template <class Condition>
  static bool soon(const Condition& condition) {
    for (int i = 0; i < 2000 && !condition(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    return condition();
  }

  test::TemporaryFolder folder_;
  std::vector<fs::path> files_;
  std::atomic<int> num_prepared_{0};
};

TEST_F(PictureStoreFiles, PreparesAsTheStepsOneByOneDo) {
  PictureStore store(rule(true), options(1 << 20, 2));
  const auto got = store.get(requests(3, 4)).front();
  EXPECT_EQ(got->original, (grounding::ImageSize{43, 30}));
  EXPECT_EQ(got->pixels.pixels, resize_bicubic(pad_to_square(read_raster(files_[3])), {kSide, kSide}).pixels);
}

// JPEG files are resized while they are decoded; nothing of that may show.
TEST(PreparePicture, IsDecodingThenTheRule) {
  const ResizeRule rules[] = {{[](grounding::ImageSize) {
                                return grounding::ImageSize{29, 23};
                              }},
                              {[](grounding::ImageSize size) {
                                return grounding::ImageSize{size.width, 31};
                              }},
                              {[](grounding::ImageSize size) {
                                 return grounding::ImageSize{40, size.height};
                               },
                               false,
                               {},
                               ResizeFilter::bilinear},
                              {[](grounding::ImageSize size) { return size; }},
                              {[](grounding::ImageSize) {
                                 return grounding::ImageSize{28, 28};
                               },
                               true},
                              {[](grounding::ImageSize) {
                                 return grounding::ImageSize{36, 36};
                               },
                               true,
                               {122, 116, 104}},
                              {[](grounding::ImageSize size) { return resize_shortest_edge(size, 33); },
                               false,
                               {},
                               ResizeFilter::bicubic,
                               {24, 20}}};
  std::vector<std::string> encoded;
  for (const auto& entry : fs::directory_iterator(fs::path(THINKVG_TEST_DATA) / "pictures"))
    if (entry.path().extension() != ".json") encoded.push_back(read_file(entry.path()));
  // Larger than a strip of rows, wide and tall, with sides that are no whole blocks.
  for (const auto& [width, height] : {std::pair<int, int>{203, 131}, {130, 261}}) {
    RandomStream random({static_cast<std::uint64_t>(width)});
    for (const bool grey : {false, true}) {
      Picture picture{width, height, {}};
      for (int i = 0; i < width * height; ++i) {
        const auto value = static_cast<std::uint8_t>(random.below(256));
        for (int c = 0; c < 3; ++c)
          picture.pixels.push_back(grey ? value : static_cast<std::uint8_t>(random.below(256)));
      }
      encoded.push_back(encode_jpeg(picture, 90));
    }
  }
  for (const std::string& bytes : encoded) {
    for (const ResizeRule& rule : rules) {
      for (const bool reduced : {false, true}) {
        PictureStoreOptions options;
        options.reduced_jpeg = reduced;
        const PreparedPicture got = prepare_picture(bytes, "x", rule, options);
        const grounding::ImageSize target = rule.target(got.original);
        const Raster wanted =
            apply_rule(reduced ? decode_raster_reduced(bytes, "x", target) : decode_raster(bytes, "x"), rule, target);
        ASSERT_EQ(got.pixels.size(), wanted.size());
        ASSERT_EQ(got.pixels.channels, wanted.channels);
        ASSERT_EQ(got.pixels.pixels, wanted.pixels) << wanted.width << " x " << wanted.height;
      }
    }
  }
}

TEST_F(PictureStoreFiles, ResultsDependOnFilesOnly) {
  std::vector<std::vector<std::uint8_t>> wanted;
  for (const fs::path& file : files_) wanted.push_back(resize_bicubic(read_raster(file), {kSide, kSide}).pixels);
  for (const std::int64_t memory : {std::int64_t{0}, std::int64_t{3000}, std::int64_t{1} << 20}) {
    for (const std::int64_t threads : {0, 1, 3}) {
      for (const bool encoded : {false, true}) {
        PictureStoreOptions some = options(memory, threads);
        some.keep_encoded = encoded;
        PictureStore store(rule(), some);
        for (int pass = 0; pass < 2; ++pass) {
          for (std::size_t begin = 0; begin < files_.size(); begin += 6) {
            if (begin + 12 <= files_.size()) store.prefetch(files(begin, begin + 12));
            const auto pictures = store.get(requests(begin, begin + 6));
            for (std::size_t i = 0; i < 6; ++i) ASSERT_EQ(pictures[i]->pixels.pixels, wanted[begin + i]);
          }
        }
      }
    }
  }
}

TEST_F(PictureStoreFiles, EachPictureIsPreparedOnceWhileMemoryLasts) {
  PictureStore store(rule(), options(1 << 20, 2));
  store.prefetch(files(0, 24));
  for (int pass = 0; pass < 3; ++pass) store.get(requests(0, 24));
  EXPECT_EQ(num_prepared_, 24);
  EXPECT_EQ(store.bytes(), 24 * kSide * kSide);
  // A file twice in one batch.
  std::vector<PictureRequest> twice = requests(0, 2);
  twice.push_back(twice.front());
  EXPECT_EQ(store.get(twice)[2], store.get(twice)[0]);
}

TEST_F(PictureStoreFiles, MemoryIsBounded) {
  const std::int64_t limit = 5 * kSide * kSide;
  PictureStore store(rule(), options(limit, 1));
  store.prefetch(files(0, 24));
  // Work ahead stops at the limit: no picture is dropped before it was fetched.
  ASSERT_TRUE(soon([&] { return store.bytes() >= limit; }));
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_EQ(store.bytes(), limit);
  for (std::size_t i = 0; i < 24; ++i) {
    store.get(requests(i, i + 1));
    EXPECT_LE(store.bytes(), limit + kSide * kSide);
  }
  EXPECT_EQ(num_prepared_, 24);
  PictureStore none(rule(), options(0, 1));
  none.get(requests(0, 4));
  EXPECT_EQ(none.bytes(), 0);
}

TEST_F(PictureStoreFiles, EncodedBytesCountAsTheyAre) {
  PictureStoreOptions some = options(1 << 20, 1);
  some.keep_encoded = true;
  PictureStore store(rule(), some);
  store.get(requests(0, 2));
  EXPECT_EQ(store.bytes(), static_cast<std::int64_t>(fs::file_size(files_[0]) + fs::file_size(files_[1])));
  // The second pass needs no file any more.
  fs::remove(files_[0]);
  EXPECT_EQ(store.get(requests(0, 1)).front()->original.width, 40);
}

TEST_F(PictureStoreFiles, FailuresNameTheRow) {
  write_file_atomically(files_[7], "hello");
  for (const std::int64_t threads : {0, 2}) {
    PictureStore store(rule(), options(1 << 20, threads));
    store.prefetch(files(0, 12));
    EXPECT_EQ(store.get(requests(0, 7)).size(), 7u);
    try {
      store.get(requests(6, 9));
      FAIL() << "no failure";
    } catch (const std::runtime_error& error) {
      EXPECT_THAT(error.what(), AllOf(HasSubstr("sample 7: "), HasSubstr("7.png"), HasSubstr("expected a JPEG")));
    }
    // The failure is not remembered for ever, and others still come.
    write_picture(Picture{4, 4, std::vector<std::uint8_t>(48, 9)}, files_[7]);
    EXPECT_EQ(store.get(requests(7, 9)).size(), 2u);
    write_file_atomically(files_[7], "hello");
  }
}

TEST_F(PictureStoreFiles, CancelForgetsWhatWasNotFetched) {
  PictureStore store(rule(), options(4 * kSide * kSide, 1));
  store.prefetch(files(0, 20));
  ASSERT_TRUE(soon([&] { return store.bytes() >= 4 * kSide * kSide; }));
  store.cancel();
  EXPECT_EQ(store.bytes(), 0);
  store.prefetch(files(20, 24));
  EXPECT_TRUE(soon([&] { return store.bytes() == 4 * kSide * kSide; }));
  EXPECT_EQ(store.get(requests(20, 24)).size(), 4u);
}

TEST_F(PictureStoreFiles, WhatIsNeverAskedForIsForgotten) {
  PictureStore store(rule(), options(4 * kSide * kSide, 1));
  store.prefetch(files(0, 4));
  ASSERT_TRUE(soon([&] { return store.bytes() == 4 * kSide * kSide; }));
  for (int call = 0; call < 255; ++call) store.prefetch({});
  EXPECT_EQ(store.bytes(), 4 * kSide * kSide);
  store.prefetch({});
  EXPECT_EQ(store.bytes(), 0);
  EXPECT_EQ(store.get(requests(0, 4)).size(), 4u);
}

TEST_F(PictureStoreFiles, ServesSeveralThreads) {
  PictureStore store(rule(), options(6 * kSide * kSide, 2));
  std::vector<std::jthread> threads;
  std::atomic<int> wrong{0};
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      RandomStream random({static_cast<std::uint64_t>(t)});
      for (int round = 0; round < 60; ++round) {
        const auto at = static_cast<std::size_t>(random.below(20));
        if (random.chance(0.3)) store.prefetch(files(at, at + 4));
        const auto pictures = store.get(requests(at, at + 3));
        for (std::size_t i = 0; i < 3; ++i)
          if (pictures[i]->original.width != 40 + static_cast<std::int64_t>(at + i)) ++wrong;
      }
    });
  }
  threads.clear();
  EXPECT_EQ(wrong, 0);
}

}  // namespace
}  // namespace thinkvg::image
