#include "thinkvg/image/picture.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <opencv2/core.hpp>
#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>
#include <optional>

#include "thinkvg/core/error.h"
#include "thinkvg/core/files.h"

namespace thinkvg::image {
namespace {

constexpr std::string_view kPngSignature("\x89PNG\r\n\x1a\n", 8);

bool is_jpeg(std::string_view encoded) { return encoded.starts_with("\xff\xd8\xff"); }

// The decoders fill what a cut file lacks with grey and say nothing, so the end mark is looked for here. A thumbnail in
// the EXIF segment has an end mark of its own: segments before the scan are skipped by their length.
bool jpeg_is_whole(std::string_view encoded) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(encoded[i]); };
  std::size_t at = 2;
  while (at + 4 <= encoded.size()) {
    if (byte(at) != 0xff) return false;
    const unsigned marker = byte(at + 1);
    if (marker == 0xff) {
      ++at;
      continue;
    }
    if (marker == 0xda) return encoded.find("\xff\xd9", at) != std::string_view::npos;
    if (marker == 0x01 || (marker >= 0xd0 && marker <= 0xd7)) {
      at += 2;
      continue;
    }
    at += 2 + (std::size_t{byte(at + 2)} << 8 | byte(at + 3));
  }
  return false;
}

bool png_is_whole(std::string_view encoded) { return encoded.rfind("IEND") != std::string_view::npos; }

// 8-bit with 1, 3 (BGR) or 4 (BGRA) channels -> RGB; transparency shows black.
Picture to_picture(const cv::Mat& decoded) {
  cv::Mat eight = decoded;
  if (decoded.depth() == CV_16U) decoded.convertTo(eight, CV_8U, 1.0 / 257.0);
  Picture picture;
  picture.width = eight.cols;
  picture.height = eight.rows;
  picture.pixels.resize(static_cast<std::size_t>(3) * eight.cols * eight.rows);
  cv::Mat rgb(eight.rows, eight.cols, CV_8UC3, picture.pixels.data());
  switch (eight.channels()) {
    case 1:
      cv::cvtColor(eight, rgb, cv::COLOR_GRAY2RGB);
      break;
    case 3:
      cv::cvtColor(eight, rgb, cv::COLOR_BGR2RGB);
      break;
    default: {
      std::uint8_t* out = picture.pixels.data();
      for (int y = 0; y < eight.rows; ++y) {
        const std::uint8_t* in = eight.ptr<std::uint8_t>(y);
        for (int x = 0; x < eight.cols; ++x, in += 4, out += 3) {
          for (int c = 0; c < 3; ++c) out[c] = static_cast<std::uint8_t>((in[2 - c] * in[3] + 127) / 255);
        }
      }
    }
  }
  return picture;
}

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

Picture decode_picture(std::string_view encoded, const std::string& name) {
  const bool jpeg = is_jpeg(encoded);
  if (!jpeg && !encoded.starts_with(kPngSignature)) {
    throw_failure("{}: expected a JPEG or PNG picture, but it {}", name,
                  encoded.empty() ? "is empty" : "starts with other bytes; convert it first");
  }
  if (jpeg ? !jpeg_is_whole(encoded) : !png_is_whole(encoded)) {
    throw_failure("{}: the {} data ends too early ({} bytes); the file is cut off, fetch it again", name,
                  jpeg ? "JPEG" : "PNG", encoded.size());
  }
  if (encoded.size() > static_cast<std::size_t>(std::numeric_limits<int>::max())) {
    throw_failure("{}: {} bytes are too many for one picture", name, encoded.size());
  }
  cv::Mat decoded;
  std::string reason;
  try {
    const cv::Mat raw(1, static_cast<int>(encoded.size()), CV_8U, const_cast<char*>(encoded.data()));
    // "Unchanged" keeps alpha and 16 bits but ignores the EXIF orientation, which matters for JPEG only.
    decoded = cv::imdecode(raw, jpeg ? cv::IMREAD_COLOR : cv::IMREAD_UNCHANGED);
  } catch (const cv::Exception& error) {
    reason = error.err;
  }
  if (decoded.empty()) {
    throw_failure("{}: the {} data is damaged and cannot be decoded{}{}", name, jpeg ? "JPEG" : "PNG",
                  reason.empty() ? "" : ": ", reason);
  }
  return to_picture(decoded);
}

Picture read_picture(const std::filesystem::path& file) { return decode_picture(read_file(file), file.string()); }

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
