#include "thinkvg/data/images.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <mutex>
#include <unordered_map>

#include "data/rows.h"
#include "thinkvg/core/error.h"

namespace thinkvg::data {
namespace {

namespace fs = std::filesystem;

constexpr std::array<const char*, 3> kExtensions = {".jpg", ".jpeg", ".png"};

bool is_picture(const fs::path& file) {
  std::string extension = file.extension().string();
  std::transform(extension.begin(), extension.end(), extension.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return std::find(kExtensions.begin(), kExtensions.end(), extension) != kExtensions.end();
}

bool is_file(const fs::path& file) {
  std::error_code ignored;
  return fs::is_regular_file(file, ignored);
}

}  // namespace

struct ImageFinder::StemIndex {
  std::once_flag once;
  std::unordered_map<std::string, fs::path> files;
};

ImageFinder::ImageFinder(fs::path root) : root_(std::move(root)), index_(std::make_shared<StemIndex>()) {
  if (!fs::is_directory(root_)) {
    throw_failure("{}: expected the folder that holds the pictures, but there is no such folder", root_.string());
  }
}

fs::path ImageFinder::find(const std::string& relative_path) const {
  const fs::path relative = relative_image(relative_path);
  if (relative.empty()) return {};
  for (const fs::path& base : {root_, root_ / "files"}) {
    fs::path file = base / relative;
    if (is_file(file)) return file;
    for (const char* extension : kExtensions) {
      file.replace_extension(extension);
      if (is_file(file)) return file;
    }
  }
  std::call_once(index_->once, [this] {
    std::error_code ignored;
    const auto options =
        fs::directory_options::skip_permission_denied | fs::directory_options::follow_directory_symlink;
    for (fs::recursive_directory_iterator it(root_, options, ignored), end; it != end; it.increment(ignored)) {
      if (ignored || !is_picture(it->path()) || !is_file(it->path())) continue;
      fs::path& file = index_->files[it->path().stem().string()];
      // The same choice on every machine, whatever the order of the folder.
      if (file.empty() || it->path() < file) file = it->path();
    }
  });
  const auto found = index_->files.find(relative.stem().string());
  return found == index_->files.end() ? fs::path() : found->second;
}

fs::path ImageFinder::require(const Sample& sample) const {
  fs::path file = find(sample.image);
  if (file.empty()) {
    throw_failure(
        "sample {}: its picture '{}' was found neither as {} nor as {} (.jpg, .jpeg, .png), nor by its name anywhere "
        "under the folder; give the right picture folder",
        sample.id, sample.image, (root_ / sample.image).string(), (root_ / "files" / sample.image).string());
  }
  return file;
}

}  // namespace thinkvg::data
