#include "thinkvg/models/processor.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/oracle.h"
#include "thinkvg/core/files.h"
#include "thinkvg/image/resize.h"
#include "thinkvg/models/safetensors.h"

namespace thinkvg::models {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

std::map<std::string, at::Tensor> stored_state() {
  return read_safetensors(test::parity_data() / "qwen_processor/state.safetensors");
}

image::Picture to_picture(const at::Tensor& pixels) {
  const at::Tensor plain = pixels.contiguous();
  const auto* bytes = plain.const_data_ptr<std::uint8_t>();
  return {plain.size(1), plain.size(0), std::vector<std::uint8_t>(bytes, bytes + plain.numel())};
}

std::filesystem::path new_folder(const std::string& name) {
  const std::filesystem::path folder = std::filesystem::path(testing::TempDir()) / ("thinkvg_processor_" + name);
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  return folder;
}

TEST(ImageProcessorParity, PatchesEqualTransformersToTheBit) {
  const auto state = stored_state();
  int num_cases = 0;
  for (; state.contains(std::to_string(num_cases) + ":pixels"); ++num_cases) {
    const std::string prefix = std::to_string(num_cases) + ":";
    const auto* values = state.at(prefix + "options").const_data_ptr<std::int64_t>();
    ProcessorOptions options;
    options.patch_size = values[0];
    options.merge_size = values[1];
    options.temporal_patch_size = values[2];
    options.min_pixels = values[3];
    options.max_pixels = values[4];
    options.pad_to_square = false;
    const image::Picture picture = to_picture(state.at(prefix + "pixels"));
    const ProcessedPicture got = ImageProcessor(options).process(picture);
    const auto* grid = state.at(prefix + "grid").const_data_ptr<std::int64_t>();
    ASSERT_EQ(got.patches.grids, (std::vector<ImageGrid>{{grid[0], grid[1], grid[2]}})) << "case " << num_cases;
    const at::Tensor& reference = state.at(prefix + "values");
    ASSERT_EQ(got.patches.values.sizes(), reference.sizes()) << "case " << num_cases;
    EXPECT_TRUE(got.patches.values.equal(reference)) << "case " << num_cases << ": largest difference "
                                                     << (got.patches.values - reference).abs().max().item<float>();
    const grounding::BoxFrame frame =
        grounding::BoxFrame::stretch(grid[2] * options.patch_size, grid[1] * options.patch_size);
    EXPECT_EQ(got.frame, frame);
  }
  EXPECT_EQ(num_cases, 6);
}

TEST(ImageProcessorParity, SizesEqualTransformers) {
  ProcessorOptions options;
  options.pad_to_square = false;
  const ImageProcessor processor(options);
  const at::Tensor sizes = stored_state().at("sizes");
  ASSERT_GT(sizes.size(0), 150);
  for (std::int64_t i = 0; i < sizes.size(0); ++i) {
    const auto* row = sizes.const_data_ptr<std::int64_t>() + i * 4;
    EXPECT_EQ(processor.resized({row[1], row[0]}), (grounding::ImageSize{row[3], row[2]}))
        << row[1] << " x " << row[0] << " pixels";
  }
}

// CLIP's, LLaVA's, Gemma 3's and SigLIP's processors (torchvision back end), read from the files they write.
TEST(ImageProcessorParity, SquarePixelsEqualTransformersToTheBit) {
  const auto data = test::parity_data() / "square_processors";
  const auto state = read_safetensors(data / "state.safetensors");
  const Json cases = read_json_file(data / "cases.json");
  ASSERT_EQ(cases.size(), 45u);
  const auto folder = new_folder("square");
  write_file_atomically(folder / "config.json", R"({"vision_config": {"patch_size": 4}})");
  for (std::size_t i = 0; i < cases.size(); ++i) {
    write_file_atomically(folder / "preprocessor_config.json", cases.at(i).dump());
    ImageProcessor processor = ImageProcessor::load(folder);
    const image::Picture picture = to_picture(state.at(std::to_string(i) + ":pixels"));
    const at::Tensor wanted = state.at(std::to_string(i) + ":values");  // [3, 20, 20]
    const at::Tensor rows = wanted.view({3, 5, 4, 5, 4}).permute({1, 3, 0, 2, 4}).reshape({25, 48});
    for (int round = 0; round < 2; ++round) {
      const ProcessedPicture got = processor.process(picture);
      EXPECT_TRUE(got.patches.values.equal(rows))
          << "case " << i << ", round " << round << ", " << picture.width << " x " << picture.height
          << ": largest difference " << (got.patches.values - rows).abs().max().item<float>();
      EXPECT_EQ(got.patches.grids, (std::vector<ImageGrid>{{1, 5, 5}}));
      const image::PreparedPicture prepared =
          image::prepare_picture(image::encode_png(picture), "x", processor.rule(), {});
      EXPECT_TRUE(processor.process_prepared(prepared).patches.values.equal(rows)) << "case " << i;
      processor.save(folder);  // and from what this library writes
      processor = ImageProcessor::load(folder);
    }
  }
}

TEST(ImageProcessor, EachFamilyHasItsFrameOfBoxes) {
  const auto frame_of = [](const std::string& config, const std::string& processor) {
    const auto folder = new_folder("frames");
    write_file_atomically(folder / "config.json", config);
    write_file_atomically(folder / "preprocessor_config.json", processor);
    return ImageProcessor::load(folder).frame({200, 100}).name();
  };
  const std::string tower = R"("vision_config": {"patch_size": 14})";
  EXPECT_EQ(frame_of(R"({"model_type": "qwen2_5_vl"})", "{}"), "stretch-196x112");
  EXPECT_EQ(frame_of(R"({"model_type": "qwen2_vl"})", "{}"), "thousand");
  EXPECT_EQ(frame_of(R"({"model_type": "qwen3_vl"})", R"({"patch_size": 16, "pad_to_square": true})"),
            "letterbox-1000");
  EXPECT_EQ(frame_of(R"({"model_type": "gemma3", )" + tower + "}",
                     R"({"image_processor_type": "Gemma3ImageProcessor", "size": {"height": 896, "width": 896}})"),
            "thousand");
  EXPECT_EQ(frame_of(R"({"model_type": "llava", )" + tower + "}", R"({"size": 336, "crop_size": 336})"), "crop-336");
  EXPECT_EQ(frame_of(R"({"model_type": "llava", )" + tower + "}", R"({"size": 336, "crop_size": 336, "do_pad": true})"),
            "letterbox-336");
}

// LLaVA's own code has no file of its processor: CLIP's, padded with the mean colour.
TEST(ImageProcessor, ReleasedLlavaPadsWithTheMeanColour) {
  const auto folder = std::filesystem::path(THINKVG_TEST_DATA) / "llava_med";
  const ImageProcessor padding = ImageProcessor::load(folder / "v1_5");
  EXPECT_EQ(padding.frame({30, 20}).name(), "letterbox-12");
  EXPECT_EQ(padding.grid({30, 20}), (ImageGrid{1, 3, 3}));
  const ProcessedPicture got = padding.process({2, 12, std::vector<std::uint8_t>(72, 255)});
  const at::Tensor corner = got.patches.values[0].view({3, 4, 4}).select(2, 0).select(1, 0);
  EXPECT_LE((corner - at::tensor({122.0, 116.0, 104.0})
                          .div(255)
                          .sub(at::tensor({0.48145466, 0.4578275, 0.40821073}))
                          .div(at::tensor({0.26862954, 0.26130258, 0.27577711})))
                .abs()
                .max()
                .item<double>(),
            1e-6);
}

// The resize of image/ against LibTorch's, which torchvision and with it transformers call.
TEST(ImageProcessorParity, ResizeEqualsLibTorchToTheBit) {
  at::manual_seed(3);
  const at::Tensor sizes = at::randint(1, 420, {60, 4}, at::kLong);
  for (std::int64_t i = 0; i < 63; ++i) {
    // The last ones are large, as radiographs are.
    const auto* row = sizes.const_data_ptr<std::int64_t>() + std::min<std::int64_t>(i, 59) * 4;
    const std::int64_t height = i < 60 ? row[0] : 1528, width = i < 60 ? row[1] : 1272 + i;
    const std::int64_t new_height = i < 60 ? row[2] : 28 * (i - 40), new_width = i < 60 ? row[3] : 28 * (i - 50);
    const at::Tensor pixels = at::randint(0, 256, {1, 3, height, width}, at::kByte);
    const auto* bytes = pixels.const_data_ptr<std::uint8_t>();
    const image::Raster raster{width, height, 3, {bytes, bytes + pixels.numel()}};
    for (const auto filter : {image::ResizeFilter::bicubic, image::ResizeFilter::bilinear}) {
      const bool cubic = filter == image::ResizeFilter::bicubic;
      const at::Tensor wanted = (cubic ? at::_upsample_bicubic2d_aa(pixels, {new_height, new_width}, false)
                                       : at::_upsample_bilinear2d_aa(pixels, {new_height, new_width}, false))
                                    .contiguous();
      const image::Raster got = image::resize(raster, {new_width, new_height}, filter);
      ASSERT_EQ(got.pixels.size(), static_cast<std::size_t>(wanted.numel()));
      EXPECT_TRUE(std::equal(got.pixels.begin(), got.pixels.end(), wanted.const_data_ptr<std::uint8_t>()))
          << width << " x " << height << " to " << new_width << " x " << new_height << (cubic ? ", bicubic" : "");
    }
  }
}

TEST(ImageProcessor, PreparedPicturesOnlyNeedCutting) {
  const image::Picture picture = to_picture(stored_state().at("2:pixels"));
  for (const bool pad : {false, true}) {
    ProcessorOptions options;
    options.pad_to_square = pad;
    options.max_pixels = 100 * 784;
    const ImageProcessor processor(options);
    const image::PreparedPicture prepared =
        image::prepare_picture(image::encode_png(picture), "x", processor.rule(), {});
    EXPECT_EQ(prepared.original, (grounding::ImageSize{picture.width, picture.height}));
    const ProcessedPicture got = processor.process_prepared(prepared), wanted = processor.process(picture);
    EXPECT_TRUE(got.patches.values.equal(wanted.patches.values));
    EXPECT_EQ(got.frame, wanted.frame);
    EXPECT_THROW(processor.process_prepared({image::to_raster(picture), prepared.original}), std::invalid_argument);
  }
}

TEST(ImageProcessor, LetterboxComesBeforeResizing) {
  const image::Picture picture = to_picture(stored_state().at("2:pixels"));
  ProcessorOptions options;
  options.patch_size = 4;
  options.min_pixels = 64;
  options.max_pixels = 4096;
  const ImageProcessor padding(options);
  options.pad_to_square = false;
  const ImageProcessor plain(options);
  const ProcessedPicture got = padding.process(picture);
  EXPECT_EQ(got.frame.name(), "letterbox-64");
  EXPECT_EQ(padding.resized({picture.width, picture.height}), (grounding::ImageSize{64, 64}));
  EXPECT_EQ(got.patches.grids, (std::vector<ImageGrid>{{1, 16, 16}}));
  EXPECT_TRUE(got.patches.values.equal(plain.process(image::pad_to_square(picture)).patches.values));
  EXPECT_EQ(plain.process(picture).frame.name(), "stretch-48x72");
}

TEST(ImageProcessor, TheSquareOf336PixelsStaysAsItIs) {
  const ImageProcessor processor{ProcessorOptions{}};
  EXPECT_EQ(processor.resized({336, 336}), (grounding::ImageSize{336, 336}));
}

TEST(ImageProcessor, SavedOptionsComeBack) {
  const auto folder = new_folder("saved");
  ProcessorOptions options;
  options.patch_size = 7;
  options.min_pixels = 196;
  options.max_pixels = 12544;
  options.image_mean = {0.1, 0.2, 0.3};
  ImageProcessor(options).save(folder);
  const ProcessorOptions got = ImageProcessor::load(folder).options();
  EXPECT_EQ(got.patch_size, 7);
  EXPECT_EQ(got.min_pixels, 196);
  EXPECT_EQ(got.max_pixels, 12544);
  EXPECT_EQ(got.image_mean, options.image_mean);
  EXPECT_TRUE(got.pad_to_square);
}

TEST(ImageProcessor, ReadsPublishedFiles) {
  const auto folder = new_folder("published");
  write_file_atomically(folder / "preprocessor_config.json",
                        R"({"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2,
                            "merge_size": 2, "image_mean": [0.48145466, 0.4578275, 0.40821073],
                            "image_std": [0.26862954, 0.26130258, 0.27577711],
                            "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor"})");
  const ProcessorOptions got = ImageProcessor::load(folder).options();
  EXPECT_EQ(got.max_pixels, 12845056);
  EXPECT_FALSE(got.pad_to_square) << "transformers does not pad";
}

TEST(ImageProcessor, BadInputIsNamed) {
  const ImageProcessor processor{ProcessorOptions{}};
  EXPECT_THAT([&] { processor.resized({0, 5}); }, ThrowsMessage<std::invalid_argument>(HasSubstr("0 x 5")));
  EXPECT_THAT(
      [&] {
        processor.process({4, 4, {1, 2, 3}});
      },
      ThrowsMessage<std::invalid_argument>(HasSubstr("4 x 4 pixels needs 48 bytes of RGB, but it has 3")));
  ProcessorOptions flat;
  flat.pad_to_square = false;
  EXPECT_THAT(
      [&] {
        ImageProcessor(flat).resized({2010, 10});
      },
      ThrowsMessage<std::invalid_argument>(HasSubstr("at most 200 times")));
  ProcessorOptions reversed;
  reversed.min_pixels = 2000000;
  EXPECT_THAT([&] { ImageProcessor{reversed}; }, ThrowsMessage<std::invalid_argument>(HasSubstr("above max_pixels")));
  const auto folder = new_folder("bad");
  EXPECT_THAT([&] { ImageProcessor::load(folder); },
              ThrowsMessage<std::runtime_error>(HasSubstr("preprocessor_config.json")));
  write_file_atomically(folder / "preprocessor_config.json", R"({"patch_size": "14"})");
  EXPECT_THAT([&] { ImageProcessor::load(folder); },
              ThrowsMessage<std::runtime_error>(HasSubstr("patch_size is \"14\", expected an integer")));
}

}  // namespace
}  // namespace thinkvg::models
