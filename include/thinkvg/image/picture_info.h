#pragma once

#include <filesystem>
#include <string_view>

#include "thinkvg/grounding/box.h"

namespace thinkvg::image {

enum class PictureFormat { jpeg, png, dicom };

// What a picture's header says. No pixel is decoded, and a file is read only up to what is needed.
struct PictureInfo {
  PictureFormat format = PictureFormat::jpeg;
  grounding::ImageSize stored;  // as the pixels lie in the file
  int orientation = 1;          // EXIF (JPEG's segment, PNG's eXIf chunk), 1 to 8; 5 to 8 turn by a quarter

  // As the picture is shown, and as read_picture gives it: what the boxes of its questions refer to.
  grounding::ImageSize shown() const;
};

// Throw std::runtime_error naming the file (or `name`) and what is wrong with it. Thread-safe.
PictureInfo read_picture_info(const std::filesystem::path& file);
PictureInfo parse_picture_info(std::string_view encoded, std::string_view name);

}  // namespace thinkvg::image
