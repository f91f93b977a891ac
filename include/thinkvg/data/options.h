#pragma once

#include <memory>
#include <string>
#include <vector>

#include "thinkvg/core/settings.h"
#include "thinkvg/data/dataset.h"

namespace thinkvg::data {

// Which questions a run uses.
struct DataOptions {
  std::string path;
  std::string format;
  std::string frame;
  std::string filter;
  double fraction = 1.0;
  bool complement = false;
  std::string patients = "0:1";
  std::int64_t split_seed = 0;
  std::int64_t per_type = 0;
  std::int64_t per_picture = 0;
  std::int64_t per_patient = 0;
  double think = 1.0;
  std::vector<std::string> mix;
  std::int64_t mix_size = 0;
  std::int64_t limit = 0;
  bool skip_bad_rows = false;
  double min_hit_rate = 1.0;

  void visit(SettingsVisitor& v) {
    v.setting("path", path, "Data set: a file or folder of a known format. --data FILE is the same.");
    v.setting(
        "format", format,
        "thinkvg, jsonl, gemex, gemex_train, conversations (LLaVA, ms-swift, TRL), vqa_rad, slake, vqa (PathVQA), "
        "ms_cxr, vindr, rsna, nih; empty: found out from the content.");
    v.setting("frame", frame, "Frame of the set's boxes; empty: the one that the format or the row names.");
    v.setting(
        "filter", filter,
        "Use only questions that match, such as: type == \"single\" and num_boxes > 1 and question ~ \"nodule\".");
    v.setting("fraction", fraction, "Share of the patients that is used; smaller shares lie inside larger ones.");
    v.setting("complement", complement, "Use the patients that `fraction` leaves out instead.");
    v.setting("patients", patients,
              "BEGIN:END of the seeded order of patients, such as 0:0.9 to train and 0.9:1 to test.");
    v.setting("split_seed", split_seed, "Seed of every choice of patients and questions here.");
    v.setting("per_type", per_type, "At most so many questions of each type, 0: all.");
    v.setting("per_picture", per_picture, "At most so many questions about each picture, 0: all.");
    v.setting("per_patient", per_patient, "At most so many questions about each patient, 0: all.");
    v.setting("think", think, "Share of the questions that keep their reasoning; 0: none, the answer is the target.");
    v.setting("mix", mix,
              "Further data sets, FILE or FILE=WEIGHT; `path` has weight 1. The settings above hold for each.");
    v.setting("mix_size", mix_size, "Questions of the mixture; 0: until each set has been shown once.");
    v.setting("limit", limit, "Use only the first questions of those; 0: all.");
    v.setting("skip_bad_rows", skip_bad_rows, "Leave rows that cannot be used out; otherwise they are an error.");
    v.setting(
        "min_hit_rate", min_hit_rate,
        "Share of the questions whose picture must be there, else the run does not start; where it is below 1 the "
        "questions without are left out.");
  }
};

// Opens the set and puts the wrappers around it, in the order of the settings. Throws std::runtime_error when nothing
// is left, or when the set has bad rows and they are not to be skipped: it lists the first of them and says how to see
// and mend them all. Wrong settings throw std::invalid_argument.
std::shared_ptr<const Dataset> open_data(const DataOptions& options);

}  // namespace thinkvg::data
