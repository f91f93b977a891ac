#include "thinkvg/data/image_size.h"

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <string>
#include <utility>

#include "thinkvg/core/error.h"

namespace thinkvg::data {
namespace {

using grounding::ImageSize;

// Random access to an encoded picture, in memory or in a file, without reading all of it.
class ByteSource {
 public:
  virtual ~ByteSource() = default;
  // The bytes [offset, offset + count); shorter at the end.
  virtual std::string read(std::uint64_t offset, std::size_t count) = 0;
};

class MemorySource final : public ByteSource {
 public:
  explicit MemorySource(std::string_view bytes) : bytes_(bytes) {}
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

ImageSize oriented(ImageSize size, int orientation) {
  // 5 to 8 turn the picture by a quarter.
  if (orientation >= 5) std::swap(size.width, size.height);
  return size;
}

ImageSize checked(ImageSize size, std::string_view name) {
  if (size.width < 1 || size.height < 1) {
    throw_failure("picture {} says that it is {} x {} pixels; the file is damaged", name, size.width, size.height);
  }
  return size;
}

ImageSize png_size(ByteSource& source, std::string_view name) {
  const std::string head = source.read(8, 16);  // chunk length, type, width, height
  if (head.size() < 16 || std::string_view(head).substr(4, 4) != "IHDR") {
    throw_failure("picture {} is a PNG without a readable header", name);
  }
  return checked({big_endian(head, 8, 4), big_endian(head, 12, 4)}, name);
}

ImageSize jpeg_size(ByteSource& source, std::string_view name) {
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
      return oriented(checked({big_endian(body, 3, 2), big_endian(body, 1, 2)}, name), orientation);
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

ImageSize size_of(ByteSource& source, std::string_view name) {
  const std::string magic = source.read(0, 8);
  if (magic == "\x89PNG\r\n\x1a\n") return png_size(source, name);
  if (magic.starts_with("\xFF\xD8\xFF")) return jpeg_size(source, name);
  throw_failure("picture {} is neither JPEG nor PNG; convert it to one of them", name);
}

}  // namespace

ImageSize read_image_size(const std::filesystem::path& file) {
  FileSource source(file);
  return size_of(source, file.string());
}

ImageSize parse_image_size(std::string_view encoded, std::string_view name) {
  MemorySource source(encoded);
  return size_of(source, name);
}

}  // namespace thinkvg::data
