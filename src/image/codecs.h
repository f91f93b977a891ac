#pragma once

#include <string>
#include <string_view>

#include "thinkvg/image/raster.h"

// One decoder a format. Pixels come as they lie in the file: the EXIF orientation is not applied. The sizes were
// checked on the header before. Failures are std::runtime_error that name `name`.
namespace thinkvg::image {

// `reduction` 1, 2, 4 or 8: each side is ceil(side / reduction).
Raster decode_jpeg(std::string_view encoded, const std::string& name, int reduction);
Raster decode_png(std::string_view encoded, const std::string& name);

}  // namespace thinkvg::image
