#include "thinkvg/image/picture_info.h"

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <string>
#include <utility>

#include "image/dicom_header.h"
#include "thinkvg/core/error.h"

namespace thinkvg::image {
namespace {

using grounding::ImageSize;

// Random access to an encoded picture, in memory or in a file, without reading all of it.
class ByteSource {
 public:
  virtual ~ByteSource() = default;
  // The bytes [offset, offset + count); shorter at the end.
  virtual std::string read(std::uint64_t offset, std::size_t count) = 0;
  virtual std::string read_all() = 0;
};

class MemorySource final : public ByteSource {
 public:
  explicit MemorySource(std::string_view bytes) : bytes_(bytes) {}
  std::string read_all() override { return std::string(bytes_); }
  std::string read(std::uint64_t offset, std::size_t count) override {
    if (offset >= bytes_.size()) return {};
    return std::string(bytes_.substr(offset, count));
  }

 private:
  std::string_view bytes_;
};

class FileSource final : public ByteSource {
 public:
  explicit FileSource(const std::filesystem::path& file) : stream_(file, std::ios::binary) {
    if (!stream_) throw_failure("cannot open picture {}: {}", file.string(), std::strerror(errno));
  }
  std::string read(std::uint64_t offset, std::size_t count) override {
    stream_.clear();
    stream_.seekg(static_cast<std::streamoff>(offset));
    std::string bytes(count, '\0');
    stream_.read(bytes.data(), static_cast<std::streamsize>(count));
    bytes.resize(static_cast<std::size_t>(stream_.gcount()));
    return bytes;
  }
  std::string read_all() override {
    stream_.clear();
    stream_.seekg(0, std::ios::end);
    return read(0, static_cast<std::size_t>(stream_.tellg()));
  }

 private:
  std::ifstream stream_;
};

std::uint8_t byte_at(std::string_view bytes, std::size_t i) { return static_cast<std::uint8_t>(bytes[i]); }

std::uint32_t big_endian(std::string_view bytes, std::size_t offset, std::size_t count) {
  std::uint32_t value = 0;
  for (std::size_t i = 0; i < count; ++i) value = value << 8 | byte_at(bytes, offset + i);
  return value;
}

std::uint32_t little_endian(std::string_view bytes, std::size_t offset, std::size_t count) {
  std::uint32_t value = 0;
  for (std::size_t i = count; i-- > 0;) value = value << 8 | byte_at(bytes, offset + i);
  return value;
}

// Orientation (1 to 8) out of a TIFF header with its first directory; 1 if it says nothing readable.
int tiff_orientation(std::string_view tiff) {
  if (tiff.size() < 8) return 1;
  const bool little = tiff.substr(0, 2) == "II";
  if (!little && tiff.substr(0, 2) != "MM") return 1;
  const auto number = [&](std::size_t offset, std::size_t count) {
    return little ? little_endian(tiff, offset, count) : big_endian(tiff, offset, count);
  };
  const std::size_t directory = number(4, 4);
  if (directory > tiff.size() || tiff.size() - directory < 2) return 1;
  const std::size_t entries = number(directory, 2);
  for (std::size_t i = 0; i < entries; ++i) {
    const std::size_t entry = directory + 2 + 12 * i;
    if (entry + 12 > tiff.size()) return 1;
    constexpr std::uint32_t kOrientation = 0x0112;
    if (number(entry, 2) != kOrientation) continue;
    const std::uint32_t value = number(entry + 8, 2);
    return value >= 1 && value <= 8 ? static_cast<int>(value) : 1;
  }
  return 1;
}

ImageSize checked(ImageSize size, std::string_view name) {
  if (size.width < 1 || size.height < 1) {
    throw_failure("picture {} says that it is {} x {} pixels; the file is damaged", name, size.width, size.height);
  }
  return size;
}

PictureInfo png_info(ByteSource& source, std::string_view name) {
  const std::string head = source.read(8, 16);  // chunk length, type, width, height
  if (head.size() < 16 || std::string_view(head).substr(4, 4) != "IHDR") {
    throw_failure("picture {} is a PNG without a readable header", name);
  }
  PictureInfo info{PictureFormat::png, checked({big_endian(head, 8, 4), big_endian(head, 12, 4)}, name)};
  // The orientation may stand before or behind the pixels. A file that is cut off is noticed when it is decoded.
  for (std::uint64_t offset = 8;;) {
    const std::string chunk = source.read(offset, 8);
    if (chunk.size() < 8 || chunk.ends_with("IEND")) return info;
    const std::uint32_t length = big_endian(chunk, 0, 4);
    if (chunk.ends_with("eXIf")) {
      constexpr std::uint32_t kLargestExif = 1 << 16;
      info.orientation = tiff_orientation(source.read(offset + 8, std::min(length, kLargestExif)));
      return info;
    }
    offset += 12 + std::uint64_t{length};
  }
}

PictureInfo jpeg_info(ByteSource& source, std::string_view name) {
  int orientation = 1;
  std::uint64_t offset = 2;
  while (true) {
    std::string head = source.read(offset, 4);
    if (head.size() < 4) throw_failure("picture {} ends before its JPEG frame header; the file is cut off", name);
    if (byte_at(head, 0) != 0xFF) throw_failure("picture {} has no JPEG marker at byte {}", name, offset);
    const std::uint8_t marker = byte_at(head, 1);
    if (marker == 0xFF) {  // fill byte
      ++offset;
      continue;
    }
    if (marker == 0x01 || (marker >= 0xD0 && marker <= 0xD8)) {  // markers without a body
      offset += 2;
      continue;
    }
    const std::uint32_t length = big_endian(head, 2, 2);
    // SOF0 to SOF15 without DHT, JPG and DAC, which lie among them.
    if (marker >= 0xC0 && marker <= 0xCF && marker != 0xC4 && marker != 0xC8 && marker != 0xCC) {
      const std::string body = source.read(offset + 4, 5);
      if (body.size() < 5) throw_failure("picture {} ends before its JPEG frame header; the file is cut off", name);
      return {PictureFormat::jpeg, checked({big_endian(body, 3, 2), big_endian(body, 1, 2)}, name), orientation};
    }
    if (marker == 0xD9 || marker == 0xDA || length < 2) {
      throw_failure("picture {} is a JPEG without a frame header; the file is damaged", name);
    }
    if (marker == 0xE1) {
      const std::string body = source.read(offset + 4, length - 2);
      constexpr std::string_view kExif("Exif\0\0", 6);
      if (body.starts_with(kExif)) orientation = tiff_orientation(std::string_view(body).substr(kExif.size()));
    }
    offset += 2 + length;
  }
}

PictureInfo info_of(ByteSource& source, std::string_view name) {
  const std::string head = source.read(0, 132);
  if (head.starts_with("\x89PNG\r\n\x1a\n")) return png_info(source, name);
  if (head.starts_with("\xFF\xD8\xFF")) return jpeg_info(source, name);
  if (is_dicom(head)) return {PictureFormat::dicom, check_dicom(source.read_all(), name).size};
  throw_failure("{}: expected a JPEG, PNG or DICOM picture, but it {}", name,
                head.empty() ? "is empty" : "starts with other bytes; convert it first");
}

}  // namespace

ImageSize PictureInfo::shown() const { return orientation >= 5 ? ImageSize{stored.height, stored.width} : stored; }

PictureInfo read_picture_info(const std::filesystem::path& file) {
  FileSource source(file);
  return info_of(source, file.string());
}

PictureInfo parse_picture_info(std::string_view encoded, std::string_view name) {
  MemorySource source(encoded);
  return info_of(source, name);
}

}  // namespace thinkvg::image
