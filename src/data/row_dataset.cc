#include "data/row_dataset.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <unordered_set>

#include "data/packed_rows.h"
#include "data/parquet_table.h"
#include "data/rows.h"
#include "thinkvg/core/error.h"
#include "thinkvg/core/files.h"
#include "thinkvg/core/json.h"

namespace thinkvg::data {
namespace {

void put_into_frame(Sample& sample, const grounding::BoxFrame& frame) {
  sample.frame = frame;
  for (grounding::Region& region : sample.regions) region.box.frame = frame;
  for (auto& regions : sample.more_regions) {
    for (grounding::Region& region : regions) region.box.frame = frame;
  }
}

// The same picture has the same name wherever it stands, so that questions about it can be told to share it.
std::string picture_name(std::string_view bytes) {
  const bool png = bytes.starts_with("\x89PNG"), jpeg = bytes.starts_with("\xFF\xD8");
  return sha256_text(bytes).substr(0, 20) + (png ? ".png" : jpeg ? ".jpg" : ".bin");
}

// A file of the hub may name its pictures instead of holding them. Encoded pictures have control bytes near the front.
bool is_path(std::string_view cell) {
  return cell.size() < 1024 &&
         std::none_of(cell.begin(), cell.end(), [](char c) { return static_cast<unsigned char>(c) < 32; });
}

class RowDataset final : public Dataset {
 public:
  RowDataset(const std::vector<Preview>& files, RowFormat format, const std::string& frame)
      : format_(std::move(format)) {
    if (!frame.empty()) frame_ = grounding::BoxFrame::parse(frame);
    several_files_ = files.size() > 1;
    std::unordered_set<std::string> ids;
    for (const Preview& file : files) {
      file_starts_.push_back(rows_.size());
      names_.push_back(file.file.filename().string());
      read_file_rows(file, [&](const RawRow& row) { add(row, ids); });
      if (format_.picture_column < format_.columns.size() && file.kind == FileKind::parquet)
        pictures_.push_back(std::make_unique<ParquetColumn>(file.file, format_.columns[format_.picture_column]));
    }
    rows_.finish();
    good_.shrink_to_fit();
  }

  std::int64_t size() const override { return static_cast<std::int64_t>(good_.size()); }

  Sample get(std::int64_t index) const override {
    const Place& place = good_[static_cast<std::size_t>(checked(index))];
    Sample sample = std::move(parse(place.row).samples[place.part]);
    if (place.renamed) sample.id += fmt::format("#{}", place.row);
    return sample;
  }

  const std::vector<BadRow>& bad_rows() const override { return bad_; }

  std::string embedded_picture(std::int64_t index) const override {
    const std::int64_t row = good_[static_cast<std::size_t>(checked(index))].row;
    const RowPlace place = place_of(row);
    if (place.file >= pictures_.size()) return {};
    std::string picture = pictures_[place.file]->at(place.row_in_file);
    return is_path(picture) ? std::string() : picture;
  }

  std::optional<SalvagedRow> salvage(std::int64_t bad_index) const override {
    const std::int64_t row = bad_.at(static_cast<std::size_t>(bad_index)).row;
    if (unreadable_.contains(row)) return std::nullopt;
    try {
      ParsedRow parsed = parse(row);
      if (parsed.samples.size() != 1) return std::nullopt;
      if (!parsed.problem.empty()) parsed.lost.insert(parsed.lost.begin(), parsed.problem);
      return SalvagedRow{std::move(parsed.samples.front()), std::move(parsed.lost)};
    } catch (const std::invalid_argument&) {
      return std::nullopt;
    } catch (const Json::exception&) {
      return std::nullopt;
    }
  }

 private:
  struct Place {
    std::int32_t row = 0;
    std::int16_t part = 0;
    bool renamed = false;
  };

  std::int64_t checked(std::int64_t index) const {
    if (index < 0 || index >= size()) {
      throw std::out_of_range(fmt::format("sample {} of {}: an index is 0 to size - 1", index, size()));
    }
    return index;
  }

  void read_file_rows(const Preview& file, const RowCallback& call) {
    if (file.kind == FileKind::parquet) {
      for_each_parquet_row(file.file, format_.columns, call);
    } else if (file.kind == FileKind::csv) {
      for_each_csv_row(file.file, format_.columns, call);
    } else {
      for_each_json_row(file.file, file.kind, call);
    }
  }

  RowPlace place_of(std::int64_t row) const {
    const auto behind = std::upper_bound(file_starts_.begin(), file_starts_.end(), row);
    const auto file = static_cast<std::size_t>(behind - file_starts_.begin()) - 1;
    return {row, row - file_starts_[file], file};
  }

  ParsedRow parse_cells(const std::vector<std::string_view>& cells, std::int64_t row) const {
    ParsedRow parsed = format_.parse(cells, place_of(row));
    if (frame_) {
      for (Sample& sample : parsed.samples) put_into_frame(sample, *frame_);
    }
    return parsed;
  }

  ParsedRow parse(std::int64_t row) const { return parse_cells(rows_.at(row), row); }

  void add(const RawRow& raw, std::unordered_set<std::string>& ids) {
    const std::int64_t row = rows_.size();
    if (row >= std::numeric_limits<std::int32_t>::max()) throw_failure("a data set of more than 2^31 rows");
    std::vector<std::string_view> cells = raw.cells;
    std::string name;
    if (format_.picture_column < cells.size()) {
      std::string_view& picture = cells[format_.picture_column];
      if (!is_path(picture)) {
        name = picture_name(picture);
        picture = name;
      }
    }
    rows_.append(cells);
    std::string problem = raw.problem;
    ParsedRow parsed;
    if (problem.empty()) {
      try {
        parsed = parse_cells(cells, row);
        problem = parsed.problem;
      } catch (const std::invalid_argument& error) {
        problem = error.what();
      } catch (const Json::exception& error) {
        problem = std::string("a value is of another kind than expected: ") + error.what();
      }
    } else {
      unreadable_.insert(row);
    }
    std::vector<Place> places;
    for (std::size_t part = 0; problem.empty() && part < parsed.samples.size(); ++part) {
      const Sample& sample = parsed.samples[part];
      problem = problem_of(sample);
      Place place{static_cast<std::int32_t>(row), static_cast<std::int16_t>(part), false};
      if (problem.empty() && !ids.insert(sample.id).second) {
        if (format_.repeated_ids_are_bad) problem = "the id " + sample.id + " came before";
        place.renamed = true;
      }
      places.push_back(place);
    }
    if (problem.empty()) {
      good_.insert(good_.end(), places.begin(), places.end());
    } else {
      if (several_files_) problem = fmt::format("{}, row {}: {}", names_.back(), row - file_starts_.back(), problem);
      bad_.push_back({row, std::move(problem)});
    }
  }

  RowFormat format_;
  std::optional<grounding::BoxFrame> frame_;
  bool several_files_ = false;
  PackedRows rows_;
  std::vector<std::int64_t> file_starts_;
  std::vector<std::string> names_;
  std::vector<Place> good_;
  std::vector<BadRow> bad_;
  std::unordered_set<std::int64_t> unreadable_;
  std::vector<std::unique_ptr<ParquetColumn>> pictures_;
};

}  // namespace

std::unique_ptr<Dataset> read_rows(const std::vector<Preview>& files, RowFormat format, const std::string& frame) {
  return std::make_unique<RowDataset>(files, std::move(format), frame);
}

}  // namespace thinkvg::data
