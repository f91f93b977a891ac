#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

namespace thinkvg {

// The whole file. Throws std::runtime_error naming the file and the system's reason.
std::string read_file(const std::filesystem::path& file);

// Writes to a temporary name in the same folder, syncs, renames: readers see the old file or the new one, never a part.
// On any failure (a full disk too) the temporary file is removed and std::runtime_error names file and reason.
void write_file_atomically(const std::filesystem::path& file, std::string_view content);

// The same for a folder: `fill` writes into a temporary folder beside `folder`, which is then synced and renamed to it.
// An existing `folder` is exchanged in one step. When `fill` throws, nothing is left behind and the exception goes on.
void write_folder_atomically(const std::filesystem::path& folder,
                             const std::function<void(const std::filesystem::path& temporary)>& fill);

// Appends text to a file that is kept open: for metrics.jsonl and completion logs. Each write ends at the disk's cache;
// a failed one (a full disk) leaves nothing of its text in the file and throws std::runtime_error. Not thread-safe.
class AppendFile {
 public:
  explicit AppendFile(const std::filesystem::path& file);
  ~AppendFile();
  AppendFile(const AppendFile&) = delete;
  AppendFile& operator=(const AppendFile&) = delete;
  void write(std::string_view text);
  void write_line(std::string_view text);

 private:
  std::filesystem::path file_;
  int descriptor_ = -1;
};

// Lower-case hexadecimal SHA-256 of a file's content or of a text.
std::string sha256_file(const std::filesystem::path& file);
std::string sha256_text(std::string_view text);

// Peak resident memory of this process, in bytes, since its program started: what another program held in the process
// before is not counted. Pages of mapped files are. Throws std::runtime_error where the system does not tell.
std::int64_t peak_memory_bytes();

}  // namespace thinkvg
