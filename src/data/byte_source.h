#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

namespace thinkvg::data {

// A file's bytes from front to back; gzip (known by its first two bytes, whatever the name) is unpacked on the way.
// Not thread-safe.
class ByteSource {
 public:
  // Throws std::runtime_error naming the file.
  explicit ByteSource(const std::filesystem::path& file);
  ~ByteSource();
  ByteSource(const ByteSource&) = delete;
  ByteSource& operator=(const ByteSource&) = delete;

  // The next piece, empty at the end; valid until the next call. Throws std::runtime_error where the file is damaged.
  std::string_view next();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// The first bytes of the unpacked file.
std::string read_head(const std::filesystem::path& file, std::size_t size);
// All of it.
std::string read_unpacked(const std::filesystem::path& file);

}  // namespace thinkvg::data
