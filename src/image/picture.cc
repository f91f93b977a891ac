#include "thinkvg/image/picture.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <opencv2/core.hpp>
#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>

#include "thinkvg/core/error.h"
#include "thinkvg/core/files.h"

namespace thinkvg::image {
namespace {

void check(const Picture& picture) {
  const auto wanted = static_cast<std::size_t>(std::max<std::int64_t>(picture.width, 0)) * 3 *
                      static_cast<std::size_t>(std::max<std::int64_t>(picture.height, 0));
  if (picture.width <= 0 || picture.height <= 0 || picture.pixels.size() != wanted) {
    throw_invalid("a picture of {} x {} pixels needs {} bytes of RGB, but it has {}", picture.width, picture.height,
                  wanted, picture.pixels.size());
  }
}

cv::Mat rgb_view(const Picture& picture) {
  check(picture);
  return cv::Mat(static_cast<int>(picture.height), static_cast<int>(picture.width), CV_8UC3,
                 const_cast<std::uint8_t*>(picture.pixels.data()));
}

bool is_grey(const Picture& picture) {
  for (std::size_t i = 0; i + 2 < picture.pixels.size(); i += 3) {
    if (picture.pixels[i] != picture.pixels[i + 1] || picture.pixels[i] != picture.pixels[i + 2]) return false;
  }
  return true;
}

std::string encode(const Picture& picture, const char* extension, const std::vector<int>& parameters) {
  const cv::Mat rgb = rgb_view(picture);
  cv::Mat stored;
  if (is_grey(picture)) {
    cv::extractChannel(rgb, stored, 0);
  } else {
    cv::cvtColor(rgb, stored, cv::COLOR_RGB2BGR);
  }
  std::vector<std::uint8_t> encoded;
  if (!cv::imencode(extension, stored, encoded, parameters)) {
    throw_failure("could not encode a picture of {} x {} pixels as {}", picture.width, picture.height, extension);
  }
  return {encoded.begin(), encoded.end()};
}

std::string lower_extension(const std::filesystem::path& file) {
  std::string extension = file.extension().string();
  std::transform(extension.begin(), extension.end(), extension.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return extension;
}

void draw_dashed(cv::Mat& canvas, cv::Point from, cv::Point to, const cv::Scalar& colour, int width) {
  const double length = std::hypot(to.x - from.x, to.y - from.y);
  const double dash = 4.0 * width;
  for (double at = 0; at < length; at += 2 * dash) {
    const double end = std::min(at + dash, length);
    const auto point = [&](double t) {
      return cv::Point(static_cast<int>(std::lround(from.x + (to.x - from.x) * t / length)),
                       static_cast<int>(std::lround(from.y + (to.y - from.y) * t / length)));
    };
    cv::line(canvas, point(at), point(end), colour, width);
  }
}

}  // namespace

Picture decode_picture(std::string_view encoded, const std::string& name, const ReadOptions& options) {
  return to_picture(decode_raster(encoded, name, options));
}

Picture read_picture(const std::filesystem::path& file, const ReadOptions& options) {
  return to_picture(read_raster(file, options));
}

Picture to_picture(const Raster& raster) {
  Picture picture{raster.width, raster.height, {}};
  picture.pixels.resize(static_cast<std::size_t>(3 * raster.width * raster.height));
  const std::int64_t count = raster.width * raster.height;
  for (std::int64_t c = 0; c < 3; ++c) {
    const std::uint8_t* from = raster.plane(raster.channels == 1 ? 0 : c);
    std::uint8_t* to = picture.pixels.data() + c;
    for (std::int64_t i = 0; i < count; ++i, to += 3) *to = from[i];
  }
  return picture;
}

Raster to_raster(const Picture& picture) {
  check(picture);
  Raster raster{picture.width, picture.height, is_grey(picture) ? 1 : 3, {}};
  const std::int64_t count = picture.width * picture.height;
  raster.pixels.resize(static_cast<std::size_t>(raster.channels * count));
  for (std::int64_t c = 0; c < raster.channels; ++c) {
    const std::uint8_t* from = picture.pixels.data() + c;
    std::uint8_t* to = raster.plane(c);
    for (std::int64_t i = 0; i < count; ++i, from += 3) to[i] = *from;
  }
  return raster;
}

std::string encode_png(const Picture& picture) { return encode(picture, ".png", {}); }

std::string encode_jpeg(const Picture& picture, int quality) {
  if (quality < 1 || quality > 100) throw_invalid("JPEG quality is 1 to 100, not {}", quality);
  return encode(picture, ".jpg", {cv::IMWRITE_JPEG_QUALITY, quality});
}

void write_picture(const Picture& picture, const std::filesystem::path& file) {
  const std::string extension = lower_extension(file);
  if (extension == ".png") {
    write_file_atomically(file, encode_png(picture));
  } else if (extension == ".jpg" || extension == ".jpeg") {
    write_file_atomically(file, encode_jpeg(picture));
  } else {
    throw_invalid("{}: a picture is written as .png, .jpg or .jpeg; choose one of these extensions", file.string());
  }
}

Picture pad_to_square(const Picture& picture, std::uint8_t fill) {
  check(picture);
  if (picture.width == picture.height) return picture;
  const std::int64_t side = std::max(picture.width, picture.height);
  Picture square{side, side, std::vector<std::uint8_t>(static_cast<std::size_t>(side * side * 3), fill)};
  const std::int64_t left = (side - picture.width) / 2;
  const std::int64_t top = (side - picture.height) / 2;
  for (std::int64_t y = 0; y < picture.height; ++y) {
    std::memcpy(square.pixels.data() + ((y + top) * side + left) * 3, picture.pixels.data() + y * picture.width * 3,
                static_cast<std::size_t>(picture.width * 3));
  }
  return square;
}

Picture thumbnail(const Picture& picture, std::int64_t max_side) {
  if (max_side < 1) throw_invalid("a thumbnail's longest side is at least 1 pixel, not {}", max_side);
  const cv::Mat rgb = rgb_view(picture);
  const std::int64_t longest = std::max(picture.width, picture.height);
  if (longest <= max_side) return picture;
  const auto scaled = [&](std::int64_t side) {
    return std::max<std::int64_t>(
        1, std::llround(static_cast<double>(side) * static_cast<double>(max_side) / static_cast<double>(longest)));
  };
  Picture small{scaled(picture.width), scaled(picture.height), {}};
  small.pixels.resize(static_cast<std::size_t>(small.width * small.height * 3));
  cv::Mat out(static_cast<int>(small.height), static_cast<int>(small.width), CV_8UC3, small.pixels.data());
  cv::resize(rgb, out, out.size(), 0, 0, cv::INTER_AREA);
  return small;
}

Picture draw_boxes(const Picture& picture, const std::vector<DrawnBox>& boxes) {
  Picture drawn = picture;
  cv::Mat canvas = rgb_view(drawn);
  const grounding::ImageGeometry geometry = picture.geometry();
  const auto longest = static_cast<double>(std::max(picture.width, picture.height));
  const int width = std::max(1, static_cast<int>(std::lround(longest / 250)));
  const double font_scale = std::max(0.3, longest / 1000);
  for (const DrawnBox& item : boxes) {
    const grounding::Box box = geometry.convert(item.box, grounding::BoxFrame::original());
    if (!box.is_valid()) continue;
    // A line far outside would overflow the rasteriser's integers.
    const auto pixel = [&](double value, std::int64_t extent) {
      return static_cast<int>(std::lround(std::clamp(value, -16.0, static_cast<double>(extent) + 16.0)));
    };
    const cv::Point a(pixel(box.x1, picture.width), pixel(box.y1, picture.height));
    const cv::Point b(pixel(box.x2, picture.width) - 1, pixel(box.y2, picture.height) - 1);
    const cv::Scalar colour(item.red, item.green, item.blue);
    if (item.dashed) {
      draw_dashed(canvas, a, {b.x, a.y}, colour, width);
      draw_dashed(canvas, {b.x, a.y}, b, colour, width);
      draw_dashed(canvas, b, {a.x, b.y}, colour, width);
      draw_dashed(canvas, {a.x, b.y}, a, colour, width);
    } else {
      cv::rectangle(canvas, a, b, colour, width);
    }
    if (item.label.empty()) continue;
    std::string label = item.label;
    std::replace_if(
        label.begin(), label.end(), [](unsigned char c) { return c < 32 || c > 126; }, '?');
    int baseline = 0;
    const cv::Size text = cv::getTextSize(label, cv::FONT_HERSHEY_SIMPLEX, font_scale, width, &baseline);
    const int left = std::clamp(a.x, 0, std::max(0, canvas.cols - text.width));
    const int bottom =
        std::clamp(a.y - 2 * width, text.height + baseline, std::max(text.height + baseline, canvas.rows - baseline));
    cv::rectangle(canvas, {left, bottom - text.height - 2}, {left + text.width, bottom + baseline}, cv::Scalar(0, 0, 0),
                  cv::FILLED);
    cv::putText(canvas, label, {left, bottom}, cv::FONT_HERSHEY_SIMPLEX, font_scale, colour, width, cv::LINE_AA);
  }
  return drawn;
}

}  // namespace thinkvg::image
