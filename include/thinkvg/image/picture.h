#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "thinkvg/grounding/geometry.h"
#include "thinkvg/image/raster.h"

namespace thinkvg::image {

// An 8-bit RGB picture, rows from top to bottom, pixels interleaved: pixels[(y * width + x) * 3 + channel].
struct Picture {
  std::int64_t width = 0;
  std::int64_t height = 0;
  std::vector<std::uint8_t> pixels;

  grounding::ImageGeometry geometry() const { return grounding::ImageGeometry({width, height}); }
};

// Reads JPEG, PNG or DICOM as read_raster does, grey made RGB. Throws std::runtime_error naming the file and what is
// wrong. Thread-safe.
Picture read_picture(const std::filesystem::path& file, const ReadOptions& options = {});
Picture decode_picture(std::string_view encoded, const std::string& name, const ReadOptions& options = {});

// Between pixels side by side and planes; a picture whose pixels are all grey becomes one plane.
Picture to_picture(const Raster& raster);
Raster to_raster(const Picture& picture);

// Writes PNG or JPEG (quality 90) by the file's extension, atomically.
void write_picture(const Picture& picture, const std::filesystem::path& file);
std::string encode_png(const Picture& picture);
std::string encode_jpeg(const Picture& picture, int quality = 90);

// Pads to a centred square with `fill` (grey level for all channels): what a letterbox frame describes.
Picture pad_to_square(const Picture& picture, std::uint8_t fill = 0);

// Smaller copy for people to look at (area averaging), longest side at most `max_side`.
Picture thumbnail(const Picture& picture, std::int64_t max_side);

struct DrawnBox {
  grounding::Box box;  // any frame
  std::string label;
  std::uint8_t red = 0, green = 0, blue = 0;
  bool dashed = false;
};
// Draws boxes with their labels; line width follows the picture's size.
Picture draw_boxes(const Picture& picture, const std::vector<DrawnBox>& boxes);

}  // namespace thinkvg::image
