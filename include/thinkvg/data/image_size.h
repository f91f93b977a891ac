#pragma once

#include <filesystem>
#include <string_view>

#include "thinkvg/grounding/box.h"

namespace thinkvg::data {

// Width and height of a JPEG, PNG or DICOM picture as it is shown (EXIF orientation applied, as read_picture does), out
// of the file's header alone: no pixel is decoded. Throws std::runtime_error naming the file and what is wrong.
// Thread-safe.
grounding::ImageSize read_image_size(const std::filesystem::path& file);

// The same for an encoded picture in memory; `name` is for messages.
grounding::ImageSize parse_image_size(std::string_view encoded, std::string_view name);

}  // namespace thinkvg::data
