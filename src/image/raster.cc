#include "thinkvg/image/raster.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "image/codecs.h"
#include "thinkvg/core/error.h"
#include "thinkvg/core/files.h"
#include "thinkvg/image/dicom.h"
#include "thinkvg/image/picture_info.h"

namespace thinkvg::image {
namespace {

// EXIF's eight ways a stored picture is shown: the source of each shown pixel.
Raster oriented(Raster stored, int orientation) {
  if (orientation <= 1) return stored;
  const std::int64_t width = stored.width, height = stored.height;
  const bool turned = orientation >= 5;
  Raster shown{turned ? height : width, turned ? width : height, stored.channels, {}};
  shown.pixels.resize(stored.pixels.size());
  const bool from_right = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
  const bool from_bottom = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
  for (std::int64_t c = 0; c < stored.channels; ++c) {
    std::uint8_t* out = shown.plane(c);
    for (std::int64_t y = 0; y < shown.height; ++y) {
      for (std::int64_t x = 0; x < shown.width; ++x) {
        const std::int64_t column = turned ? y : x, row = turned ? x : y;
        *out++ = stored.plane(
            c)[(from_bottom ? height - 1 - row : row) * width + (from_right ? width - 1 - column : column)];
      }
    }
  }
  return shown;
}

// Keeps the rows.
class RasterSink final : public RowSink {
 public:
  void start(grounding::ImageSize size, std::int64_t channels) override {
    raster_ = {size.width, size.height, channels, {}};
    raster_.pixels.resize(static_cast<std::size_t>(size.width * size.height * channels));
    for (std::int64_t c = 0; c < channels; ++c) next_[static_cast<std::size_t>(c)] = raster_.plane(c);
  }
  void take(std::int64_t channel, const cpu::Rows& rows) override {
    std::uint8_t*& to = next_[static_cast<std::size_t>(channel)];
    for (std::int64_t y = 0; y < rows.count; ++y, to += raster_.width)
      std::memcpy(to, rows.values + y * rows.stride, static_cast<std::size_t>(raster_.width));
  }
  Raster finish() { return std::move(raster_); }

 private:
  Raster raster_;
  std::array<std::uint8_t*, 3> next_{};
};

// The header of a picture that may be decoded.
PictureInfo checked_info(std::string_view encoded, const std::string& name, const ReadOptions& options) {
  options.check();
  const PictureInfo info = parse_picture_info(encoded, name);
  // Sides are below 2^32, so the product of a hostile header may pass 2^63.
  if (info.stored.width > options.max_pixels / info.stored.height) {
    throw_failure(
        "{}: {} x {} pixels are more than max_pixels = {}; if the file is to be trusted, raise that setting, else "
        "leave it out",
        name, info.stored.width, info.stored.height, options.max_pixels);
  }
  return info;
}

int reduction_for(grounding::ImageSize shown, grounding::ImageSize needed) {
  int reduction = 1;
  if (needed.width < 1 || needed.height < 1) return reduction;
  while (reduction < 8 && shown.width / (2 * reduction) >= needed.width &&
         shown.height / (2 * reduction) >= needed.height)
    reduction *= 2;
  return reduction;
}

Raster decode(std::string_view encoded, const std::string& name, const RowOptions& options) {
  const PictureInfo info = checked_info(encoded, name, options.read);
  switch (info.format) {
    case PictureFormat::dicom:
      return decode_dicom(encoded, name, options.read);
    case PictureFormat::png:
      return oriented(decode_png(encoded, name), info.orientation);
    case PictureFormat::jpeg:
      break;
  }
  RasterSink sink;
  decode_jpeg({encoded, name, reduction_for(info.shown(), options.needed)}, sink);
  return oriented(sink.finish(), info.orientation);
}

}  // namespace

void ReadOptions::check() const {
  if (max_pixels < 1) throw_invalid("max_pixels must be at least 1, but is {}", max_pixels);
  if (dicom != "window" && dicom != "range" && dicom != "mimic_cxr_jpg") {
    throw_invalid("dicom is '{}'; expected window, range or mimic_cxr_jpg", dicom);
  }
  if (dicom_window < 0) throw_invalid("dicom_window must be at least 0, but is {}", dicom_window);
}

Raster decode_raster(std::string_view encoded, const std::string& name, const ReadOptions& options) {
  return decode(encoded, name, {options, {}});
}

Raster decode_raster_reduced(std::string_view encoded, const std::string& name, grounding::ImageSize needed,
                             const ReadOptions& options) {
  return decode(encoded, name, {options, needed});
}

bool decode_rows(std::string_view encoded, const std::string& name, const RowOptions& options, RowSink& sink) {
  const PictureInfo info = checked_info(encoded, name, options.read);
  if (info.format != PictureFormat::jpeg || info.orientation > 1) return false;
  decode_jpeg({encoded, name, reduction_for(info.shown(), options.needed)}, sink);
  return true;
}

Raster read_raster(const std::filesystem::path& file, const ReadOptions& options) {
  return decode_raster(read_file(file), file.string(), options);
}

}  // namespace thinkvg::image
