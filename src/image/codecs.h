#pragma once

#include <string>
#include <string_view>

#include "image/cpu/resize_kernel.h"
#include "thinkvg/image/raster.h"

// One decoder a format. Pixels come as they lie in the file: the EXIF orientation is not applied. The sizes were
// checked on the header before. Failures are std::runtime_error that name `name`.
namespace thinkvg::image {

// Takes a picture's rows from top to bottom as they are decoded.
class RowSink {
 public:
  virtual ~RowSink() = default;
  virtual void start(grounding::ImageSize size, std::int64_t channels) = 0;
  // The next rows of a channel, valid during the call only.
  virtual void take(std::int64_t channel, const cpu::Rows& rows) = 0;
};

// `reduction` 1, 2, 4 or 8: each side is ceil(side / reduction).
struct EncodedJpeg {
  std::string_view bytes;
  const std::string& name;
  int reduction = 1;
};
void decode_jpeg(const EncodedJpeg& jpeg, RowSink& sink);
Raster decode_png(std::string_view encoded, const std::string& name);

// Hands over the rows that decode_raster (decode_raster_reduced, where `needed` is a size) would return, if they can be
// had one after the other: a JPEG that is shown as it is stored. Else does nothing and returns false.
struct RowOptions {
  ReadOptions read;
  grounding::ImageSize needed;  // 0 x 0: all pixels
};
bool decode_rows(std::string_view encoded, const std::string& name, const RowOptions& options, RowSink& sink);

}  // namespace thinkvg::image
