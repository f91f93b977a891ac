#include "thinkvg/data/options.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <numeric>

#include "thinkvg/core/error.h"
#include "thinkvg/data/wrappers.h"

namespace thinkvg::data {
namespace {

double number_of(std::string_view text, std::string_view whole, const char* setting, const char* form) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || error != std::errc() || end != text.data() + text.size())
    throw_invalid("{} should be {}, but is '{}'", setting, form, whole);
  return value;
}

void check_bad_rows(const Dataset& dataset, const std::string& path, const DataOptions& options) {
  const auto& bad = dataset.bad_rows();
  if (bad.empty()) return;
  std::string shown;
  for (std::size_t i = 0; i < std::min<std::size_t>(3, bad.size()); ++i)
    shown += fmt::format("\n  row {}: {}", bad[i].row, bad[i].reason);
  const std::int64_t num_rows = dataset.size() + static_cast<std::int64_t>(bad.size());
  if (options.skip_bad_rows) {
    spdlog::warn("{}: {} unusable rows of {} are left out:{}", path, bad.size(), num_rows, shown);
    return;
  }
  throw_failure(
      "{} has {} unusable rows of {}. 'thinkvg inspect --data {}' lists them all, and mends them with --fix FILE; "
      "data.skip_bad_rows leaves them out. The first:{}",
      path, bad.size(), num_rows, path, shown);
}

DatasetPtr open_part(const std::string& path, const DataOptions& options) {
  DatasetPtr dataset = open_dataset(path, {.format = options.format, .frame = options.frame});
  check_bad_rows(*dataset, path, options);
  const auto seed = static_cast<std::uint64_t>(options.split_seed);
  if (!options.filter.empty()) dataset = filter(dataset, options.filter);
  if (options.fraction < 1.0 || options.complement)
    dataset = patient_fraction(dataset, options.fraction, seed, options.complement);
  if (options.patients != "0:1") {
    const std::string_view range = options.patients;
    const std::size_t colon = range.find(':');
    const auto share = [&](std::string_view text) {
      return number_of(text, range, "data.patients", "BEGIN:END, two shares such as 0:0.9");
    };
    if (colon == std::string_view::npos) share("");
    dataset = patient_range(dataset, share(range.substr(0, colon)), share(range.substr(colon + 1)), seed);
  }
  if (options.per_type != 0 || options.per_picture != 0 || options.per_patient != 0)
    dataset = cap(dataset, {options.per_type, options.per_picture, options.per_patient}, seed);
  if (options.think < 1.0) dataset = with_think(dataset, options.think, seed);
  return dataset;
}

}  // namespace

std::shared_ptr<const Dataset> open_data(const DataOptions& options) {
  DatasetPtr dataset = open_part(options.path, options);
  if (!options.mix.empty()) {
    const auto name_of = [](const std::string& path) { return std::filesystem::path(path).filename().string(); };
    std::vector<MixturePart> parts = {{dataset, name_of(options.path), 1.0}};
    for (const std::string& item : options.mix) {
      const std::size_t equals = item.rfind('=');
      const std::string path = item.substr(0, equals);
      const double weight = equals == std::string::npos ? 1.0
                                                        : number_of(std::string_view(item).substr(equals + 1), item,
                                                                    "data.mix", "FILE or FILE=WEIGHT");
      std::string name = name_of(path);
      // Two files of one name are told apart by their place.
      if (std::any_of(parts.begin(), parts.end(), [&](const MixturePart& part) { return part.name == name; }))
        name = fmt::format("{}#{}", name, parts.size() + 1);
      parts.push_back({open_part(path, options), name, weight});
    }
    dataset = mixture(std::move(parts), options.mix_size, static_cast<std::uint64_t>(options.split_seed));
  }
  if (options.limit < 0) throw_invalid("data.limit is a number of questions, 0 for all, not {}", options.limit);
  if (options.limit > 0 && options.limit < dataset->size()) {
    std::vector<std::int64_t> first(static_cast<std::size_t>(options.limit));
    std::iota(first.begin(), first.end(), 0);
    dataset = select(dataset, std::move(first));
  }
  if (dataset->size() == 0) {
    throw_failure("{}: no question is left after data.filter, data.fraction, data.patients and data.limit",
                  options.path);
  }
  return dataset;
}

}  // namespace thinkvg::data
