#include "thinkvg/models/image_encoder.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/grad_mode.h>

#include "tests/support/temporary_folder.h"
#include "tests/support/tiny_run.h"
#include "thinkvg/core/files.h"

namespace thinkvg::models {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

std::vector<fs::path> some_pictures(std::size_t count) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::recursive_directory_iterator(test::tiny_run().images))
    if (entry.is_regular_file()) files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  files.resize(count);
  return files;
}

PictureCache::Options with_folder(const fs::path& folder) {
  PictureCache::Options options;
  options.pictures.feature_cache = folder.string();
  return options;
}

std::int64_t num_stored(const fs::path& folder) {
  std::int64_t count = 0;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) count += entry.is_regular_file() ? 1 : 0;
  return count;
}

TEST(PictureCache, GivesWhatTheProcessorGives) {
  const ModelBundle bundle = load_bundle(test::tiny_run().model);
  const auto files = some_pictures(5);
  for (const bool encoded : {false, true}) {
    PictureCache::Options options;
    options.pictures.keep_encoded = encoded;
    PictureCache cache(bundle.processor, options);
    cache.prefetch(files);
    for (int pass = 0; pass < 2; ++pass) {
      const auto pictures = cache.get(files);
      for (std::size_t i = 0; i < files.size(); ++i) {
        const image::Picture picture = image::read_picture(files[i]);
        const ProcessedPicture wanted = bundle.processor->process(picture);
        EXPECT_TRUE(pictures[i]->processed.patches.values.equal(wanted.patches.values));
        EXPECT_EQ(pictures[i]->original, (grounding::ImageSize{picture.width, picture.height}));
      }
    }
  }
}

TEST(PictureCache, FailuresNameTheRow) {
  const ModelBundle bundle = load_bundle(test::tiny_run().model);
  const test::TemporaryFolder folder;
  write_file_atomically(folder / "bad.jpg", "no picture");
  PictureCache cache(bundle.processor, {});
  EXPECT_THAT(
      [&] {
        cache.get({image::PictureRequest{folder / "bad.jpg", "sample 12"}});
      },
      ::testing::ThrowsMessage<std::runtime_error>(HasSubstr("sample 12: ")));
}

TEST(FeatureCache, FeaturesOfTheFolderEqualTheTowers) {
  const ModelBundle bundle = load_bundle(test::tiny_run().model);
  const auto files = some_pictures(6);
  const test::TemporaryFolder folder;
  ImageEncoder plain(bundle, {}), first(bundle, with_folder(folder.path()));
  const auto wanted = plain.encode(files);
  first.encode(files);
  EXPECT_EQ(num_stored(folder.path()), 6);
  ImageEncoder second(bundle, with_folder(folder.path()));
  const auto got = second.encode(files);
  for (std::size_t i = 0; i < files.size(); ++i) {
    EXPECT_TRUE(got[i]->features.equal(wanted[i]->features));
    EXPECT_EQ(got[i]->frame, wanted[i]->frame);
    EXPECT_EQ(got[i]->original, wanted[i]->original);
    EXPECT_EQ(got[i]->grid.h, wanted[i]->grid.h);
  }
  // They came from the folder: the same picture under another name needs no tower either.
  fs::copy_file(files[0], folder / "copy.bin");
  second.encode(std::vector<fs::path>{folder / "copy.bin"});
  EXPECT_EQ(num_stored(folder.path()), 7) << "six features and the copied picture itself";
}

TEST(FeatureCache, AnythingThatChangesTheFeaturesIsAnotherEntry) {
  const test::TemporaryFolder folder;
  const auto files = some_pictures(2);
  ModelBundle bundle = load_bundle(test::tiny_run().model);
  ImageEncoder encoder(bundle, with_folder(folder.path()));
  const at::Tensor before = encoder.encode(files)[0]->features;
  EXPECT_EQ(num_stored(folder.path()), 2);
  {
    const at::NoGradGuard no_grad;
    for (const auto& item : bundle.model->named_parameters())
      if (bundle.model->part_of(item.key()) == ModelPart::vision) {
        item.value().add_(0.125);
        break;
      }
  }
  encoder.clear();
  EXPECT_FALSE(encoder.encode(files)[0]->features.equal(before));
  EXPECT_EQ(num_stored(folder.path()), 4) << "other weights";
  ProcessorOptions processor = bundle.processor->options();
  processor.image_mean = {0.5, 0.5, 0.5};
  bundle.processor = std::make_shared<const ImageProcessor>(processor);
  ImageEncoder other(bundle, with_folder(folder.path()));
  other.encode(files);
  EXPECT_EQ(num_stored(folder.path()), 6) << "other settings";
  // Blind features never reach the folder.
  other.set_blank(128);
  other.encode(files);
  EXPECT_EQ(num_stored(folder.path()), 6);
}

TEST(FeatureCache, DamagedEntriesAreMadeAgain) {
  const test::TemporaryFolder folder;
  const auto files = some_pictures(1);
  const ModelBundle bundle = load_bundle(test::tiny_run().model);
  const at::Tensor wanted = ImageEncoder(bundle, with_folder(folder.path())).encode(files)[0]->features;
  fs::path stored;
  for (const auto& entry : fs::recursive_directory_iterator(folder.path()))
    if (entry.is_regular_file()) stored = entry.path();
  write_file_atomically(stored, "half a fi");
  EXPECT_TRUE(ImageEncoder(bundle, with_folder(folder.path())).encode(files)[0]->features.equal(wanted));
  EXPECT_GT(fs::file_size(stored), 9u);
}

TEST(FeatureCache, MemoryIsBoundedAndResultsStay) {
  const auto files = some_pictures(8);
  const ModelBundle bundle = load_bundle(test::tiny_run().model);
  PictureCache::Options none;
  none.pictures.feature_cache_mb = 0;
  ImageEncoder small(bundle, none), large(bundle, {});
  for (int pass = 0; pass < 2; ++pass) {
    const auto a = small.encode(files), b = large.encode(files);
    for (std::size_t i = 0; i < files.size(); ++i) EXPECT_TRUE(a[i]->features.equal(b[i]->features));
  }
}

}  // namespace
}  // namespace thinkvg::models
