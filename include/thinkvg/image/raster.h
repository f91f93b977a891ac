#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "thinkvg/core/settings.h"
#include "thinkvg/grounding/box.h"

namespace thinkvg::image {

// An 8-bit picture as the processors take it: planes one after the other, rows from top to bottom,
// pixels[(channel * height + y) * width + x]. A grey picture keeps its one channel: a third of the work for a
// radiograph, and the same result, as every step treats the channels alike.
struct Raster {
  std::int64_t width = 0;
  std::int64_t height = 0;
  std::int64_t channels = 0;  // 1: grey, 3: red, green, blue
  std::vector<std::uint8_t> pixels;

  grounding::ImageSize size() const { return {width, height}; }
  const std::uint8_t* plane(std::int64_t channel) const { return pixels.data() + channel * width * height; }
  std::uint8_t* plane(std::int64_t channel) { return pixels.data() + channel * width * height; }
};

// How picture files are read.
struct ReadOptions {
  // PIL's own limit: beyond it a file is taken for a decompression bomb. Checked on the header, before any decoding.
  std::int64_t max_pixels = 178'956'970;
  std::string dicom = "window";
  std::int64_t dicom_window = 0;

  void visit(SettingsVisitor& v) {
    v.setting("max_pixels", max_pixels,
              "Largest picture file that is decoded, in pixels; guards against decompression bombs.");
    v.setting("dicom", dicom,
              "How DICOM becomes 8 bits: window (rescale, then its VOI LUT or window), range (rescale, then from the "
              "least to the largest value), mimic_cxr_jpg (least to largest stored value, histogram equalized, as "
              "MIMIC-CXR-JPG was made).");
    v.setting("dicom_window", dicom_window, "Which of a DICOM file's several VOI windows or LUTs; the first is 0.");
  }
  // Throws std::invalid_argument naming the setting.
  void check() const;
};

// Reads JPEG (also progressive, CMYK), PNG (any bit depth, palette, alpha) or DICOM, told apart by content. The EXIF
// orientation is applied (JPEG's segment and PNG's eXIf chunk); alpha is drawn over black; 16 bits become 8 as
// round(v / 257). JPEG pixels equal those of Pillow (libjpeg-turbo's exact integer transform, smooth upsampling).
// Throws std::runtime_error naming the file (or `name`) and what is wrong: cut off, damaged, of an unknown kind, larger
// than the limit. A file that a lenient reader would fill up with grey is an error. Thread-safe.
Raster read_raster(const std::filesystem::path& file, const ReadOptions& options = {});
Raster decode_raster(std::string_view encoded, const std::string& name, const ReadOptions& options = {});

// As decode_raster, but a JPEG comes at a reduced size of ceil(side / n) pixels with the largest n out of 1, 2, 4, 8
// that leaves both sides at least `needed`: its transform gives the smaller picture at once, in less time. Not equal to
// reading and then resizing; tests/image/resize_test.cc states the difference. Other formats come at their full size.
Raster decode_raster_reduced(std::string_view encoded, const std::string& name, grounding::ImageSize needed,
                             const ReadOptions& options = {});

}  // namespace thinkvg::image
