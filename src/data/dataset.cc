#include "thinkvg/data/dataset.h"

#include <spdlog/fmt/fmt.h>

#include <set>
#include <stdexcept>

#include "data/selection.h"
#include "thinkvg/core/error.h"
#include "thinkvg/core/files.h"

namespace thinkvg::data {
namespace {

class MemoryDataset final : public Dataset {
 public:
  MemoryDataset(std::vector<Sample> samples, std::vector<BadRow> bad)
      : samples_(std::move(samples)), bad_(std::move(bad)) {}
  std::int64_t size() const override { return static_cast<std::int64_t>(samples_.size()); }
  Sample get(std::int64_t index) const override {
    if (index < 0 || index >= size()) {
      throw std::out_of_range(fmt::format("sample {} of {}: an index is 0 to size - 1", index, size()));
    }
    return samples_[static_cast<std::size_t>(index)];
  }
  const std::vector<BadRow>& bad_rows() const override { return bad_; }

 private:
  std::vector<Sample> samples_;
  std::vector<BadRow> bad_;
};

}  // namespace

std::int64_t Selection::source_index(std::int64_t index) const {
  if (index < 0 || index >= size()) {
    throw std::out_of_range(fmt::format("sample {} of {}: an index is 0 to size - 1", index, size()));
  }
  return indices_[static_cast<std::size_t>(index)];
}

std::unique_ptr<Dataset> make_dataset(std::vector<Sample> samples, std::vector<BadRow> bad_rows) {
  return std::make_unique<MemoryDataset>(std::move(samples), std::move(bad_rows));
}

std::unique_ptr<Dataset> select(std::shared_ptr<const Dataset> source, std::vector<std::int64_t> indices) {
  if (!source) throw_invalid("select needs a data set");
  for (const std::int64_t index : indices) {
    if (index < 0 || index >= source->size()) {
      throw_invalid("select: index {} is not in a data set of {} samples", index, source->size());
    }
  }
  return std::make_unique<Selection>(std::move(source), std::move(indices));
}

std::int64_t unpack_pictures(const Dataset& dataset, const std::filesystem::path& folder) {
  std::set<std::string> written;
  for (std::int64_t i = 0; i < dataset.size(); ++i) {
    const std::string name = dataset.get(i).image;
    if (written.contains(name)) continue;
    const std::string bytes = dataset.embedded_picture(i);
    if (bytes.empty()) continue;  // a row that names a file of its own
    written.insert(name);
    std::filesystem::create_directories((folder / name).parent_path());
    if (!std::filesystem::exists(folder / name)) write_file_atomically(folder / name, bytes);
  }
  if (written.empty()) throw_failure("the data set holds no pictures itself; there is nothing to unpack");
  return static_cast<std::int64_t>(written.size());
}

}  // namespace thinkvg::data
