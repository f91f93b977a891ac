#include "thinkvg/data/image_size.h"

#include "thinkvg/image/picture_info.h"

namespace thinkvg::data {

grounding::ImageSize read_image_size(const std::filesystem::path& file) {
  return image::read_picture_info(file).shown();
}

grounding::ImageSize parse_image_size(std::string_view encoded, std::string_view name) {
  return image::parse_picture_info(encoded, name).shown();
}

}  // namespace thinkvg::data
