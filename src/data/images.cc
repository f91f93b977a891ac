#include "thinkvg/data/images.h"

#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <unordered_map>
#include <unordered_set>

#include "data/rows.h"
#include "thinkvg/core/error.h"
#include "thinkvg/core/files.h"
#include "thinkvg/core/log.h"
#include "thinkvg/core/progress.h"

namespace thinkvg::data {
namespace {

namespace fs = std::filesystem;

constexpr std::array<const char*, 5> kExtensions = {".jpg", ".jpeg", ".png", ".dcm", ".dicom"};
constexpr std::string_view kIndexHead = "thinkvg picture index 2";
constexpr const char* kIndexFolder = ".thinkvg";
// A folder that changed so shortly before it was read may change again without a new modification time.
constexpr std::int64_t kUncertain = 2'000'000'000;

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

// An extension begins with a letter; what stands behind the dots of a DICOM UID are numbers.
fs::path without_extension(const fs::path& path) {
  const std::string extension = path.extension().string();
  const bool is_one = extension.size() > 1 && std::isalpha(static_cast<unsigned char>(extension[1])) != 0;
  return is_one ? fs::path(path).replace_extension() : path;
}

std::vector<std::string> parts_of(const fs::path& path) { return {path.begin(), path.end()}; }

// A name made to be the only one of its kind, such as MIMIC-CXR's and VinDr-CXR's: it tells the picture wherever the
// file lies. "source", "view1_frontal" and "IM-0001-0001" do so only together with their folders.
bool is_identifier(std::string_view name) {
  const auto count = [&](auto is_kind) {
    return std::count_if(name.begin(), name.end(), [&](unsigned char c) { return is_kind(c) != 0; });
  };
  return count([](int c) { return std::isalnum(c); }) >= 16 && count([](int c) { return std::isdigit(c); }) >= 4;
}

// How many folders, from the file upwards, two paths with the same file name have in common.
std::size_t common_folders(const std::vector<std::string>& a, const std::vector<std::string>& b) {
  std::size_t count = 0;
  while (count + 1 < a.size() && count + 1 < b.size() && a[a.size() - 2 - count] == b[b.size() - 2 - count]) ++count;
  return count;
}

// Whether a path is the end of the other. Of the file's own path that takes two folders at least: a study's "s1/1.jpg"
// is the end of many.
bool names_the_same(const std::vector<std::string>& wanted, const std::vector<std::string>& file) {
  const std::size_t common = common_folders(wanted, file);
  return common + 1 == wanted.size() || (common + 1 == file.size() && common >= 2);
}

std::int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::system_clock::now().time_since_epoch())
      .count();
}

// One folder as it was read: names only.
struct Listing {
  std::int64_t modified = 0;  // nanoseconds
  std::int64_t read = 0;
  std::vector<std::string> folders, files;  // sorted
};
using Listings = std::map<std::string, Listing>;  // by path relative to the root, "" for the root

Listing read_listing(const fs::path& folder) {
  Listing listing;
  std::error_code ignored;
  for (fs::directory_iterator it(folder, fs::directory_options::skip_permission_denied, ignored), end; it != end;
       it.increment(ignored)) {
    if (ignored) break;
    const std::string name = it->path().filename().string();
    if (name.empty() || name.front() == '.' || name.find('\n') != std::string::npos) continue;
    std::error_code unreadable;
    if (it->is_directory(unreadable))
      listing.folders.push_back(name);
    else if (is_picture(name) && it->is_regular_file(unreadable))
      listing.files.push_back(name);
  }
  std::sort(listing.folders.begin(), listing.folders.end());
  std::sort(listing.files.begin(), listing.files.end());
  return listing;
}

// Reads what changed since `old` was made.
class Walk {
 public:
  Walk(const fs::path& root, const Listings& old) : root_(root), old_(old) { visit(""); }

  Listings take() { return std::move(now_); }
  bool changed() const { return changed_ || now_.size() != old_.size(); }

 private:
  void visit(const std::string& relative) {
    const fs::path folder = relative.empty() ? root_ : root_ / relative;
    struct stat status {};
    // A link to a folder above it would lead in circles.
    if (stat(folder.c_str(), &status) != 0 || !seen_.insert({status.st_dev, status.st_ino}).second) return;
    const std::int64_t modified = std::int64_t{status.st_mtim.tv_sec} * 1'000'000'000 + status.st_mtim.tv_nsec;
    const auto known = old_.find(relative);
    Listing listing;
    if (known != old_.end() && known->second.modified == modified && modified < known->second.read - kUncertain) {
      listing = known->second;
    } else {
      const std::int64_t read = now_ns();
      listing = read_listing(folder);
      listing.modified = modified;
      listing.read = read;
      changed_ = true;
    }
    const std::vector<std::string> folders = listing.folders;
    now_.emplace(relative, std::move(listing));
    for (const std::string& name : folders) visit(relative.empty() ? name : relative + "/" + name);
  }

  const fs::path& root_;
  const Listings& old_;
  Listings now_;
  std::set<std::pair<dev_t, ino_t>> seen_;
  bool changed_ = false;
};

std::string to_text(const Listings& listings) {
  std::string text(kIndexHead);
  text += '\n';
  for (const auto& [relative, listing] : listings) {
    text += fmt::format("D{} {} {}\n", listing.modified, listing.read, relative);
    for (const std::string& name : listing.folders) text += "S" + name + "\n";
    for (const std::string& name : listing.files) text += "F" + name + "\n";
  }
  text += "end\n";
  return text;
}

// Nothing where the text is not a whole index.
std::optional<Listings> from_text(std::string_view text) {
  Listings listings;
  Listing* current = nullptr;
  bool first = true;
  while (!text.empty()) {
    const std::size_t end = text.find('\n');
    if (end == std::string_view::npos) return std::nullopt;
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(end + 1);
    if (first) {
      if (line != kIndexHead) return std::nullopt;
      first = false;
    } else if (line == "end") {
      return text.empty() && !listings.empty() ? std::optional(std::move(listings)) : std::nullopt;
    } else if (line.starts_with('D')) {
      Listing listing;
      const char* stop = line.data() + line.size();
      const auto modified = std::from_chars(line.data() + 1, stop, listing.modified);
      if (modified.ec != std::errc() || modified.ptr == stop) return std::nullopt;
      const auto read = std::from_chars(modified.ptr + 1, stop, listing.read);
      if (read.ec != std::errc() || read.ptr == stop) return std::nullopt;
      current = &listings[std::string(read.ptr + 1, stop)];
      *current = std::move(listing);
    } else if (current != nullptr && line.starts_with('S')) {
      current->folders.emplace_back(line.substr(1));
    } else if (current != nullptr && line.starts_with('F')) {
      current->files.emplace_back(line.substr(1));
    } else {
      return std::nullopt;
    }
  }
  return std::nullopt;
}

fs::path cache_file(const fs::path& root) {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  const char* home = std::getenv("HOME");
  fs::path base;
  if (cache != nullptr && *cache != '\0')
    base = cache;
  else if (home != nullptr && *home != '\0')
    base = fs::path(home) / ".cache";
  if (base.empty()) return {};
  std::error_code ignored;
  const fs::path whole = fs::weakly_canonical(root, ignored);
  return base / "thinkvg" / "pictures" / (sha256_text(whole.string()).substr(0, 16) + ".index");
}

std::vector<fs::path> parse_folders(const std::string& folders) {
  std::vector<fs::path> list;
  if (fs::is_directory(folders)) return {folders};  // a comma may be part of a name
  for (std::size_t begin = 0; begin <= folders.size();) {
    const std::size_t end = std::min(folders.find(',', begin), folders.size());
    list.push_back(trimmed(std::string_view(folders).substr(begin, end - begin)));
    if (!fs::is_directory(list.back())) {
      throw_failure("{}: expected the folder that holds the pictures, but there is no such folder",
                    list.back().string());
    }
    begin = end + 1;
  }
  return list;
}

}  // namespace

// The pictures below one folder by their stem.
class ImageFinder::StemIndex {
 public:
  explicit StemIndex(fs::path root) : root_(std::move(root)) {}

  // `wanted`: without extension.
  fs::path find(const fs::path& wanted) {
    const std::lock_guard lock(mutex_);
    if (!is_fresh_ && !is_loaded_) load();
    fs::path file = look_up(wanted);
    if (!is_fresh_ && (file.empty() || !is_file(file))) {
      refresh();
      file = look_up(wanted);
    }
    return file;
  }

 private:
  // Of the files of that name the one with most of the wanted folders, the first of equals.
  fs::path look_up(const fs::path& wanted) const {
    const std::string name = wanted.filename().string();
    const auto found = files_.find(name);
    if (found == files_.end()) return {};
    const std::vector<std::string>& files = found->second;
    if (is_identifier(name) && files.size() == 1) return root_ / files.front();
    const std::vector<std::string> wanted_parts = parts_of(wanted);
    const std::string* best = nullptr;
    std::size_t most = 0;
    for (const std::string& file : files) {
      const std::vector<std::string> parts = parts_of(file);
      if (!is_identifier(name) && !names_the_same(wanted_parts, parts)) continue;
      const std::size_t common = common_folders(wanted_parts, parts);
      if (best != nullptr && common <= most) continue;
      best = &file;
      most = common;
    }
    const bool is_guess = wanted_parts.size() == 1 && files.size() > 1 && !is_identifier(name);
    return best == nullptr || is_guess ? fs::path() : root_ / *best;
  }

  void load() {
    is_loaded_ = true;
    for (const fs::path& place : {root_ / kIndexFolder / "pictures.index", cache_file(root_)}) {
      if (place.empty() || !is_file(place)) continue;
      if (std::optional<Listings> listings = from_text(read_file(place))) {
        listings_ = std::move(*listings);
        fill();
        return;
      }
    }
  }

  void refresh() {
    is_fresh_ = true;
    // The folder of the index is made before the root is read: making it changes the root.
    std::error_code ignored;
    fs::create_directory(root_ / kIndexFolder, ignored);
    if (listings_.empty()) spdlog::info("listing the pictures below {}", root_.string());
    Walk walk(root_, listings_);
    if (!walk.changed()) return;
    listings_ = walk.take();
    fill();
    store();
  }

  void store() const {
    const std::string text = to_text(listings_);
    std::string reason;
    for (const fs::path& place : {root_ / kIndexFolder / "pictures.index", cache_file(root_)}) {
      if (place.empty()) continue;
      try {
        std::error_code ignored;
        fs::create_directories(place.parent_path(), ignored);
        write_file_atomically(place, text);
        return;
      } catch (const std::runtime_error& error) {
        reason = error.what();
      }
    }
    spdlog::debug("the list of pictures below {} is not kept: {}", root_.string(), reason);
  }

  void fill() {
    files_.clear();
    for (const auto& [relative, listing] : listings_) {
      for (const std::string& name : listing.files) {
        std::string path = relative.empty() ? name : relative + "/" + name;
        files_[fs::path(name).stem().string()].push_back(std::move(path));
      }
    }
    // The same choice on every machine, whatever the order of the folder.
    for (auto& [name, files] : files_) std::sort(files.begin(), files.end());
  }

  const fs::path root_;
  std::mutex mutex_;
  bool is_loaded_ = false;
  bool is_fresh_ = false;  // compared with the folders by this process
  Listings listings_;
  std::unordered_map<std::string, std::vector<std::string>> files_;  // relative paths by stem, sorted
};

ImageFinder::ImageFinder(const std::string& folders) : folders_(parse_folders(folders)) {
  for (const fs::path& folder : folders_) indices_.push_back(std::make_shared<StemIndex>(folder));
}

fs::path ImageFinder::find(const std::string& relative_path) const {
  const fs::path relative = relative_image(relative_path);
  if (relative.empty()) return {};
  const fs::path wanted = without_extension(relative);
  for (std::size_t i = 0; i < folders_.size(); ++i) {
    for (const fs::path& place : {folders_[i], folders_[i] / "files", fs::path()}) {
      const bool flat = place.empty();
      fs::path named = flat ? folders_[i] / relative.filename() : place / relative;
      if (is_file(named)) return named;
      for (const char* extension : kExtensions) {
        fs::path other = flat ? folders_[i] / wanted.filename() : place / wanted;
        if (is_file(other += extension)) return other;
      }
    }
    fs::path file = indices_[i]->find(wanted);
    if (!file.empty()) return file;
  }
  return {};
}

fs::path ImageFinder::require(const Sample& sample) const {
  fs::path file = find(sample.image);
  if (file.empty()) {
    std::string places;
    for (const fs::path& folder : folders_) places += fmt::format("{}{}", places.empty() ? "" : ", ", folder.string());
    throw_failure(
        "sample {}: its picture '{}' was not found below {}: neither by its path, with or without files/, as .jpg, "
        ".jpeg, .png, .dcm or .dicom, nor by its name anywhere (one that several pictures may have needs its folders); "
        "give the right picture folder",
        sample.id, sample.image, places);
  }
  return file;
}

bool may_share_a_file(const std::string& a, const std::string& b) {
  if (a == b) return true;
  const fs::path first = without_extension(relative_image(a)), second = without_extension(relative_image(b));
  if (first.filename() != second.filename()) return false;
  const std::vector<std::string> one = parts_of(first), other = parts_of(second);
  return is_identifier(first.filename().string()) ||
         common_folders(one, other) + 1 == std::min(one.size(), other.size());
}

double PictureCheck::hit_rate() const {
  if (num_rows == 0) return 1.0;
  return 1.0 - static_cast<double>(missing.size()) / static_cast<double>(num_rows);
}

std::string PictureCheck::summary() const {
  const auto num_missing = static_cast<std::int64_t>(missing.size());
  // Rounded down: 100.0 % is said of all rows only.
  return fmt::format("{} of {} rows have their picture ({:.1f} %; {} of {} files)",
                     format_count(num_rows - num_missing), format_count(num_rows), std::floor(hit_rate() * 1000) / 10,
                     format_count(num_pictures - num_missing_pictures), format_count(num_pictures));
}

PictureCheck check_pictures(const Dataset& dataset, const ImageFinder& finder) {
  PictureCheck check;
  check.num_rows = dataset.size();
  std::unordered_map<std::string, bool> known;
  std::unordered_map<std::string, std::string> first_name;  // of a file
  for (std::int64_t i = 0; i < check.num_rows; ++i) {
    const Sample sample = dataset.get(i);
    const auto [entry, is_new] = known.try_emplace(sample.image, true);
    if (is_new) {
      const fs::path file = finder.find(sample.image);
      entry->second = !file.empty();
      const std::string& before = first_name.try_emplace(file.string(), sample.image).first->second;
      if (entry->second && !may_share_a_file(before, sample.image))
        throw_failure(
            "sample {}: its picture '{}' and '{}' would both be the file {}, which cannot hold two pictures; give a "
            "picture folder that has the folders of these names",
            sample.id, sample.image, before, file.string());
      ++check.num_pictures;
      if (!entry->second) ++check.num_missing_pictures;
    }
    if (!entry->second) check.missing.push_back({i, sample.id, sample.image});
  }
  return check;
}

std::shared_ptr<const Dataset> with_pictures(std::shared_ptr<const Dataset> dataset, const ImageFinder& finder,
                                             double min_hit_rate) {
  if (!(min_hit_rate >= 0 && min_hit_rate <= 1)) {
    throw_invalid("min_hit_rate must lie between 0 and 1, but is {}", min_hit_rate);
  }
  const PictureCheck check = check_pictures(*dataset, finder);
  spdlog::info("pictures: {}", check.summary());
  if (check.missing.empty()) return dataset;
  std::string shown;
  for (std::size_t i = 0; i < std::min<std::size_t>(3, check.missing.size()); ++i)
    shown +=
        fmt::format("\n  row {} (sample {}): {}", check.missing[i].index, check.missing[i].id, check.missing[i].image);
  if (check.hit_rate() < min_hit_rate) {
    std::string places;
    for (const fs::path& folder : finder.folders())
      places += fmt::format("{}{}", places.empty() ? "" : ", ", folder.string());
    throw_failure(
        "only {} under {}, and min_hit_rate is {}. Give the right picture folder, or lower min_hit_rate to go on with "
        "the rows that have theirs. The first without:{}",
        check.summary(), places, min_hit_rate, shown);
  }
  spdlog::warn("{} rows are left out because their picture is missing:{}",
               format_count(static_cast<std::int64_t>(check.missing.size())), shown);
  std::vector<std::int64_t> present;
  std::size_t next = 0;
  for (std::int64_t i = 0; i < check.num_rows; ++i) {
    if (next < check.missing.size() && check.missing[next].index == i)
      ++next;
    else
      present.push_back(i);
  }
  return select(std::move(dataset), std::move(present));
}

}  // namespace thinkvg::data
