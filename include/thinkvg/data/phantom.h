#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "thinkvg/core/json.h"
#include "thinkvg/core/settings.h"

namespace thinkvg::data {

// A synthetic data set: drawn chest radiographs with findings at known places, and questions about them.
//
// Written under `out`:
//   files/p10/p10000032/s50414267/<dicom_id>.jpg   grey JPEG in MIMIC-CXR-JPG's layout
//   data/{train,dev,test}.parquet                  the ThinkVG release's columns; boxes in letterbox-336
//   gemex_test/{open_ended,closed_ended,single_choice,multi_choice}_question.jsonl
//                                                  the test questions as GEMeX writes them; boxes in letterbox-224
//   annotations.jsonl                              one line a picture: {"image_path", "split", "width", "height",
//                                                  "items": [{"name", "kind": "region"|"finding", "zone", "box"}]},
//                                                  boxes x1, y1, x2, y2 in original pixels, not on the grid;
//                                                  "zone": the region a finding belongs to, "" for regions
//   phantom.json                                   settings and statistics
// The same settings (threads apart) give the same bytes. A split's pictures depend on the seed alone, so that a larger
// data set extends a smaller one; no patient is in two splits.
struct PhantomOptions {
  std::string out;
  std::int64_t num_images = 1000;
  std::int64_t seed = 1;
  double dev_fraction = 0.1;
  double test_fraction = 0.1;
  std::int64_t num_dev = -1;
  std::int64_t num_test = -1;
  std::int64_t questions_per_image = 4;
  std::int64_t box_grid = 6;
  std::int64_t longest_side = 384;
  std::int64_t threads = 0;

  void visit(SettingsVisitor& v) {
    v.setting("out", out, "Folder to write; must be new, empty, or an earlier phantom, which is replaced.");
    v.setting("num_images", num_images, "Pictures in all splits together.");
    v.setting("seed", seed, "Everything drawn follows from it.");
    v.setting("dev_fraction", dev_fraction, "Share of the pictures in the dev split.");
    v.setting("test_fraction", test_fraction, "Share of the pictures in the test split.");
    v.setting("num_dev", num_dev, "Pictures of the dev split; -1: by dev_fraction.");
    v.setting("num_test", num_test, "Pictures of the test split; -1: by test_fraction.");
    v.setting("questions_per_image", questions_per_image, "Questions about each picture; 4: one of each type.");
    v.setting("box_grid", box_grid,
              "Box corners are multiples of this in the 336 frame; 6 is exact in 224 and 112, too.");
    v.setting("longest_side", longest_side, "Pixels of a picture's longer side; MIMIC-CXR has 3056.");
    v.setting("threads", threads, "Threads that draw; 0: one a core. The result does not depend on it.");
  }
};

struct PhantomSplit {
  std::string name;
  std::int64_t num_images = 0;
  std::int64_t num_patients = 0;
  std::int64_t num_questions = 0;
};

// How often an answer can be guessed without the picture.
struct PhantomGuess {
  std::string split;
  std::string type;     // stable name of the question type
  std::string pattern;  // the question with kind and place left open; empty: all questions of the type
  std::int64_t num_questions = 0;
  std::string majority_answer;  // the most frequent answer
  double majority_rate = 0;     // its share
  // Share of right answers when each exact question text is given the answer that it has most often in train.
  double text_rate = 0;
};

struct PhantomReport {
  std::vector<PhantomSplit> splits;
  std::vector<PhantomGuess> types;     // per split and type
  std::vector<PhantomGuess> patterns;  // of the test split (train when there is no test split)

  Json to_json() const;
  // For people: columns aligned, lines ended.
  std::string table() const;
};

// Writes the data set. `on_progress(done, total)` counts pictures and is called by the calling thread, may be empty.
// Throws std::invalid_argument on settings out of range, or a folder that holds something else; std::runtime_error when
// writing fails; then nothing is left behind.
PhantomReport write_phantom(const PhantomOptions& options,
                            const std::function<void(std::int64_t done, std::int64_t total)>& on_progress = {});

}  // namespace thinkvg::data
