#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "thinkvg/core/json.h"
#include "thinkvg/core/settings.h"
#include "thinkvg/data/dataset.h"

namespace thinkvg::data {

struct InspectOptions {
  std::string data;
  std::string format;
  std::string frame;
  std::string images;
  std::vector<std::string> others;
  std::string tokenizer;
  std::string out;
  std::string fix;
  std::string unpack;
  bool decode_pictures = false;
  std::int64_t num_pictures = 24;
  std::int64_t max_listed = 50;
  std::int64_t seed = 0;
  bool json = false;

  void visit(SettingsVisitor& v) {
    v.setting("data", data, "The data set, of any known format.");
    v.setting("format", format, "Name of its format; empty: found out from the content.");
    v.setting("frame", frame, "Frame of its boxes; empty: the one that the format or the row names.");
    v.setting("images", images, "Image root, for the hit rate, the pictures' sizes and the pages of examples.");
    v.setting("others", others, "Other sets (test, dev) whose patients and pictures must not be in this one.");
    v.setting("tokenizer", tokenizer, "Model folder whose tokenizer counts lengths; empty: words are counted.");
    v.setting("out", out, "Folder for inspect.json and inspect.html.");
    v.setting("fix", fix,
              "Write a cleaned copy: FILE.jsonl, FILE.jsonl.gz or FILE.parquet (ThinkVG's columns), and FILE.log.jsonl "
              "with every change.");
    v.setting("unpack", unpack, "Folder to write the pictures to that the set itself holds.");
    v.setting("decode_pictures", decode_pictures,
              "Decode every picture instead of reading its header: finds files that are cut off, damaged or blank.");
    v.setting("num_pictures", num_pictures, "Examples in the HTML page, half of them chosen for what is wrong.");
    v.setting("max_listed", max_listed, "Longest list of single rows in the report; counts are always whole.");
    v.setting("seed", seed, "Seed of the choice of examples.");
    v.setting("json", json, "Print the report as one JSON document instead of a summary.");
  }
};

// What was found, as JSON of stable names: rows, types, pictures, boxes, frame, think, choices, duplicates, splits,
// lengths, bad_rows, problems (one entry for each kind of finding, the worst first, with level, count, text, examples).
struct Inspection {
  Json report;
  std::vector<std::int64_t> examples;  // indices of the samples that the page shows
};

// Told now and then how far it is; `what`: "rows" or "pictures". Called by the calling thread.
using InspectProgress = std::function<void(const char* what, std::int64_t done, std::int64_t total)>;

// Looks at every row. Throws std::runtime_error where a file that was named cannot be read, std::invalid_argument for
// decode_pictures without images; what is wrong with the data is in the report.
Inspection inspect(const Dataset& dataset, const InspectOptions& options, const InspectProgress& on_progress = {});

// One self-contained page: the report, and the examples' pictures with their boxes where the pictures can be read.
std::string inspection_html(const Inspection& inspection, const Dataset& dataset, const InspectOptions& options);

// A few lines for a terminal.
std::string inspection_summary(const Inspection& inspection);

// What --fix did. Rules, in this order: reversed corners are exchanged (where there are so many that the numbers must
// be in another order, nothing is written: std::runtime_error); boxes are cut to their frame; empty boxes and boxes
// outside the frame are dropped, as are boxes that cannot be read; a response whose tags were broken is written anew
// from its parts; rows that nothing can be made of, and repetitions of an earlier row, are left out.
struct FixResult {
  std::int64_t num_kept = 0;     // rows as they were
  std::int64_t num_mended = 0;   // rows with a change
  std::int64_t num_dropped = 0;  // rows left out
  std::filesystem::path log;     // one JSON line a change: row (of the source, for bad rows) or id, action, reason
};
FixResult write_fixed(const Dataset& dataset, const std::filesystem::path& file);

}  // namespace thinkvg::data
