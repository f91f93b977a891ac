#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <unordered_set>

#include "data/box_order.h"
#include "data/rows.h"
#include "thinkvg/core/error.h"
#include "thinkvg/core/files.h"
#include "thinkvg/data/inspect.h"
#include "thinkvg/data/jsonl.h"
#include "thinkvg/grounding/geometry.h"

namespace thinkvg::data {
namespace {

using grounding::Box;
using grounding::Region;

// The box as it should have been, or a reason to drop it.
struct MendedBox {
  Box box;
  std::string change;  // empty: none was needed
  bool drop = false;
};

MendedBox mend_box(Box box, grounding::ImageSize size) {
  MendedBox mended{box, {}, false};
  std::vector<std::string> changes;
  if (box.x1 > box.x2 || box.y1 > box.y2) {
    if (box.x1 > box.x2) std::swap(box.x1, box.x2);
    if (box.y1 > box.y2) std::swap(box.y1, box.y2);
    changes.emplace_back("its corners were reversed and are exchanged");
  }
  const bool original = box.frame.kind() == grounding::BoxFrame::Kind::original;
  const auto width = static_cast<double>(original ? size.width : box.frame.width());
  const auto height = static_cast<double>(original ? size.height : box.frame.height());
  Box cut = box;
  cut.x1 = std::max(cut.x1, 0.0);
  cut.y1 = std::max(cut.y1, 0.0);
  if (width > 0) {
    cut.x2 = std::min(cut.x2, width);
    cut.y2 = std::min(cut.y2, height);
  }
  if (!(cut == box)) changes.push_back(fmt::format("it is cut to the frame {}", box.frame.name()));
  if (!cut.is_valid()) {
    mended.drop = true;
    mended.change =
        box.is_valid() ? "dropped: it lies outside the frame " + box.frame.name() : "dropped: " + box.problem();
    return mended;
  }
  mended.box = cut;
  mended.change = fmt::format("{}", fmt::join(changes, "; "));
  return mended;
}

std::vector<std::string> mend_regions(std::vector<Region>& regions, grounding::ImageSize size) {
  std::vector<std::string> changes;
  std::vector<Region> kept;
  for (Region& region : regions) {
    const MendedBox mended = mend_box(region.box, size);
    if (!mended.change.empty()) {
      changes.push_back(fmt::format("box [{}, {}, {}, {}] of '{}': {}", region.box.x1, region.box.y1, region.box.x2,
                                    region.box.y2, region.name, mended.change));
    }
    if (!mended.drop) kept.push_back({std::move(region.name), mended.box});
  }
  regions = std::move(kept);
  return changes;
}

std::string repetition_key(const Sample& sample) {
  Sample plain = sample;
  plain.id.clear();
  plain.fields.clear();
  return sha256_text(to_json_line(plain));
}

}  // namespace

FixResult write_fixed(const Dataset& dataset, const std::filesystem::path& file) {
  const std::string name = file.filename().string();
  const bool parquet = name.ends_with(".parquet");
  if (!parquet && !name.ends_with(".jsonl") && !name.ends_with(".jsonl.gz")) {
    throw_invalid("--fix writes FILE.jsonl, FILE.jsonl.gz or FILE.parquet, not '{}'", file.string());
  }
  FixResult result;
  result.log = file.string() + ".log.jsonl";
  std::string log;
  const auto note = [&](Json row, const char* action, const std::string& reason) {
    row["action"] = action;
    row["reason"] = reason;
    log += row.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
  };
  std::vector<Sample> samples;
  std::unordered_set<std::string> seen, ids;
  const auto keep = [&](Sample sample, const Json& place) {
    if (!seen.insert(repetition_key(sample)).second) {
      note(place, "dropped", "it repeats an earlier row");
      ++result.num_dropped;
      return false;
    }
    if (!ids.insert(sample.id).second) {
      const std::string id = sample.id;
      for (int i = 2; !ids.insert(sample.id).second; ++i) sample.id = fmt::format("{}~{}", id, i);
      note(place, "mended", fmt::format("its id '{}' came before and is '{}' now", id, sample.id));
    }
    samples.push_back(std::move(sample));
    return true;
  };
  std::int64_t num_boxes = 0;
  for (std::int64_t i = 0; i < dataset.size(); ++i) {
    Sample sample = dataset.get(i);
    num_boxes += static_cast<std::int64_t>(sample.regions.size());
    for (const auto& regions : sample.more_regions) num_boxes += static_cast<std::int64_t>(regions.size());
    const Json place = {{"id", sample.id}};
    if (keep(std::move(sample), place)) ++result.num_kept;
  }
  if (const ReversedBoxes found = find_reversed_boxes(dataset); is_another_order(found, num_boxes)) {
    throw_failure(
        "{} boxes have reversed corners, as {}: too many for slips. Their numbers are likely in another order (x, y, "
        "width, height, or y first); exchanging corners would make wrong boxes. Convert them, or name their order in "
        "thinkvg's own JSON lines, then mend the rest",
        found.num_reversed, found.example);
  }
  for (std::size_t i = 0; i < dataset.bad_rows().size(); ++i) {
    const BadRow& bad = dataset.bad_rows()[i];
    const Json place = {{"row", bad.row}};
    auto salvaged = dataset.salvage(static_cast<std::int64_t>(i));
    if (!salvaged) {
      note(place, "dropped", bad.reason);
      ++result.num_dropped;
      continue;
    }
    Sample& sample = salvaged->sample;
    std::vector<std::string> changes = mend_regions(sample.regions, sample.size);
    for (auto& regions : sample.more_regions) {
      for (std::string& change : mend_regions(regions, {})) changes.push_back(std::move(change));
    }
    for (const std::string& lost : salvaged->lost) changes.push_back("left out: " + lost);
    if (const std::string problem = problem_of(sample); !problem.empty()) {
      note(place, "dropped", problem);
      ++result.num_dropped;
      continue;
    }
    if (changes.empty()) changes.push_back(bad.reason);
    if (!keep(std::move(sample), place)) continue;
    for (const std::string& change : changes) note(place, "mended", change);
    ++result.num_mended;
  }
  const auto cleaned = make_dataset(std::move(samples));
  if (parquet) {
    write_thinkvg_parquet(*cleaned, file);
  } else {
    write_jsonl(*cleaned, file);
  }
  write_file_atomically(result.log, log);
  return result;
}

}  // namespace thinkvg::data
