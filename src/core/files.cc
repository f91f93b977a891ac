#include "thinkvg/core/files.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <memory>

#include "thinkvg/core/error.h"

namespace thinkvg {
namespace fs = std::filesystem;
namespace {

std::string temporary_suffix() {
  static std::atomic<int> counter{0};
  return fmt::format(".partial-{}-{}", getpid(), counter++);
}

// `folder` without a trailing slash, so that names made out of it lie beside it.
fs::path without_slash(const fs::path& folder) { return folder.has_filename() ? folder : folder.parent_path(); }

// Puts `temporary` in place of the existing `folder`, and the old folder in place of `temporary`. One step, so that a
// process killed at any moment leaves one of the two under the name; file systems that cannot do it take two steps.
void exchange_folders(const fs::path& temporary, const fs::path& folder) {
  if (::renameat2(AT_FDCWD, temporary.c_str(), AT_FDCWD, folder.c_str(), RENAME_EXCHANGE) == 0) return;
  if (errno != EINVAL && errno != ENOSYS) throw_failure("cannot replace {}: {}", folder.string(), std::strerror(errno));
  const fs::path old = temporary.string() + "-old";
  fs::rename(folder, old);
  std::error_code error;
  fs::rename(temporary, folder, error);
  if (error) {
    fs::rename(old, folder);
    throw_failure("cannot replace {}: {}", folder.string(), error.message());
  }
  fs::rename(old, temporary);
}

void write_all(int descriptor, std::string_view content, const fs::path& file) {
  while (!content.empty()) {
    const ssize_t written = ::write(descriptor, content.data(), content.size());
    if (written < 0) {
      if (errno == EINTR) continue;
      throw_failure("cannot write {}: {}", file.string(), std::strerror(errno));
    }
    content.remove_prefix(static_cast<std::size_t>(written));
  }
}

void sync_path(const fs::path& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) throw_failure("cannot open {}: {}", path.string(), std::strerror(errno));
  const int result = ::fsync(descriptor);
  const int reason = errno;
  ::close(descriptor);
  if (result != 0 && reason != EINVAL) throw_failure("cannot sync {}: {}", path.string(), std::strerror(reason));
}

fs::path folder_of(const fs::path& file) { return file.has_parent_path() ? file.parent_path() : fs::path("."); }

class Sha256 {
 public:
  Sha256() : context_(EVP_MD_CTX_new(), EVP_MD_CTX_free) { EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr); }
  void add(const char* data, std::size_t size) { EVP_DigestUpdate(context_.get(), data, size); }
  std::string hex() {
    std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
    unsigned int size = 0;
    EVP_DigestFinal_ex(context_.get(), digest.data(), &size);
    std::string text;
    for (unsigned int i = 0; i < size; ++i) text += fmt::format("{:02x}", digest[i]);
    return text;
  }

 private:
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context_;
};

}  // namespace

std::string read_file(const fs::path& file) {
  if (fs::is_directory(file)) throw_failure("cannot read {}: it is a folder", file.string());
  const int descriptor = ::open(file.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) throw_failure("cannot open {}: {}", file.string(), std::strerror(errno));
  // The size is a first guess only: files of /proc say 0, and a file may grow while it is read.
  std::error_code unknown;
  const std::uintmax_t size = fs::file_size(file, unknown);
  std::string content(unknown ? 0 : static_cast<std::size_t>(size), '\0');
  std::size_t length = 0;
  while (true) {
    if (length == content.size()) {
      char more[4096];
      const ssize_t count = ::read(descriptor, more, sizeof more);
      if (count == 0) break;
      if (count > 0) {
        content.append(more, static_cast<std::size_t>(count));
        length = content.size();
        content.resize(2 * length);
        continue;
      }
    } else {
      const ssize_t count = ::read(descriptor, content.data() + length, content.size() - length);
      if (count == 0) break;
      if (count > 0) {
        length += static_cast<std::size_t>(count);
        continue;
      }
    }
    if (errno == EINTR) continue;
    const int reason = errno;
    ::close(descriptor);
    throw_failure("cannot read {}: {}", file.string(), std::strerror(reason));
  }
  ::close(descriptor);
  content.resize(length);
  return content;
}

void write_file_atomically(const fs::path& file, std::string_view content) {
  const fs::path temporary = file.string() + temporary_suffix();
  const int descriptor = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (descriptor < 0) throw_failure("cannot create {}: {}", file.string(), std::strerror(errno));
  try {
    write_all(descriptor, content, file);
    if (::fsync(descriptor) != 0 && errno != EINVAL)
      throw_failure("cannot sync {}: {}", file.string(), std::strerror(errno));
  } catch (...) {
    ::close(descriptor);
    ::unlink(temporary.c_str());
    throw;
  }
  ::close(descriptor);
  if (::rename(temporary.c_str(), file.c_str()) != 0) {
    const int reason = errno;
    ::unlink(temporary.c_str());
    throw_failure("cannot write {}: {}", file.string(), std::strerror(reason));
  }
  sync_path(folder_of(file));
}

void write_folder_atomically(const fs::path& given, const std::function<void(const fs::path& temporary)>& fill) {
  const fs::path folder = without_slash(given);
  const fs::path temporary = folder.string() + temporary_suffix();
  std::error_code error;
  fs::create_directories(temporary, error);
  if (error) throw_failure("cannot create {}: {}", folder.string(), error.message());
  try {
    fill(temporary);
    for (const auto& entry : fs::recursive_directory_iterator(temporary)) sync_path(entry.path());
    sync_path(temporary);
    if (fs::exists(folder))
      exchange_folders(temporary, folder);
    else
      fs::rename(temporary, folder);
  } catch (...) {
    fs::remove_all(temporary, error);
    throw;
  }
  fs::remove_all(temporary, error);  // the old folder
  sync_path(folder_of(folder));
}

AppendFile::AppendFile(const fs::path& file) : file_(file) {
  descriptor_ = ::open(file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (descriptor_ < 0) throw_failure("cannot open {}: {}", file.string(), std::strerror(errno));
}

AppendFile::~AppendFile() { ::close(descriptor_); }

void AppendFile::write(std::string_view text) {
  struct stat before {};
  const bool regular = ::fstat(descriptor_, &before) == 0 && S_ISREG(before.st_mode);
  try {
    write_all(descriptor_, text, file_);
  } catch (...) {
    // Should this fail, too, there is nothing better to do than to report the first failure.
    std::error_code ignored;
    if (regular) fs::resize_file(file_, static_cast<std::uintmax_t>(before.st_size), ignored);
    throw;
  }
}

void AppendFile::write_line(std::string_view text) { write(std::string(text) + "\n"); }

std::string sha256_file(const fs::path& file) {
  if (fs::is_directory(file)) throw_failure("cannot read {}: it is a folder", file.string());
  std::ifstream stream(file, std::ios::binary);
  if (!stream) throw_failure("cannot open {}: {}", file.string(), std::strerror(errno));
  Sha256 hash;
  std::vector<char> buffer(1 << 20);
  while (stream.read(buffer.data(), static_cast<std::streamsize>(buffer.size())) || stream.gcount() > 0)
    hash.add(buffer.data(), static_cast<std::size_t>(stream.gcount()));
  return hash.hex();
}

std::string sha256_text(std::string_view text) {
  Sha256 hash;
  hash.add(text.data(), text.size());
  return hash.hex();
}

std::int64_t peak_memory_bytes() {
  // Not getrusage(): its figure is inherited by a program from the process that started it.
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with("VmHWM:")) return std::stoll(line.substr(std::strlen("VmHWM:"))) * 1024;
  throw_failure("/proc/self/status names no peak memory (VmHWM)");
}

}  // namespace thinkvg
