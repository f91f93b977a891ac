#pragma once

#include <filesystem>
#include <memory>

#include "thinkvg/data/dataset.h"

namespace thinkvg::data {

// GEMeX's test rows: a .jsonl file, a .json file that lists such rows, or a folder with the four *_question.jsonl
// files; or its LLaVA-style training list (.json). Rows of a folder are counted on from file to file, in the files'
// order open, closed, single choice, multi choice.
std::unique_ptr<Dataset> open_gemex(const std::filesystem::path& path);

}  // namespace thinkvg::data
