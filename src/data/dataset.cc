#include "thinkvg/data/dataset.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "data/gemex.h"
#include "data/thinkvg_parquet.h"
#include "thinkvg/core/error.h"
#include "thinkvg/core/random.h"

namespace thinkvg::data {
namespace {

class Selection final : public Dataset {
 public:
  Selection(std::shared_ptr<const Dataset> source, std::vector<std::int64_t> indices)
      : source_(std::move(source)), indices_(std::move(indices)) {}
  std::int64_t size() const override { return static_cast<std::int64_t>(indices_.size()); }
  Sample get(std::int64_t index) const override {
    if (index < 0 || index >= size()) {
      throw std::out_of_range(fmt::format("sample {} of {}: an index is 0 to size - 1", index, size()));
    }
    return source_->get(indices_[static_cast<std::size_t>(index)]);
  }
  const std::vector<BadRow>& bad_rows() const override { return source_->bad_rows(); }

 private:
  std::shared_ptr<const Dataset> source_;
  std::vector<std::int64_t> indices_;
};

}  // namespace

std::unique_ptr<Dataset> open_dataset(const std::filesystem::path& path) {
  if (!std::filesystem::exists(path)) throw_failure("{}: no such file or folder", path.string());
  if (std::filesystem::is_directory(path)) return open_gemex(path);
  const std::string extension = path.extension().string();
  if (extension == ".parquet") return open_thinkvg_parquet(path);
  if (extension == ".jsonl" || extension == ".json") return open_gemex(path);
  throw_failure(
      "{}: expected a .parquet file with the ThinkVG columns, a .jsonl or .json file of GEMeX, or a folder with "
      "GEMeX's four *_question.jsonl files",
      path.string());
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

std::unique_ptr<Dataset> patient_fraction(std::shared_ptr<const Dataset> source, double fraction, std::uint64_t seed,
                                          bool complement) {
  if (!source) throw_invalid("patient_fraction needs a data set");
  if (!(fraction >= 0 && fraction <= 1)) throw_invalid("a fraction of patients is between 0 and 1, not {}", fraction);
  // Each patient has a place in an order that seed and name decide; a fraction is a beginning of that order.
  const std::int64_t size = source->size();
  std::vector<std::string> names(static_cast<std::size_t>(size));
  std::vector<std::pair<std::uint64_t, std::string>> order;
  for (std::int64_t i = 0; i < size; ++i) {
    const Sample sample = source->get(i);
    std::string& name = names[static_cast<std::size_t>(i)];
    name = sample.patient.empty() ? "picture " + sample.image : sample.patient;
    order.emplace_back(RandomStream({seed, hash_key("patient fraction"), hash_key(name)}).next_u64(), name);
  }
  std::sort(order.begin(), order.end());
  order.erase(std::unique(order.begin(), order.end()), order.end());
  const auto count = static_cast<std::size_t>(std::llround(fraction * static_cast<double>(order.size())));
  std::vector<std::string> chosen;
  for (std::size_t i = 0; i < count; ++i) chosen.push_back(order[i].second);
  std::sort(chosen.begin(), chosen.end());
  std::vector<std::int64_t> indices;
  for (std::int64_t i = 0; i < size; ++i) {
    const bool in = std::binary_search(chosen.begin(), chosen.end(), names[static_cast<std::size_t>(i)]);
    if (in != complement) indices.push_back(i);
  }
  return std::make_unique<Selection>(std::move(source), std::move(indices));
}

}  // namespace thinkvg::data
